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

// Catches: a change that does not end the even entries, or ends them one too far.
#[test]
fn an_entry_that_was_a_sum_never_goes_back_to_it() {
    explore(300, || {
        let words: Vec<u8> = (5_u64..9).flat_map(u64::to_be_bytes).collect();
        let slice = L2Slice::new(&words, 1, 0);
        let raw = |index| slice.entry(index).unwrap().raw;
        let seen = AtomicU64::new(0);
        threads(3, |thread| {
            if thread == 0 {
                for index in [2, 1] {
                    let entry = L2Entry { raw: 100, bitmap: 0 };
                    slice.set(index, entry, After::NOTHING, || true).unwrap();
                    assert_eq!(raw(index), 100);
                }
                return;
            }
            for index in [1, 2, 1] {
                let before = seen.load(SeqCst);
                let now = raw(index);
                assert!(now == 100 || now == 5 + u64::from(index));
                assert!(before & 1 << index == 0 || now == 100, "went back");
                if now == 100 {
                    seen.fetch_or(1 << index, SeqCst);
                }
            }
            assert_eq!([raw(0), slice.entry(4).map_or(0, |entry| entry.raw)], [5, 0]);
        });
        assert_eq!([raw(0), raw(1), raw(2), raw(3)], [5, 100, 100, 8]);
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
