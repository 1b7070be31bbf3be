//! Requests on the device, and what is answered.

use std::rc::Rc;

use cowl_block::{BlockDevice, BlockError, DirtyRun, Extent, ZeroRequest};
use cowl_format::ByteCount;
use cowl_storage::IoBuffer;
use futures_util::future::join_all;

use super::budget::Charge;
use super::connection::Connection;
use super::export::FastZero;
use super::outbox::{Body, Message};
use crate::protocol::command::{Command, Durability, Range};
use crate::protocol::errno::Errno;
use crate::protocol::limits::{CACHE_MAX, SPARSE_HOLE_MIN, SPARSE_READ_MIN};
use crate::protocol::metadata::{Context, Contexts};
use crate::protocol::reply::{Addressee, Position};
use crate::protocol::request::Headers;
use crate::protocol::status::Descriptors;

/// Bytes read at a time for a client that wants something cached.
pub(crate) const CACHE_PIECE: u64 = 1 << 20;

/// Runs of data and holes that one read is cut into; the rest is sent as data.
const RUN_COUNT_MAX: usize = 256;

/// What is asked of the device first when the client asks about more. Extents of tiny clusters
/// would otherwise fill memory; where there are few, the next question is twice as long.
const QUESTION_FIRST: u64 = 64 << 20;

/// What came behind the header of a request.
pub(crate) enum Received {
    Nothing,
    Data(IoBuffer),
    Selection(Contexts, Range),
}

/// Does what a request asks for, and puts the reply on its way.
pub(crate) async fn run<E: BlockDevice + 'static>(
    connection: Rc<Connection<E>>,
    to: Addressee,
    command: Command,
    received: Received,
    charge: Charge,
) {
    let outcome = match (command, received) {
        (Command::Read { range, in_one_piece }, _) => {
            return connection.read(to, range, in_one_piece, charge).await;
        }
        (Command::BlockStatus { first_only, .. }, Received::Selection(contexts, range)) => {
            return connection.status(to, contexts, range, first_only, charge).await;
        }
        (Command::BlockStatus { range, first_only }, _) => {
            let contexts = connection.contexts;
            return connection.status(to, contexts, range, first_only, charge).await;
        }
        (Command::Write { range, durability }, Received::Data(buffer)) => {
            connection.write(range, buffer, durability).await
        }
        (command, _) => connection.change(command).await,
    };
    let head = match outcome {
        Ok(()) => to.done(),
        Err(errno) => to.failed(errno),
    };
    connection.reply(head, Body::Nothing, charge);
}

fn errno_of(error: &BlockError) -> Errno {
    Errno::from_linux(error.errno())
}

/// A run of a read that is data or a hole throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    range: Range,
    is_hole: bool,
}

