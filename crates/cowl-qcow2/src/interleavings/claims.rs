//! Claims on guest clusters.

use std::sync::Mutex;

use cowl_format::GuestCluster;
use shuttle::future::block_on;

use crate::interleavings::{drop_after, explore, threads};
use crate::request::Claims;

/// Marks clusters as changed by one thread, and sees that nobody else is there.
fn change(cells: &Mutex<[u64; 8]>, first: u64, count: u64) {
    let range = first as usize..(first + count) as usize;
    cells.lock().unwrap()[range.clone()].iter_mut().for_each(|cell| *cell += 1);
    shuttle::thread::yield_now();
    let mut cells = cells.lock().unwrap();
    assert!(cells[range.clone()].iter().all(|cell| *cell == 1), "two at once");
    cells[range].iter_mut().for_each(|cell| *cell -= 1);
}

// Catches: `try_claim` looking at the first range below its end instead of the last.
// Catches: a claim that wakes nobody when dropped, and one that takes the listener only after it
// has let the lock go (both deadlock).
#[test]
fn overlapping_claims_exclude_each_other_and_nobody_waits_for_ever() {
    explore(400, || {
        let (claims, cells) = (Claims::default(), Mutex::new([0; 8]));
        threads(3, |thread| {
            for (first, count) in [(thread, 3), (2 * thread, 2), (0, 1 + 2 * thread)] {
                let claim = block_on(claims.claim(GuestCluster::new(first), count));
                change(&cells, first, count);
                drop(claim);
            }
        });
        assert!(claims.is_empty());
    });
}

// Catches: waiting for any claim that is held, whether it overlaps or not.
#[test]
fn a_claim_beside_others_is_had_at_once() {
    explore(200, || {
        let claims = Claims::default();
        threads(3, |thread| {
            for _ in 0..2 {
                let claim = claims.claim(GuestCluster::new(thread * 4), 4);
                assert!(drop_after(1, claim), "nobody else wants them");
            }
        });
        assert!(claims.is_empty());
    });
}

// Catches: notifying one listener instead of all: the one told may be the one that was dropped.
#[test]
fn waiters_that_are_dropped_keep_nobody_waiting() {
    explore(400, || {
        let (claims, cells) = (Claims::default(), Mutex::new([0; 8]));
        threads(4, |thread| {
            let first = GuestCluster::new(1);
            if thread % 2 == 0 {
                drop_after(2, claims.claim(first, 2));
                return;
            }
            let claim = block_on(async {
                loop {
                    // Half of them look again only after somebody else is done.
                    if let Some(claim) = claims.claim_or_wait(first, 2).await {
                        return claim;
                    }
                }
            });
            change(&cells, 1, 2);
            drop(claim);
        });
        assert!(claims.is_empty());
    });
}
