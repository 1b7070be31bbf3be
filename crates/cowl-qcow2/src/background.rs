//! Commits that nobody waits for.
//!
//! The engine has no thread and no clock. Whoever embeds it runs [`Image::background`] beside the
//! requests, and calls [`Image::tick`] at a pace of its own; both only make earlier what a flush or
//! a full cache would do anyway.

use std::sync::atomic::Ordering;

use cowl_storage::Storage;

use crate::request::Pressure;
use crate::{Error, Image};

impl<S: Storage> Image<S> {
    /// Writes tables back when many of them wait for it, so that requests seldom have to. Runs
    /// until it is dropped, or until a commit fails: that error is what it returns.
    pub async fn background(&self) -> Result<(), Error> {
        let Ok(writer) = self.top().writer() else { return core::future::pending().await };
        loop {
            let pressed = writer.pressed.listen();
            if self.top().pressure()? == Pressure::Low {
                pressed.await;
                continue;
            }
            self.top().commit().await?;
        }
    }

    /// Makes durable what has waited since the last tick. At one tick a second nothing waits for
    /// longer than two.
    pub async fn tick(&self) -> Result<(), Error> {
        let Ok(writer) = self.top().writer() else { return Ok(()) };
        let metadata = self.top().metadata();
        let waits = !metadata.dirty().is_empty()
            || self.top().l1().is_dirty()
            || metadata.barriers().is_touched();
        if waits && writer.waited_at_tick.swap(waits, Ordering::Relaxed) {
            self.top().commit().await?;
            writer.waited_at_tick.store(false, Ordering::Relaxed);
        }
        Ok(())
    }
}
