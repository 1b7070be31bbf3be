//! How the tasks of a thread take turns.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// Runs `work` as far as it goes without waiting; says whether that was to the end. Work that is
/// not done is registered with the calling task only: it has to be polled again by whoever takes
/// it over.
pub async fn is_done_at_once(mut work: Pin<&mut impl Future<Output = ()>>) -> bool {
    poll_fn(|context| Poll::Ready(work.as_mut().poll(context).is_ready())).await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::pin::pin;

    use cowl_storage::yield_now;

    use super::is_done_at_once;

    #[test]
    fn work_runs_as_far_as_it_goes() {
        let steps = Cell::new(0);
        let mut work = pin!(async {
            steps.set(1);
            yield_now().await;
            steps.set(2);
        });
        pollster::block_on(async {
            assert!(!is_done_at_once(work.as_mut()).await);
            assert_eq!(steps.get(), 1);
            assert!(is_done_at_once(work.as_mut()).await);
            assert_eq!(steps.get(), 2);
        });
    }
}
