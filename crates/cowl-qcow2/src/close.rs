//! The end of an image that was written to: nothing leaks, and everything is durable.

use cowl_format::{HeaderField, IncompatibleFeatures};
use cowl_storage::Storage;

use crate::flush::Edge;
use crate::{Error, Image, Layer};

impl<S: Storage> Image<S> {
    /// Makes everything durable and gives back what was reserved. Nothing is left in flight: the
    /// image is the caller's alone.
    ///
    /// An image that is dropped without it is correct as well; reserved clusters leak then, at most
    /// [`ImageStats::reserved_clusters_max`](crate::ImageStats::reserved_clusters_max) of them.
    pub async fn close(self) -> Result<(), Error> {
        match self.top().writer() {
            Err(_) => Ok(()),
            Ok(_) => self.top().finish().await,
        }
    }
}

/// Commits that a close needs at most: unlink, lower refcounts, and once more for what the second
/// one freed.
const COMMITS_MAX: usize = 4;

impl<S: Storage> Layer<S> {
    async fn finish(&self) -> Result<(), Error> {
        let writer = self.writer()?;
        self.recover().await?;
        self.metadata().latch().check()?;
        if !writer.first_write.is_initialized() {
            return Ok(());
        }
        let is_delayed = writer.is_lazy();
        if is_delayed && !Edge::AllBeforeClean.holds() {
            self.mark_clean().await?;
        }
        self.commit().await?;
        for _ in 0..COMMITS_MAX {
            if writer.quarantine.is_empty() {
                break;
            }
            self.sweep().await?;
            self.commit().await?;
        }
        self.return_reserved().await?;
        self.commit_refcounts().await?;
        // An error here leaves a file that is longer than it has to be.
        self.cut_file().await.ok();
        self.commit_refcounts().await?;
        if is_delayed && Edge::AllBeforeClean.holds() {
            self.mark_clean().await?;
        }
        Ok(())
    }

    pub(crate) async fn mark_clean(&self) -> Result<(), Error> {
        self.update_header(HeaderField::IncompatibleFeatures, |header| {
            header.incompatible = header.incompatible.without(IncompatibleFeatures::DIRTY);
        })
        .await
    }
}
