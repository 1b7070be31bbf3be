//! From the removal of a pointer to the reuse of its cluster, in a whole image.
//!
//! One thread discards cluster 0, flushes or not, and writes cluster 5, which is given the host
//! cluster if it became free. Meanwhile others read and write cluster 0.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use cowl_format::ByteCount;
use cowl_storage::{Access, MemoryStorage};
use shuttle::future::block_on;

use crate::Image;
use crate::interleavings::disk::{CLUSTER, assert_sound, at, image_of, open, value_of};
use crate::interleavings::stage::Stage;
use crate::interleavings::{drop_after, explore, threads};

const OLD: u8 = 0x10;
const WRITTEN: u8 = 0x77;
const NEXT: u8 = 0x55;

/// In a hurry: what others have begun is still under way at the end, if the engine does not wait.
fn discard_and_reuse(stage: &Stage, image: &Image<Stage>, is_early: bool) {
    stage.hurry();
    block_on(async {
        image.discard(at(0), ByteCount::new(CLUSTER)).await.unwrap();
        image.top().sweep().await.unwrap();
        if !is_early {
            image.flush().await.unwrap();
            image.top().sweep().await.unwrap();
        }
        // The first clusters that the thread needs: what is free comes before the end of the file.
        // Before the unlink is durable, nothing is.
        image.write_from(at(5), &[NEXT; CLUSTER as usize]).await.unwrap();
        image.top().barrier().await.unwrap();
        image.write_from(at(6), &[NEXT; CLUSTER as usize]).await.unwrap();
        image.flush().await.unwrap();
    });
    assert_eq!((value_of(image, 5), value_of(image, 6)), (NEXT, NEXT), "somebody else's bytes");
    stage.hurry_no_more();
}

/// What the image reads as, and what every power cut would have left, is what somebody put there.
fn assert_no_mixture(stage: &Stage, image: Image<Stage>) {
    // Writes that were dropped land now, if they have not.
    block_on(cowl_storage::Storage::settle(stage));
    assert!([0, OLD, WRITTEN].contains(&value_of(&image, 0)));
    assert_eq!((value_of(&image, 5), value_of(&image, 6)), (NEXT, NEXT), "written by a stranger");
    block_on(image.close()).unwrap();
    assert_sound(&stage.durable(), 0);
    for medium in stage.durable_states() {
        let image = open(&medium, Access::ReadOnly);
        let before = value_of(&image, 0);
        assert!([0, OLD, WRITTEN].contains(&before), "{before:#x} after a power cut");
        assert!([0, NEXT].contains(&value_of(&image, 5)));
        assert!([0, NEXT].contains(&value_of(&image, 6)));
    }
}

fn begin(file: &MemoryStorage) -> (Arc<Stage>, Image<Stage>) {
    let stage = Arc::new(Stage::new(file.snapshot()));
    let image = open(&stage, Access::ReadWrite);
    (stage, image)
}

// Catches: `take_free` that does not ask whether the epoch is over (a read in flight sees, and an
// in-place write changes, the next owner's cluster), `add_unlinked` that skips the wait for the
// commit.
#[test]
fn a_cluster_is_not_reused_while_a_request_is_on_its_way_to_it() {
    let file = image_of(2);
    let round = AtomicU64::new(0);
    explore(40, move || {
        let (stage, image) = begin(&file);
        let is_early = round.fetch_add(1, Relaxed).is_multiple_of(2);
        threads(4, |thread| match thread {
            0 => {
                for _ in 0..2 {
                    let value = value_of(&image, 0);
                    assert!([0, OLD, WRITTEN].contains(&value), "{value:#x} was never here");
                }
            }
            1 => block_on(image.write_from(at(0), &[WRITTEN; CLUSTER as usize])).unwrap(),
            2 => block_on(async {
                // A sweep beside the commits, and a barrier right behind what it made possible.
                image.top().sweep().await.unwrap();
                image.write_from(at(7), &[NEXT; CLUSTER as usize]).await.unwrap();
                image.top().barrier().await.unwrap();
            }),
            _ => discard_and_reuse(&stage, &image, is_early),
        });
        assert_no_mixture(&stage, image);
    });
}

// Catches: `Pin::drop` that leaves although a change is under way.
#[test]
fn a_dropped_write_never_lands_on_the_next_owner() {
    let file = image_of(2);
    let round = AtomicU64::new(0);
    explore(40, move || {
        let (stage, image) = begin(&file);
        let is_early = round.fetch_add(1, Relaxed).is_multiple_of(2);
        threads(3, |thread| match thread {
            0 | 1 => {
                let write = image.write_from(at(0), &[WRITTEN; CLUSTER as usize]);
                drop_after(2 + thread as usize, write);
            }
            _ => discard_and_reuse(&stage, &image, is_early),
        });
        assert_no_mixture(&stage, image);
    });
}
