//! Reads, writes and flushes.

use std::sync::atomic::Ordering;

use cowl_block::BlockDevice;
use cowl_format::GuestOffset;
use cowl_storage::IoBuffer;

use super::execute::{Answer, Errno};
use super::worker::Worker;
use super::{Access, Sizing};
use crate::protocol::reply;

impl<E: BlockDevice + 'static> Worker<E> {
    /// Reads what there is: a file ends where it ends.
    pub(super) async fn read(&self, at: u64, length: u32) -> Result<Answer, Errno> {
        let shared = &self.shared;
        let _same_size = shared.keep_size().await;
        let rest = shared.size().saturating_sub(at).min(u64::from(length));
        // The kernel asks for no more than it agreed to take.
        let length = usize::try_from(rest.min(u64::from(shared.agreed.write_max)));
        let length = length.map_err(|_| Errno::INVAL)?;
        if length == 0 {
            return Ok(Answer::DONE);
        }
        let buffer = self.pool.take(length);
        match shared.export.device.read(GuestOffset::new(at), buffer).await {
            (Ok(()), buffer) => {
                shared.counters.bytes_read.fetch_add(rest, Ordering::Relaxed);
                Ok(Answer::Data(buffer))
            }
            (Err(error), buffer) => {
                self.pool.put(buffer);
                Err(error.into())
            }
        }
    }

    /// Writes all of `payload`, or what fits on a device of fixed size.
    pub(super) async fn write(&self, at: u64, mut payload: IoBuffer) -> Result<Answer, Errno> {
        let shared = &self.shared;
        if shared.export.access == Access::ReadOnly {
            return Err(Errno::ROFS);
        }
        let end = at.checked_add(payload.len() as u64).ok_or(Errno::FBIG)?;
        let same_size = match shared.export.sizing {
            Sizing::Growable => shared.grow_to(end).await?,
            Sizing::Fixed => None,
        };
        let room = shared.size().saturating_sub(at);
        if room < payload.len() as u64 {
            payload.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        }
        if payload.is_empty() {
            return if at == end {
                Ok(Answer::Bytes(reply::written(0)))
            } else {
                Err(Errno::NOSPC)
            };
        }
        let length = u32::try_from(payload.len()).map_err(|_| Errno::INVAL)?;
        let device = &shared.export.device;
        let (result, payload) = device.write(GuestOffset::new(at), payload).await;
        drop(same_size);
        self.pool.put(payload);
        result?;
        shared.ownership.modify();
        shared.counters.bytes_written.fetch_add(u64::from(length), Ordering::Relaxed);
        Ok(Answer::Bytes(reply::written(length)))
    }

    /// Makes everything durable that was answered before.
    pub(super) async fn flush(&self) -> Result<Answer, Errno> {
        // What cannot change has nothing to flush.
        if self.shared.export.access == Access::ReadWrite {
            self.shared.export.device.flush().await?;
        }
        Ok(Answer::DONE)
    }
}
