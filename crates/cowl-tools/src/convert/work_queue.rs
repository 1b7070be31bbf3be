//! What is to be copied next, for any number of workers.
//!
//! The queue walks the sources' extents in order and hands out units that hold data. Stretches that
//! read as zeros, or that the target's backing file provides, never reach a worker, however long
//! they are.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cowl::{ByteCount, Extent};

use crate::Progress;
use crate::convert::options::{ConvertError, ConvertOptions, ZeroDetection};
use crate::convert::sink::Sink;
use crate::convert::source::Source;

/// Bytes of a unit, unless a cluster is larger: enough to amortise a system call, little enough to
/// keep all workers busy to the end.
const UNIT_BYTES: u64 = 1 << 20;

/// A unit of work.
pub(super) struct Unit {
    /// The bytes to copy, aligned to the target's clusters except at the end.
    pub(super) range: Range<u64>,
    /// Parts of it that hold something; the rest is zeros, or is left to the backing file.
    pub(super) parts: Vec<Part>,
}

/// A part of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) range: Range<u64>,
    pub(super) kind: PartKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PartKind {
    /// To be read.
    Data,
    /// Known zeros.
    Zero,
    /// Left to the target's backing file.
    Backing,
}

/// The queue.
pub(super) struct WorkQueue<'a> {
    source: &'a Source<'a>,
    sink: &'a Sink,
    only_top_layer: bool,
    write_everything: bool,
    unit: u64,
    rate_max: Option<u64>,
    progress: &'a dyn Progress,
    walk: Mutex<Walk>,
    stopped: AtomicBool,
}

/// How far the walk has come.
struct Walk {
    at: u64,
    ahead: std::collections::VecDeque<Part>,
    started: Instant,
    handed_out: u64,
}

impl<'a> WorkQueue<'a> {
    pub(super) fn new(
        source: &'a Source<'a>,
        sink: &'a Sink,
        options: &ConvertOptions,
        progress: &'a dyn Progress,
    ) -> Self {
        let walk =
            Walk { at: 0, ahead: Default::default(), started: Instant::now(), handed_out: 0 };
        Self {
            source,
            sink,
            only_top_layer: options.only_top_layer,
            write_everything: options.zeros == ZeroDetection::Off,
            unit: UNIT_BYTES.max(sink.alignment()),
            rate_max: options.rate_max,
            progress,
            walk: Mutex::new(walk),
            stopped: AtomicBool::new(false),
        }
    }

    /// Makes every worker end after its unit.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// The next unit; `None` when there is none.
    pub(super) fn next(&self) -> Result<Option<Unit>, ConvertError> {
        let mut walk = self.walk.lock().unwrap_or_else(PoisonError::into_inner);
        if self.stopped.load(Ordering::Relaxed) {
            return Err(ConvertError::Stopped);
        }
        let unit = self.walk_to_data(&mut walk)?;
        if let Some(unit) = &unit {
            self.throttle(&mut walk, unit.range.end - unit.range.start);
        }
        Ok(unit)
    }

    fn walk_to_data(&self, walk: &mut Walk) -> Result<Option<Unit>, ConvertError> {
        while walk.at < self.source.size() {
            let Some(part) = self.peek(walk)? else { return Ok(None) };
            let may_skip = part.kind != PartKind::Data && !self.write_everything;
            if let Some(end) = self.whole_units(&part).filter(|_| may_skip) {
                self.skip(walk.at..end, part.kind)?;
                Self::advance(walk, end);
                continue;
            }
            return self.take_unit(walk).map(Some);
        }
        Ok(None)
    }

    /// End of the units that lie wholly within `part`, from its start on.
    fn whole_units(&self, part: &Part) -> Option<u64> {
        let align = self.sink.alignment();
        let end = match part.range.end == self.source.size() {
            true => part.range.end,
            false => part.range.end / align * align,
        };
        (part.range.start.is_multiple_of(align) && part.range.start < end).then_some(end)
    }

    fn skip(&self, range: Range<u64>, kind: PartKind) -> Result<(), ConvertError> {
        if kind == PartKind::Zero {
            self.sink.zero(range.clone())?;
        }
        self.progress.advance(ByteCount::new(range.end - range.start));
        Ok(())
    }

    fn take_unit(&self, walk: &mut Walk) -> Result<Unit, ConvertError> {
        let start = walk.at;
        let end = (start + self.unit).min(self.source.size());
        let mut parts = Vec::new();
        while walk.at < end {
            let part = self.peek(walk)?.expect("the unit ends within the sources");
            let to = part.range.end.min(end);
            parts.push(Part { range: walk.at..to, kind: part.kind });
            Self::advance(walk, to);
        }
        Ok(Unit { range: start..end, parts })
    }

    /// The part that starts where the walk is.
    fn peek(&self, walk: &mut Walk) -> Result<Option<Part>, ConvertError> {
        if walk.ahead.is_empty() {
            let extents = self
                .source
                .extents(walk.at)
                .map_err(|source| ConvertError::Read { at: walk.at, source })?;
            walk.ahead.extend(extents.iter().map(|extent| self.part(extent)));
            if walk.ahead.is_empty() {
                // The padding behind a disk that is not whole sectors.
                let range = walk.at..self.source.part_end(walk.at);
                walk.ahead.push_back(Part { range, kind: PartKind::Zero });
            }
        }
        Ok(walk.ahead.front().cloned())
    }

    fn advance(walk: &mut Walk, to: u64) {
        walk.at = to;
        while let Some(part) = walk.ahead.front_mut() {
            if to < part.range.end {
                part.range.start = to;
                break;
            }
            walk.ahead.pop_front();
        }
    }

    fn part(&self, extent: &Extent) -> Part {
        let start = extent.start.get();
        // Zeros for want of a layer below are the source's own: nothing says that the target's
        // backing file has them.
        let is_below = 0 < extent.depth;
        let kind = match extent.reads_as_zero() {
            _ if self.only_top_layer && is_below => PartKind::Backing,
            true => PartKind::Zero,
            false => PartKind::Data,
        };
        Part { range: start..start + extent.length.get(), kind }
    }

    /// Waits until the bytes handed out so far are due, and the next ones with them.
    fn throttle(&self, walk: &mut Walk, length: u64) {
        let Some(rate) = self.rate_max.filter(|rate| *rate != 0) else { return };
        if let Some(wait) = due(walk.handed_out, rate).checked_sub(walk.started.elapsed()) {
            std::thread::sleep(wait);
        }
        walk.handed_out += length;
    }
}

/// When a copy at `rate` bytes a second has copied `bytes`.
fn due(bytes: u64, rate: u64) -> Duration {
    let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::due;

    #[test]
    fn bytes_are_due_at_the_rate_whatever_their_number() {
        assert_eq!(due(3 << 20, 1 << 20), Duration::from_secs(3));
        assert_eq!(due(0, 1), Duration::ZERO);
        assert_eq!(due(u64::MAX, 1), Duration::from_nanos(u64::MAX));
    }
}
