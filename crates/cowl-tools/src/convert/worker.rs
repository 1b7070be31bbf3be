//! One thread of a copy: takes units, reads them, and stores what is not zero.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use cowl_qcow2::Compressor;
use cowl_storage::IoBuffer;

use crate::Progress;
use crate::convert::options::{ConvertError, ConvertOptions, Salvaged};
use crate::convert::sink::{Chunk, Sink};
use crate::convert::source::Source;
use crate::convert::work_queue::{PartKind, Unit, WorkQueue};

/// The smallest piece that is tried on its own when a larger one cannot be read.
const SECTOR: usize = 512;

pub(super) struct Worker<'a> {
    source: &'a Source<'a>,
    sink: &'a Sink,
    options: &'a ConvertOptions,
    salvaged: &'a Mutex<Vec<Salvaged>>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        source: &'a Source<'a>,
        sink: &'a Sink,
        options: &'a ConvertOptions,
        salvaged: &'a Mutex<Vec<Salvaged>>,
    ) -> Self {
        Self { source, sink, options, salvaged }
    }

    /// Works until the queue is empty. An error stops the other workers too.
    pub(super) fn run(
        &self,
        queue: &WorkQueue<'_>,
        progress: &dyn Progress,
    ) -> Result<(), ConvertError> {
        let result = self.work(queue, progress);
        if result.is_err() {
            queue.stop();
        }
        match result {
            // The worker that failed first reports.
            Err(ConvertError::Stopped) => Ok(()),
            other => other,
        }
    }

    fn work(&self, queue: &WorkQueue<'_>, progress: &dyn Progress) -> Result<(), ConvertError> {
        let mut compressor = match (self.options.compress, self.sink.compression_type()) {
            (true, Some(kind)) => Some(Compressor::new(kind).map_err(ConvertError::Compressor)?),
            _ => None,
        };
        while let Some(unit) = queue.next()? {
            let length = unit.range.end - unit.range.start;
            self.copy(unit, compressor.as_mut())?;
            progress.advance(cowl::ByteCount::new(length));
        }
        Ok(())
    }

    fn copy(&self, unit: Unit, compressor: Option<&mut Compressor>) -> Result<(), ConvertError> {
        if self.options.copy_range && self.copy_by_host(&unit)? {
            return Ok(());
        }
        let length = usize::try_from(unit.range.end - unit.range.start).expect("a few megabytes");
        let mut buffer = IoBuffer::zeroed(length);
        let offset = |at: u64| usize::try_from(at - unit.range.start).expect("within the unit");
        let mut left_out: Vec<Range<u64>> = Vec::new();
        for part in &unit.parts {
            let place = offset(part.range.start)..offset(part.range.end);
            match part.kind {
                PartKind::Data => self.read(part.range.start, &mut buffer[place])?,
                PartKind::Zero => {}
                PartKind::Backing => match left_out.last_mut() {
                    Some(last) if last.end == part.range.start => last.end = part.range.end,
                    _ => left_out.push(part.range.clone()),
                },
            }
        }
        // A cluster that the source's top layer has only in part is copied whole, as it reads.
        if !left_out.is_empty() {
            self.read(unit.range.start, &mut buffer)?;
        }
        let chunk = Chunk { at: unit.range.start, buffer, left_out };
        self.sink.store(chunk, self.options, compressor)
    }

    /// Whether the host copied the unit from file to file.
    fn copy_by_host(&self, unit: &Unit) -> Result<bool, ConvertError> {
        let is_data = unit.parts.iter().all(|part| part.kind == PartKind::Data);
        match self.source.single(&unit.range) {
            Some((disk, at)) if is_data => self.sink.copy_from(disk, at, unit.range.clone()),
            _ => Ok(false),
        }
    }

    fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), ConvertError> {
        match self.source.read(at, buffer) {
            Ok(()) => Ok(()),
            Err(_) if self.options.salvage => {
                self.salvage(at, buffer);
                Ok(())
            }
            Err(source) => Err(ConvertError::Read { at, source }),
        }
    }

    /// Reads sector by sector; what cannot be read is zeros, and reported.
    fn salvage(&self, at: u64, buffer: &mut [u8]) {
        for (sector, index) in buffer.chunks_mut(SECTOR).zip(0_u64..) {
            let at = at + index * SECTOR as u64;
            if let Err(error) = self.source.read(at, sector) {
                sector.fill(0);
                self.report(at, sector.len() as u64, error.to_string());
            }
        }
    }

    fn report(&self, at: u64, length: u64, reason: String) {
        let mut salvaged = self.salvaged.lock().unwrap_or_else(PoisonError::into_inner);
        match salvaged.last_mut() {
            Some(last) if last.at + last.length == at && last.reason == reason => {
                last.length += length;
            }
            _ => salvaged.push(Salvaged { at, length, reason }),
        }
    }
}
