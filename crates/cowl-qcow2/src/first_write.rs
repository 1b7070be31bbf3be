//! What happens once, before an image is changed for the first time.
//!
//! Opening an image for writing changes nothing. The first write, discard or resize marks what it
//! is about to make stale: bitmaps that would have to record the write and are not kept up yet,
//! feature bits of others that say "nobody but me wrote this", and the dirty bit where refcounts
//! are delayed. All of it is durable before the guest's bytes are.

use cowl_format::{AutoclearFeatures, Header, HeaderField, HostOffset, IncompatibleFeatures};
use cowl_storage::{IoBuffer, Purpose, Storage};

use crate::flush::Edge;
use crate::open::read_bitmaps;
use crate::sync::atomic::Ordering;
use crate::writer::Writer;
use crate::{Error, Layer};

impl<S: Storage> Layer<S> {
    /// Prepares the image for being changed, once. Fails when it may not be.
    pub(crate) async fn before_change(&self) -> Result<&Writer<S>, Error> {
        let writer = self.writer()?;
        self.metadata().latch().check()?;
        if writer.needs_recovery() {
            self.recover().await?;
        }
        if !writer.first_write.is_initialized() {
            writer.first_write.get_or_try_init(|| self.prepare(writer)).await?;
            // Somebody else's try may have failed while this one waited for its turn.
            self.metadata().latch().check()?;
        }
        Ok(writer)
    }

    async fn prepare(&self, writer: &Writer<S>) -> Result<(), Error> {
        // An earlier try may have been dropped on its way.
        self.settle().await;
        let header = writer.header();
        self.mark_bitmaps(writer, &header).await?;
        let known = header.autoclear.known();
        if known != header.autoclear {
            let field = HeaderField::AutoclearFeatures;
            self.update_header(field, |header| header.autoclear = known).await?;
        }
        let is_marked = header.incompatible.contains(IncompatibleFeatures::DIRTY);
        if writer.is_lazy() && !is_marked && Edge::DirtyBitBeforeDelay.holds() {
            let field = HeaderField::IncompatibleFeatures;
            self.update_header(field, |header| {
                header.incompatible = header.incompatible.union(IncompatibleFeatures::DIRTY);
            })
            .await?;
        }
        Ok(())
    }

    /// Marks every bitmap that records writes as in use: its content is not to be trusted from now
    /// on. The flags of one bitmap lie in one sector, so that no power cut tears them.
    async fn mark_bitmaps(&self, writer: &Writer<S>, header: &Header) -> Result<(), Error> {
        if !header.autoclear.contains(AutoclearFeatures::BITMAPS) {
            return Ok(());
        }
        let directory = read_bitmaps(self.file().as_ref(), header).await?;
        let Some(Ok(extension)) = &header.bitmaps else { return Ok(()) };
        for (at, flags) in directory.marks() {
            let at: HostOffset = extension.directory_offset + at;
            let bytes = IoBuffer::from_slice(&flags);
            writer.is_marking.store(true, Ordering::SeqCst);
            writer.change(self.file().write(at, bytes, Purpose::Bitmap)).await.0?;
        }
        // Also for marks that an earlier try has written, and not made durable.
        if writer.is_marking.load(Ordering::SeqCst) {
            self.barrier_for(Edge::BitmapMarkBeforeWrite).await?;
            writer.is_marking.store(false, Ordering::SeqCst);
        }
        Ok(())
    }
}
