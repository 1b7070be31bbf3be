//! What a request asks for: bytes of a chain as values.
//!
//! ```text
//!   to read    type u32 | reserved u32 | sector u64 | data of OUT, ranges of DISCARD, WRITE_ZEROES
//!   to write   data of IN, GET_ID | status u8
//! ```
//!
//! How the bytes are cut into descriptors says nothing: the header may lie in several of them, or
//! in one with the data.

use cowl_block::ZeroRequest;
use virtio_bindings::virtio_blk as numbers;

use crate::chain::{self, Chain};
use crate::memory::{Memory, Segment};

/// The unit of offsets and lengths, whatever the block size.
pub(crate) const SECTOR: u64 = 512;

/// Ranges of one DISCARD or WRITE_ZEROES; the configuration tells the guest.
pub(crate) const RANGES_MAX: u32 = 32;

/// Sectors of one range (1 GiB); the configuration tells the guest.
pub(crate) const RANGE_SECTORS_MAX: u32 = 1 << 21;

const HEADER_SIZE: usize = 16;

const RANGE_SIZE: usize = 16;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    pub(crate) fn byte(self) -> u8 {
        let number = match self {
            Self::Ok => numbers::VIRTIO_BLK_S_OK,
            Self::IoError => numbers::VIRTIO_BLK_S_IOERR,
            Self::Unsupported => numbers::VIRTIO_BLK_S_UNSUPP,
        };
        u8::try_from(number).expect("a status is one byte")
    }
}

/// The bytes of a request in the guest's memory. All of them exist.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Data {
    pub(crate) segments: Vec<Segment>,
    pub(crate) length: usize,
}

/// A range to discard or to zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// First byte on the disk.
    pub(crate) at: u64,
    pub(crate) length: u64,
    pub(crate) how: ZeroRequest,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// IN: from byte `at` of the disk into the data.
    Read {
        at: u64,
        data: Data,
    },
    /// OUT.
    Write {
        at: u64,
        data: Data,
    },
    Flush,
    /// GET_ID: the serial number into the data.
    Identify {
        data: Data,
    },
    Discard {
        ranges: Vec<Range>,
    },
    Zero {
        ranges: Vec<Range>,
    },
}

/// A request, or the answer that it gets without more ado.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) command: Result<Command, Status>,
    /// Where the status byte goes; `None`: the request cannot be answered in words.
    pub(crate) status_at: Option<u64>,
}

impl Request {
    pub(crate) fn parse(memory: &Memory, mut chain: Chain) -> Self {
        let status_at = chain.take_status();
        let status_at = status_at.filter(|&at| memory.contains(Segment { at, length: 1 }));
        let command = match status_at {
            Some(_) if !chain.is_malformed => parse(memory, chain),
            _ => Err(Status::IoError),
        };
        Self { command, status_at }
    }
}

fn parse(memory: &Memory, mut chain: Chain) -> Result<Command, Status> {
    let header: [u8; HEADER_SIZE] = chain.take_head(memory).ok_or(Status::IoError)?;
    let [a, b, c, d, _, _, _, _, sector @ ..] = header;
    let number = u32::from_le_bytes([a, b, c, d]);
    let at = u64::from_le_bytes(sector).checked_mul(SECTOR);
    let data = |segments: Vec<Segment>| {
        let length = chain::length_of(memory, &segments).ok_or(Status::IoError)?;
        Ok(Data { segments, length })
    };
    match number {
        numbers::VIRTIO_BLK_T_IN => {
            let data = data(chain.writable)?;
            Ok(Command::Read { at: at_sectors(at, &data)?, data })
        }
        numbers::VIRTIO_BLK_T_OUT => {
            let data = data(chain.readable)?;
            Ok(Command::Write { at: at_sectors(at, &data)?, data })
        }
        numbers::VIRTIO_BLK_T_FLUSH => Ok(Command::Flush),
        numbers::VIRTIO_BLK_T_GET_ID => Ok(Command::Identify { data: data(chain.writable)? }),
        numbers::VIRTIO_BLK_T_DISCARD => {
            let ranges = ranges(memory, &data(chain.readable)?, Unmap::IsReserved)?;
            Ok(Command::Discard { ranges })
        }
        numbers::VIRTIO_BLK_T_WRITE_ZEROES => {
            let ranges = ranges(memory, &data(chain.readable)?, Unmap::IsAllowed)?;
            Ok(Command::Zero { ranges })
        }
        _ => Err(Status::Unsupported),
    }
}

/// Data comes in whole sectors.
fn at_sectors(at: Option<u64>, data: &Data) -> Result<u64, Status> {
    let whole = (data.length as u64).is_multiple_of(SECTOR) && 0 < data.length;
    at.filter(|_| whole).ok_or(Status::IoError)
}

/// What the unmap flag of a range means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unmap {
    IsAllowed,
    IsReserved,
}

fn ranges(memory: &Memory, data: &Data, unmap: Unmap) -> Result<Vec<Range>, Status> {
    let length_max = RANGE_SIZE * RANGES_MAX as usize;
    if data.length == 0 || !data.length.is_multiple_of(RANGE_SIZE) || length_max < data.length {
        return Err(Status::IoError);
    }
    let mut bytes = vec![0; data.length];
    memory.gather(&data.segments, 0, &mut bytes).ok_or(Status::IoError)?;
    let (parts, _) = bytes.as_chunks::<RANGE_SIZE>();
    parts.iter().map(|part| range(*part, unmap)).collect()
}

fn range(bytes: [u8; RANGE_SIZE], unmap: Unmap) -> Result<Range, Status> {
    let [sector @ .., a, b, c, d, e, f, g, h] = bytes;
    let count = u32::from_le_bytes([a, b, c, d]);
    let flags = u32::from_le_bytes([e, f, g, h]);
    let how = match (flags, unmap) {
        (0, _) => ZeroRequest::KeepAllocated,
        (numbers::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, Unmap::IsAllowed) => ZeroRequest::MayUnmap,
        _ => return Err(Status::Unsupported),
    };
    let at = u64::from_le_bytes(sector).checked_mul(SECTOR).ok_or(Status::IoError)?;
    if RANGE_SECTORS_MAX < count {
        return Err(Status::IoError);
    }
    Ok(Range { at, length: u64::from(count) * SECTOR, how })
}