impl<E: BlockDevice + 'static> Connection<E> {
    async fn read(&self, to: Addressee, range: Range, in_one_piece: bool, charge: Charge) {
        if range.length == 0 {
            return self.reply(to.done(), Body::Nothing, charge);
        }
        let may_be_sparse = to.headers != Headers::Simple && !in_one_piece;
        if may_be_sparse && u64::from(SPARSE_READ_MIN) <= range.length {
            let runs = self.runs(range).await;
            if runs.iter().any(|run| run.is_hole) {
                return self.read_runs(to, &runs, charge).await;
            }
        }
        match self.read_data(range).await {
            Ok(buffer) => {
                let head = to.data(range.at, length_of(range), Position::Last);
                self.reply(head, Body::Buffer(buffer), charge);
            }
            Err(errno) => self.reply(to.failed(errno), Body::Nothing, charge),
        }
    }

    async fn read_data(&self, range: Range) -> Result<IoBuffer, Errno> {
        let buffer = self.pool.take(ByteCount::new(range.length).as_usize());
        let place = self.export.place(range.at);
        match self.export.device.read(place, buffer).await {
            (Ok(()), buffer) => Ok(buffer),
            (Err(error), buffer) => {
                self.pool.put(buffer);
                Err(errno_of(&error))
            }
        }
    }

    /// Reads what is data, all of it at once, and sends a chunk for each run.
    async fn read_runs(&self, to: Addressee, runs: &[Run], charge: Charge) {
        let read = async |run: &Run| match run.is_hole {
            true => Ok(None),
            false => self.read_data(run.range).await.map(Some),
        };
        let parts: Result<Vec<_>, Errno> =
            join_all(runs.iter().map(read)).await.into_iter().collect();
        let parts = match parts {
            Ok(parts) => parts,
            Err(errno) => return self.reply(to.failed(errno), Body::Nothing, charge),
        };
        let last = runs.len() - 1;
        let mut charge = Some(charge);
        for (index, (run, data)) in runs.iter().zip(parts).enumerate() {
            let position = if index == last { Position::Last } else { Position::Earlier };
            let (at, length) = (run.range.at, length_of(run.range));
            let (head, body) = match data {
                Some(buffer) => (to.data(at, length, position), Body::Buffer(buffer)),
                None => (to.hole(at, length, position), Body::Nothing),
            };
            // The last message to leave takes the charge along.
            let charge = if index == last { charge.take() } else { None };
            self.send(Message { head, body, charge });
        }
    }

    /// Where `range` is data and where it is holes. What the device cannot tell is data.
    async fn runs(&self, range: Range) -> Vec<Run> {
        let mut runs = Vec::new();
        let mut done = 0;
        while done < range.length && runs.len() < RUN_COUNT_MAX {
            let rest = Range { at: range.at + done, length: range.length - done };
            let Ok(extents) = self.extents(rest).await else { break };
            for extent in extents {
                let length = extent.length.get().min(range.length - done);
                let is_hole = extent.reads_as_zero() && SPARSE_HOLE_MIN <= length;
                append(&mut runs, Range { at: range.at + done, length }, is_hole);
                done += length;
            }
        }
        if done < range.length {
            append(&mut runs, Range { at: range.at + done, length: range.length - done }, false);
        }
        runs
    }

    /// Extents from the start of `range` on, at least one.
    async fn extents(&self, range: Range) -> Result<Vec<Extent>, Errno> {
        let place = self.export.place(range.at);
        let length = ByteCount::new(range.length);
        match self.export.device.extents(place, length).await {
            Ok(extents) if extents.is_empty() => Err(Errno::Io),
            Ok(extents) => Ok(extents),
            Err(error) => Err(errno_of(&error)),
        }
    }

    async fn status(
        &self,
        to: Addressee,
        contexts: Contexts,
        range: Range,
        first_only: bool,
        charge: Charge,
    ) {
        let lists = match self.describe(contexts, range, first_only).await {
            Ok(lists) => lists,
            Err(errno) => return self.reply(to.failed(errno), Body::Nothing, charge),
        };
        let mut charge = Some(charge);
        let mut lists = lists.iter().peekable();
        while let Some(list) = lists.next() {
            let is_last = lists.peek().is_none();
            let position = if is_last { Position::Last } else { Position::Earlier };
            let bytes = list.encode(to.headers);
            let head = to.status(list.context(), list.count(), bytes.len() as u64, position);
            let charge = if is_last { charge.take() } else { None };
            self.send(Message { head, body: Body::Bytes(bytes), charge });
        }
    }

    async fn describe(
        &self,
        contexts: Contexts,
        range: Range,
        first_only: bool,
    ) -> Result<Vec<Descriptors>, Errno> {
        let is_bitmap = |context: &Context| matches!(context, Context::Bitmap(_));
        let (bitmaps, of_extents): (Vec<_>, Vec<_>) = contexts.iter().partition(is_bitmap);
        let new = |context: &Context| Descriptors::new(*context, first_only);
        let mut lists: Vec<_> = of_extents.iter().map(new).collect();
        let mut done = 0;
        let mut question = QUESTION_FIRST;
        while done < range.length && !lists.iter().all(Descriptors::is_full) {
            let length = question.min(range.length - done);
            let extents = self.extents(Range { at: range.at + done, length }).await?;
            if extents.len() == 1 {
                question = question.saturating_mul(2);
            }
            for extent in &extents {
                let length = extent.length.get().min(range.length - done);
                for list in &mut lists {
                    list.push(extent, length);
                }
                done += length;
            }
        }
        for context in &bitmaps {
            let mut list = new(context);
            self.describe_bitmap(&mut list, range);
            lists.push(list);
        }
        Ok(lists)
    }

    /// A bitmap that has gone since it was selected knows of nothing dirty.
    fn describe_bitmap(&self, list: &mut Descriptors, range: Range) {
        let Context::Bitmap(index) = list.context() else { return };
        let bitmap = self.export.bitmaps.get(usize::from(index)).map(|(_, bitmap)| bitmap);
        let mut done = 0;
        while done < range.length && !list.is_full() {
            let (at, rest) = (self.export.place(range.at + done).get(), range.length - done);
            let clean = DirtyRun { is_dirty: false, length: rest };
            let run = bitmap.map_or(clean, |bitmap| bitmap.run(at, rest));
            list.push_dirty(run);
            done += run.length;
        }
    }

    async fn write(
        &self,
        range: Range,
        buffer: IoBuffer,
        durability: Durability,
    ) -> Result<(), Errno> {
        if buffer.is_empty() {
            return Ok(());
        }
        let place = self.export.place(range.at);
        let (outcome, buffer) = match durability {
            Durability::Later => self.export.device.write(place, buffer).await,
            Durability::Now => self.export.device.write_through(place, buffer).await,
        };
        self.pool.put(buffer);
        outcome.map_err(|error| errno_of(&error))
    }

    /// Requests that send and get no bytes.
    async fn change(&self, command: Command) -> Result<(), Errno> {
        let device = &self.export.device;
        let (outcome, durability) = match command {
            // What cannot change has nothing to flush.
            Command::Flush if self.export.is_read_only() => return Ok(()),
            Command::Flush => (device.flush().await, Durability::Later),
            Command::Cache { range } => return self.cache(range).await,
            Command::Trim { range, durability } => {
                let length = ByteCount::new(range.length);
                (device.discard(self.export.place(range.at), length).await, durability)
            }
            Command::WriteZeroes { only_if_fast: true, .. }
                if self.export.fast_zero == FastZero::Never =>
            {
                return Err(Errno::NotSup);
            }
            Command::WriteZeroes { range, keep_allocated, durability, .. } => {
                let how = match keep_allocated {
                    true => ZeroRequest::KeepAllocated,
                    false => ZeroRequest::MayUnmap,
                };
                let length = ByteCount::new(range.length);
                (device.zero(self.export.place(range.at), length, how).await, durability)
            }
            Command::Read { .. }
            | Command::Write { .. }
            | Command::BlockStatus { .. }
            | Command::Disconnect => return Err(Errno::Inval),
        };
        outcome.map_err(|error| errno_of(&error))?;
        match durability {
            Durability::Later => Ok(()),
            Durability::Now => device.flush().await.map_err(|error| errno_of(&error)),
        }
    }

    async fn cache(&self, range: Range) -> Result<(), Errno> {
        let length = range.length.min(CACHE_MAX);
        let mut done = 0;
        while done < length {
            let piece = Range { at: range.at + done, length: CACHE_PIECE.min(length - done) };
            let buffer = self.read_data(piece).await?;
            self.pool.put(buffer);
            done += piece.length;
        }
        Ok(())
    }
}

/// Adds a run, or lengthens the last one where it is of the same kind.
fn append(runs: &mut Vec<Run>, range: Range, is_hole: bool) {
    match runs.last_mut() {
        Some(last) if last.is_hole == is_hole => last.range.length += range.length,
        _ => runs.push(Run { range, is_hole }),
    }
}

fn length_of(range: Range) -> u32 {
    u32::try_from(range.length).expect("judge() bounds reads by PAYLOAD_MAX")
}
