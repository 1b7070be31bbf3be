//! Requests on the device.
//!
//! Data stays where the guest has it wherever that pays: a device call takes one buffer, so a
//! request of one piece, or of few large ones, goes to the device as it lies. One of many small
//! pieces is copied, because a call for each would cost more than the copy; so is what is not
//! aligned, and what another request is using at the same time.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cowl_block::{BlockDevice, BlockError};
use cowl_format::{ByteCount, GuestOffset};
use cowl_storage::IoBuffer;
use futures_util::future::join_all;

use crate::bounce::{Bounce, PIECE_MAX};
use crate::export::Served;
use crate::memory::{Memory, Segment, pieces};
use crate::request::{Command, Data, Range, Request, Status};

/// Pieces of one request that are worth a device call each.
const CALLS_MAX: usize = 8;

/// Bytes of a piece that is worth a call of its own.
const CALL_LENGTH_MIN: usize = 64 << 10;

/// Bytes that go to the device in one call. A longer request goes piece by piece: what a device
/// holds for a call may grow with its length.
const CALL_LENGTH_MAX: usize = 8 << 20;

/// Bytes of a serial number.
const IDENTITY_SIZE: usize = 20;

/// What the requests of one queue share.
pub(crate) struct Context<E> {
    pub(crate) served: Arc<Served<E>>,
    pub(crate) memory: Arc<Memory>,
    /// Cleared: a write is durable before it is answered.
    pub(crate) writeback: Arc<AtomicBool>,
    pub(crate) bounce: Rc<Bounce>,
}

/// A request that has ended: what the used ring gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) head: u16,
    /// Bytes that were written to the guest's memory.
    pub(crate) written: u32,
}

/// Carries out a request and writes its status; the used ring is the caller's.
pub(crate) async fn run<E: BlockDevice>(
    context: Rc<Context<E>>,
    head: u16,
    request: Request,
) -> Done {
    let outcome = match request.command {
        Ok(command) => context.carry_out(command).await,
        Err(status) => Err(status),
    };
    let (status, data) = match outcome {
        Ok(length) => (Status::Ok, length),
        Err(status) => (status, 0),
    };
    let told =
        request.status_at.and_then(|at| context.memory.write(at, &[status.byte()])).is_some();
    let written = u32::try_from(data).unwrap_or(u32::MAX - 1) + u32::from(told);
    Done { head, written }
}

fn failed(error: BlockError) -> Status {
    match error {
        BlockError::Unsupported { .. } => Status::Unsupported,
        _ => Status::IoError,
    }
}

impl<E: BlockDevice> Context<E> {
    /// Returns how many bytes of data the guest got.
    async fn carry_out(&self, command: Command) -> Result<usize, Status> {
        match command {
            Command::Read { at, data } => {
                self.read(at, &data).await?;
                Ok(data.length)
            }
            Command::Identify { data } => self.identify(&data),
            // What cannot change has nothing to flush.
            Command::Flush if self.served.is_read_only() => Ok(0),
            Command::Flush => self.flush().await,
            _ if self.served.is_read_only() => Err(Status::IoError),
            Command::Write { at, data } => {
                self.write(at, &data).await?;
                self.outlive().await
            }
            Command::Discard { ranges } => {
                let discard = async |range: &Range| {
                    let length = ByteCount::new(range.length);
                    self.device().discard(GuestOffset::new(range.at), length).await
                };
                self.change(&ranges, discard).await?;
                self.outlive().await
            }
            Command::Zero { ranges } => {
                let zero = async |range: &Range| {
                    let length = ByteCount::new(range.length);
                    self.device().zero(GuestOffset::new(range.at), length, range.how).await
                };
                self.change(&ranges, zero).await?;
                self.outlive().await
            }
        }
    }

    fn device(&self) -> &E {
        &self.served.export.device
    }

    fn is_write_through(&self) -> bool {
        !self.writeback.load(Ordering::Relaxed)
    }

    /// A guest does not notice that its server died and another one took over, so what it was told
    /// is done may not die with this process.
    async fn outlive(&self) -> Result<usize, Status> {
        if !self.is_write_through() {
            self.device().persist().await.map_err(failed)?;
        }
        Ok(0)
    }

    async fn flush(&self) -> Result<usize, Status> {
        self.device().flush().await.map_err(failed)?;
        Ok(0)
    }

    async fn change(
        &self,
        ranges: &[Range],
        change: impl AsyncFn(&Range) -> Result<(), BlockError>,
    ) -> Result<usize, Status> {
        let size = self.device().size().get();
        let fits = |range: &Range| range.at <= size && range.length <= size - range.at;
        if !ranges.iter().all(fits) {
            return Err(Status::IoError);
        }
        for range in ranges.iter().filter(|range| 0 < range.length) {
            change(range).await.map_err(failed)?;
        }
        match self.is_write_through() {
            true => self.flush().await,
            false => Ok(0),
        }
    }

    fn identify(&self, data: &Data) -> Result<usize, Status> {
        let mut bytes = [0; IDENTITY_SIZE];
        let serial = self.served.export.serial.as_bytes();
        let length = serial.len().min(IDENTITY_SIZE);
        bytes[..length].copy_from_slice(&serial[..length]);
        let length = data.length.min(IDENTITY_SIZE);
        let told = self.memory.scatter(&data.segments, 0, &bytes[..length]);
        told.map(|()| length).ok_or(Status::IoError)
    }

