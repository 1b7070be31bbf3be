//! What a file should hold: its bytes in memory, and random operations on both.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use cowl_testkit::Random;
use rustix::fs::{FallocateFlags, SeekFrom};

/// Largest operation.
const LENGTH_MAX: u64 = 300_000;

/// A file and what it should hold.
pub(crate) struct Model {
    file: File,
    bytes: Vec<u8>,
    random: Random,
    /// What offsets and lengths are multiples of.
    unit: u64,
}

impl Model {
    /// `file` reads as zeros.
    pub(crate) fn new(file: File, size: u64, unit: u64, seed: u64) -> Self {
        let bytes = vec![0; size as usize];
        Self { file, bytes, random: Random::new(seed), unit }
    }

    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// A range in the file, often near its end.
    fn range(&mut self) -> (u64, u64) {
        let units = self.size() / self.unit;
        let at = match self.random.below(8) {
            0 => units.saturating_sub(self.random.below(20)),
            _ => self.random.below(units + 1),
        };
        let longest = if self.random.below(2) == 0 { 5000 } else { LENGTH_MAX };
        let length = self.random.below(longest / self.unit + 1).min(units - at);
        (at * self.unit, length * self.unit)
    }

    fn part(&mut self, at: u64, length: u64) -> &mut [u8] {
        &mut self.bytes[at as usize..(at + length) as usize]
    }

    /// One operation, of any kind that leaves the size alone.
    pub(crate) fn step(&mut self) {
        let (at, length) = self.range();
        match self.random.below(10) {
            0..=2 => self.read(at, length),
            3..=5 => self.write(at, length),
            6 => self.zero(at, length, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE),
            7 => self.zero(at, length, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE),
            8 => self.seek(at),
            _ => self.file.sync_data().unwrap(),
        }
    }

    /// One operation that changes the size, of a file that can have any number of sectors.
    pub(crate) fn resize_step(&mut self, size_max: u64) {
        let size = self.random.below(size_max / 512) * 512;
        match self.random.below(3) {
            0 => self.file.set_len(size).unwrap(),
            1 if size < self.size() => self.file.set_len(size).unwrap(),
            1 => {
                let at = self.size();
                let all = size - at;
                if all != 0 {
                    rustix::fs::fallocate(&self.file, FallocateFlags::ZERO_RANGE, at, all).unwrap();
                }
            }
            _ => {
                let length = self.random.below(100) * 512 + 512;
                self.bytes.resize(self.bytes.len().max((size + length) as usize), 0);
                return self.write(size, length);
            }
        }
        self.bytes.resize(size as usize, 0);
        assert_eq!(self.file.metadata().unwrap().len(), size);
    }

    fn read(&mut self, at: u64, length: u64) {
        let mut buffer = aligned(length as usize, 0xAA);
        self.file.read_exact_at(buffer.bytes(), at).unwrap();
        let expected = self.part(at, length);
        if let Some(first) = buffer.bytes().iter().zip(&*expected).position(|(a, b)| a != b) {
            panic!("byte {} of a read of {length} at {at} differs", at + first as u64);
        }
    }

    fn write(&mut self, at: u64, length: u64) {
        let value = self.random.below(255) as u8 + 1;
        let mut buffer = aligned(length as usize, value);
        self.file.write_all_at(buffer.bytes(), at).unwrap();
        self.part(at, length).fill(value);
    }

    fn zero(&mut self, at: u64, length: u64, how: FallocateFlags) {
        let result = rustix::fs::fallocate(&self.file, how, at, length);
        match length {
            0 => assert_eq!(result, Err(rustix::io::Errno::INVAL)),
            _ => assert_eq!(result, Ok(())),
        }
        self.part(at, length).fill(0);
    }

    /// What is told to be a hole reads as zeros.
    fn seek(&mut self, at: u64) {
        // What was not written back yet is data to the page cache and news to the server.
        self.file.sync_data().unwrap();
        let seek = |from| rustix::fs::seek(&self.file, from);
        if self.size() <= at {
            assert_eq!(seek(SeekFrom::Data(at)), Err(rustix::io::Errno::NXIO));
            assert_eq!(seek(SeekFrom::Hole(at)), Err(rustix::io::Errno::NXIO));
            return;
        }
        let data = match seek(SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(errno) => {
                assert_eq!(errno, rustix::io::Errno::NXIO);
                self.size()
            }
        };
        assert!(at <= data && data <= self.size());
        assert!(self.part(at, data - at).iter().all(|byte| *byte == 0), "data in {at}..{data}");
        if data < self.size() {
            let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(data)).unwrap();
            assert!(data < hole && hole <= self.size());
        }
    }

    /// All of the file is as it should be.
    pub(crate) fn check(&mut self) {
        assert_eq!(self.file.metadata().unwrap().len(), self.size());
        let mut at = 0;
        while at < self.size() {
            let length = (1 << 20).min(self.size() - at);
            self.read(at, length);
            at += length;
        }
    }

    /// Reads the same from another place.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Memory for `O_DIRECT`.
pub(crate) struct Aligned {
    memory: cowl_storage::IoBuffer,
}

pub(crate) fn aligned(length: usize, value: u8) -> Aligned {
    let mut memory = cowl_storage::IoBuffer::zeroed(length);
    memory.fill(value);
    Aligned { memory }
}

impl Aligned {
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory
    }
}

/// Opens `path` past the page cache.
pub(crate) fn open_direct(path: &std::path::Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    File::options().read(true).write(true).custom_flags(flags).open(path)
}
