//! The group commit: what a flush promises to each of those that ask at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use cowl_storage::{Access, MemoryStorage};
use shuttle::future::block_on;
use shuttle::sync::Mutex;

use crate::Image;
use crate::interleavings::disk::{assert_sound, at, image_of, open, value_of};
use crate::interleavings::stage::Stage;
use crate::interleavings::{explore, threads};

/// What was on the medium when a flush returned, and what has to be there.
type Promise = (Arc<MemoryStorage>, u64, u8);

/// Writes a cluster and flushes. What the flush promised, unless it failed.
fn write_and_flush(
    stage: &Stage,
    image: &Image<Stage>,
    cluster: u64,
    value: u8,
) -> Option<Promise> {
    block_on(async {
        image.write_from(at(cluster), &[value; 1024]).await.ok()?;
        image.flush().await.ok()?;
        Some((stage.durable(), cluster, value))
    })
}

/// A power cut right after a flush leaves what the flush promised.
fn assert_kept(promises: Vec<Promise>) {
    for (medium, cluster, value) in promises {
        let image = open(&medium, Access::ReadOnly);
        assert_eq!(value_of(&image, cluster), value, "cluster {cluster} after a power cut");
    }
}

// Catches: joining a commit that began before the call (`wanted` without its `+ 1`), `succeeded`
// that is stored before the commit, a commit without its last barrier.
#[test]
fn what_was_written_before_a_flush_is_durable_when_it_returns() {
    let file = image_of(2);
    explore(30, move || {
        let stage = Arc::new(Stage::new(file.snapshot()));
        let image = open(&stage, Access::ReadWrite);
        let promises = Mutex::new(Vec::new());
        threads(3, |thread| {
            // In place, in place and twice, and in a new cluster.
            for cluster in [&[0][..], &[1, 130], &[5]][thread as usize] {
                let promise = write_and_flush(&stage, &image, *cluster, 0x40 + thread as u8);
                promises.lock().unwrap().push(promise.unwrap());
            }
        });
        assert_kept(promises.into_inner().unwrap());
        block_on(image.close()).unwrap();
        assert_sound(&stage.durable(), 0);
    });
}

// Catches: a latch that stays open after a failed barrier, a flush that joins a commit which
// failed, a barrier that failed and counts as returned.
#[test]
fn a_barrier_that_fails_fails_every_flush_that_needed_it_and_all_later_ones() {
    let file = image_of(2);
    let round = AtomicU64::new(0);
    explore(30, move || {
        let stage = Arc::new(Stage::new(file.snapshot()));
        let image = open(&stage, Access::ReadWrite);
        let first = stage.barriers_begun() + 1;
        stage.fail_barrier(first + round.fetch_add(1, Relaxed) % 3);
        let promises = Mutex::new(Vec::new());
        threads(3, |thread| {
            let cluster = [0, 1, 5][thread as usize];
            let promise = write_and_flush(&stage, &image, cluster, 0x40 + thread as u8);
            promises.lock().unwrap().extend(promise);
        });
        let has_failed = promises.lock().unwrap().len() < 3;
        assert_kept(promises.into_inner().unwrap());
        if has_failed {
            assert!(block_on(image.flush()).is_err(), "trusted after a failed barrier");
        }
        assert_sound(&stage.content(), u64::MAX);
    });
}

// A barrier for each flush, whatever the others do, would fail it: some round must need fewer.
#[test]
fn flushes_at_once_share_a_barrier() {
    let file = image_of(3);
    let fewest = Arc::new(AtomicU64::new(u64::MAX));
    let seen = Arc::clone(&fewest);
    explore(40, move || {
        let stage = Arc::new(Stage::new(file.snapshot()));
        let image = open(&stage, Access::ReadWrite);
        // The first write of a session has barriers of its own.
        write_and_flush(&stage, &image, 0, 1).unwrap();
        let before = stage.barriers_begun();
        threads(3, |thread| {
            write_and_flush(&stage, &image, thread, 2).unwrap();
        });
        let barriers = stage.barriers_begun() - before;
        assert!(barriers <= 3, "{barriers}");
        seen.fetch_min(barriers, Relaxed);
    });
    assert!(fewest.load(Relaxed) < 3, "nobody ever joined");
}

// Catches: a barrier that says "nothing written since" when it returns and not when it begins; a
// flush that finds nothing written since the last barrier began, and does not wait for
// that barrier (which whoever grows a table or changes the header runs beside the commits).
#[test]
fn a_flush_waits_for_a_barrier_that_somebody_else_began() {
    let file = image_of(2);
    explore(150, move || {
        let stage = Arc::new(Stage::new(file.snapshot()));
        let image = open(&stage, Access::ReadWrite);
        // The first write of a session has barriers of its own.
        write_and_flush(&stage, &image, 1, 0x3f).unwrap();
        let promises = Mutex::new(Vec::new());
        threads(2, |thread| {
            if thread == 0 {
                block_on(image.top().barrier()).unwrap();
                block_on(image.top().barrier()).unwrap();
                return;
            }
            for value in 0x40..0x42 {
                let promise = write_and_flush(&stage, &image, 0, value).unwrap();
                promises.lock().unwrap().push(promise);
            }
        });
        assert_kept(promises.into_inner().unwrap());
    });
}