    async fn read(&self, at: u64, data: &Data) -> Result<(), Status> {
        self.check_range(at, data.length)?;
        let segments = data.segments.as_slice();
        if CALL_LENGTH_MAX < data.length {
            return self.read_copying(at, data).await;
        }
        if let [segment] = segments
            && let Some(buffer) = self.memory.claim(*segment)
        {
            return self.read_piece(at, *segment, buffer).await;
        }
        if !are_worth_calls(segments) {
            return self.read_copying(at, data).await;
        }
        let piece = async |(at, segment): (u64, Segment)| match self.memory.claim(segment) {
            Some(buffer) => self.read_piece(at, segment, buffer).await,
            None => {
                let data = Data { segments: vec![segment], length: segment.length };
                self.read_copying(at, &data).await
            }
        };
        all(join_all(placed(at, segments).map(piece)).await)
    }

    /// Reads into the guest's memory.
    async fn read_piece(&self, at: u64, to: Segment, buffer: IoBuffer) -> Result<(), Status> {
        let (result, buffer) = self.device().read(GuestOffset::new(at), buffer).await;
        result.map_err(failed)?;
        match buffer.is_shared() {
            true => Ok(()),
            // The device gave another buffer back than it got.
            false => self.memory.write(to.at, &buffer).ok_or(Status::IoError),
        }
    }

    async fn read_copying(&self, at: u64, data: &Data) -> Result<(), Status> {
        let mut done = 0;
        while done < data.length {
            let buffer = self.bounce.take(PIECE_MAX.min(data.length - done)).await;
            let place = GuestOffset::new(at + done as u64);
            let (result, buffer) = self.device().read(place, buffer).await;
            let result = match result {
                Ok(()) => self.memory.scatter(&data.segments, done, &buffer),
                Err(error) => {
                    self.bounce.put(buffer);
                    return Err(failed(error));
                }
            };
            done += buffer.len();
            self.bounce.put(buffer);
            result.ok_or(Status::IoError)?;
        }
        Ok(())
    }

    async fn write(&self, at: u64, data: &Data) -> Result<(), Status> {
        self.check_range(at, data.length)?;
        let segments = data.segments.as_slice();
        let in_place = data.length <= CALL_LENGTH_MAX;
        if let [segment] = segments
            && in_place
            && let Some(buffer) = self.memory.claim(*segment)
        {
            return self.write_whole(GuestOffset::new(at), buffer).await;
        }
        if in_place && are_worth_calls(segments) {
            let piece = async |(at, segment): (u64, Segment)| match self.memory.claim(segment) {
                Some(buffer) => {
                    self.device().write(GuestOffset::new(at), buffer).await.0.map_err(failed)
                }
                None => {
                    let data = Data { segments: vec![segment], length: segment.length };
                    self.write_copying(at, &data).await
                }
            };
            all(join_all(placed(at, segments).map(piece)).await)?;
        } else {
            self.write_copying(at, data).await?;
        }
        // Once for all pieces.
        match self.is_write_through() {
            true => self.flush().await.map(|_| ()),
            false => Ok(()),
        }
    }

    /// Writes what is a request of its own.
    async fn write_whole(&self, at: GuestOffset, buffer: IoBuffer) -> Result<(), Status> {
        let (result, _buffer) = match self.is_write_through() {
            true => self.device().write_through(at, buffer).await,
            false => self.device().write(at, buffer).await,
        };
        result.map_err(failed)
    }

    async fn write_copying(&self, at: u64, data: &Data) -> Result<(), Status> {
        let mut done = 0;
        while done < data.length {
            let mut buffer = self.bounce.take(PIECE_MAX.min(data.length - done)).await;
            if self.memory.gather(&data.segments, done, &mut buffer).is_none() {
                self.bounce.put(buffer);
                return Err(Status::IoError);
            }
            let place = GuestOffset::new(at + done as u64);
            done += buffer.len();
            let (result, buffer) = self.device().write(place, buffer).await;
            self.bounce.put(buffer);
            result.map_err(failed)?;
        }
        Ok(())
    }

    /// A request past the end fails as a whole, also where it is carried out in pieces.
    fn check_range(&self, at: u64, length: usize) -> Result<(), Status> {
        let size = self.device().size().get();
        match at <= size && length as u64 <= size - at {
            true => Ok(()),
            false => Err(Status::IoError),
        }
    }
}

fn are_worth_calls(segments: &[Segment]) -> bool {
    segments.len() <= CALLS_MAX && segments.iter().all(|part| CALL_LENGTH_MIN <= part.length)
}

/// Each segment with its place on the disk, for data that starts at `at`.
fn placed(at: u64, segments: &[Segment]) -> impl Iterator<Item = (u64, Segment)> {
    let mut at = at;
    pieces(segments, 0, usize::MAX).map(move |segment| {
        let place = at;
        at += segment.length as u64;
        (place, segment)
    })
}

fn all(results: Vec<Result<(), Status>>) -> Result<(), Status> {
    results.into_iter().collect()
}
