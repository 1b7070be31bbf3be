//! Guest clusters whose mapping somebody is about to change.
//!
//! A request that allocates, zeroes or discards claims its guest clusters first, and looks at their
//! mapping only then. Another one that wants to change one of them waits for that claim, and for no
//! other. In-place writes and reads claim nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use cowl_format::GuestCluster;

use crate::sync::{Event, EventListener, Mutex, MutexGuard};

/// The claims of one image.
#[derive(Default)]
pub(crate) struct Claims {
    /// By first cluster; they do not overlap.
    ranges: Mutex<BTreeMap<u64, Range>>,
}

struct Range {
    end: u64,
    /// Made by the first who waits: as a rule nobody does.
    released: Option<Arc<Event>>,
}

/// Clusters that nobody else changes; released when dropped.
pub(crate) struct Claim<'a> {
    claims: &'a Claims,
    first: u64,
}

impl Claims {
    /// Clusters to claim at once: one request must not keep others waiting for long.
    pub(crate) const AT_ONCE_MAX: u64 = 256;

    /// Claims `count` clusters from `first` on, once nobody else has any of them.
    pub(crate) async fn claim(&self, first: GuestCluster, count: u64) -> Claim<'_> {
        assert!(0 < count);
        let (first, end) = (first.get(), first.get() + count);
        loop {
            let released = match self.try_claim(first, end) {
                Ok(claim) => return claim,
                Err(released) => released,
            };
            released.await;
        }
    }

    /// Claims the clusters if nobody has any of them; otherwise waits for whoever does, and claims
    /// nothing: what the caller wanted to do may be done.
    pub(crate) async fn claim_or_wait(&self, first: GuestCluster, count: u64) -> Option<Claim<'_>> {
        match self.try_claim(first.get(), first.get() + count) {
            Ok(claim) => Some(claim),
            Err(released) => {
                released.await;
                None
            }
        }
    }

    fn try_claim(&self, first: u64, end: u64) -> Result<Claim<'_>, EventListener> {
        let mut ranges = self.lock();
        // Ranges do not overlap, so only the last one that starts before our end can reach into it.
        if let Some((_, range)) = ranges.range_mut(..end).next_back()
            && first < range.end
        {
            return Err(range.released.get_or_insert_default().listen());
        }
        ranges.insert(first, Range { end, released: None });
        Ok(Claim { claims: self, first })
    }

    /// Whether nobody claims anything.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Range>> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let range = self.claims.lock().remove(&self.first);
        if let Some(released) = range.and_then(|range| range.released) {
            released.notify(usize::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use cowl_format::GuestCluster;

    use super::Claims;

    #[test]
    fn overlapping_claims_wait_and_others_do_not() {
        let claims = Claims::default();
        let mut context = Context::from_waker(Waker::noop());
        let mut poll = |first, count| {
            let mut claim = Box::pin(claims.claim(GuestCluster::new(first), count));
            claim.as_mut().poll(&mut context).is_ready()
        };
        let held = pollster::block_on(claims.claim(GuestCluster::new(10), 5));
        for (first, count, free) in
            [(0, 10, true), (15, 1, true), (0, 11, false), (12, 1, false), (14, 9, false)]
        {
            assert_eq!(poll(first, count), free, "{first} {count}");
        }
        drop(held);
        assert!(poll(0, 100));
        assert!(claims.is_empty());
    }

    #[test]
    fn a_waiter_goes_on_when_the_claim_is_released() {
        let claims = Claims::default();
        let counter = std::sync::Mutex::new([0_u64; 16]);
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let (claims, counter) = (&claims, &counter);
                scope.spawn(move || {
                    for step in 0..2000 {
                        let first = (step * 7 + thread * 3) % 12;
                        let claim = claims.claim(GuestCluster::new(first), 4);
                        let claim = pollster::block_on(claim);
                        let cells = || counter.lock().unwrap();
                        let at = usize::try_from(first).unwrap();
                        cells()[at..at + 4].iter_mut().for_each(|cell| *cell += 1);
                        assert!(cells()[at..at + 4].iter().all(|cell| *cell == 1));
                        cells()[at..at + 4].iter_mut().for_each(|cell| *cell -= 1);
                        drop(claim);
                    }
                });
            }
        });
        assert!(claims.is_empty());
    }
}
