//! One slice of an L2 table: readers without a lock, writers, and the copy for the file.

use std::sync::atomic::Ordering::SeqCst;

use cowl_format::L2Entry;
use shuttle::sync::atomic::{AtomicU64, AtomicUsize};

use crate::cache::L2Slice;
use crate::flush::After;
use crate::interleavings::{explore, threads};

fn pair(value: u64) -> L2Entry {
    L2Entry { raw: value, bitmap: value }
}

// Catches: a change that leaves the version even, a reader that does not look at it again.
#[test]
fn a_reader_never_sees_half_of_an_extended_entry() {
    explore(300, || {
        let slice = L2Slice::new(&[0; 32], 2, 0);
        threads(3, |thread| {
            for step in 1..3 {
                if thread == 0 {
                    slice.set(1, pair(step), After::NOTHING, || true).unwrap();
                } else {
                    let entry = slice.entry(1).unwrap();
                    assert_eq!(entry.raw, entry.bitmap, "torn");
                }
            }
        });
        assert_eq!(slice.entry(1), Some(pair(2)));
    });
}

// Catches: `take_copy` that copies first and then takes the lock to say so; `written` that calls a
// slice clean which changed meanwhile; `not_written` that forgets to make it dirty.
#[test]
fn every_change_of_a_slice_is_in_the_file_or_on_the_list() {
    explore(300, || {
        let slice = L2Slice::new(&[0; 16], 1, 0);
        let (unclean, listed) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let file = AtomicU64::new(0);
        let write_back = |fails: bool| {
            if listed.swap(0, SeqCst) == 0 {
                return;
            }
            let Some(copy) = slice.take_copy() else { return };
            if fails {
                if slice.not_written(copy.after) {
                    listed.fetch_add(1, SeqCst);
                }
                return;
            }
            let word = |at: usize| u64::from_be_bytes(copy.bytes[at..at + 8].try_into().unwrap());
            file.store(word(0) << 32 | word(8), SeqCst);
            if slice.written() {
                unclean.fetch_sub(1, SeqCst);
            }
        };
        threads(3, |thread| {
            if thread == 2 {
                write_back(true);
                write_back(false);
                return;
            }
            for value in 1..3 {
                let index = u32::try_from(thread).unwrap();
                let entry = L2Entry { raw: value, bitmap: 0 };
                let became_unclean = || {
                    unclean.fetch_add(1, SeqCst);
                    true
                };
                let became = slice.set(index, entry, After::NOTHING, became_unclean).unwrap();
                if became != crate::cache::Became::Same {
                    listed.fetch_add(1, SeqCst);
                }
            }
        });
        write_back(false);
        assert_eq!(file.load(SeqCst), 2 << 32 | 2, "a change was lost");
        assert_eq!(unclean.load(SeqCst), 0, "it has no reason to stay");
    });
}
