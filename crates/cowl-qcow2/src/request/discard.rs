//! Discarding: the guest does not need the content any more.
//!
//! Only clusters that lie in the range whole are given up; they read as zeros afterwards. Version 2
//! cannot say so over a backing file, whose content must not come back: there a discard does
//! nothing.

use cowl_block::ZeroRequest;
use cowl_format::{ByteCount, GuestOffset};
use cowl_storage::Storage;

use crate::request::Clear;
use crate::{Error, Image};

impl<S: Storage> Image<S> {
    /// Gives up the content of a range. Durability and dropping as in [`Self::write_from`].
    pub async fn discard(&self, at: GuestOffset, length: ByteCount) -> Result<(), Error> {
        self.check_range(at, length)?;
        self.top().before_change().await?;
        self.top().make_room().await?;
        let _pin = self.pin_range(at, length)?;
        let cluster = self.top().geometry().cluster_size();
        let end = at + length;
        let first = at.get().next_multiple_of(cluster);
        // The last cluster of the disk is whole where the disk ends.
        let last = match end.get() == self.size().get() {
            true => end.get().next_multiple_of(cluster),
            false => end.get() / cluster * cluster,
        };
        if last <= first {
            return Ok(());
        }
        let (first, last) = (GuestOffset::new(first), GuestOffset::new(last));
        if self.top().header().has_raw_data_file() {
            return self.zero_raw(first, last, ZeroRequest::MayUnmap).await;
        }
        self.clear(first, last, Clear::Discard).await
    }
}
