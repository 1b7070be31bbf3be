//! The first request: version, limits and what both sides can do.
//!
//! ```text
//!   request   major 4 | minor 4 | readahead 4 | flags 4 | flags2 4 | unused 44
//!   answer    major 4 | minor 4 | readahead 4 | flags 4 | background 2 | congestion 2 |
//!             write_max 4 | time_gran 4 | pages_max 2 | map_alignment 2 | flags2 4 | unused 28
//! ```

use super::wire::{Fields, Malformed, Message};

/// The version that is spoken here. Its minor number is the one that brought [`Flags`] of 64 bits;
/// newer kernels fall back to it.
const MAJOR: u32 = 7;
const MINOR: u32 = 36;

/// The oldest minor version whose messages all have the layouts of `request` and `reply`.
pub const MINOR_MIN: u32 = 31;

/// Bytes of the answer.
const ANSWER_LENGTH: usize = 64;

/// Bytes of a page, the unit of `pages_max`; larger pages only make the limit larger.
const PAGE: u32 = 4096;

/// What a side can do, as one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(pub u64);

impl Flags {
    /// Reads of one file may overlap.
    pub const ASYNC_READ: Self = Self(1 << 0);
    /// Opening carries `O_TRUNC`, so that a device of fixed size can do without.
    pub const ATOMIC_O_TRUNC: Self = Self(1 << 3);
    /// Writes may be larger than a page.
    pub const BIG_WRITES: Self = Self(1 << 5);
    /// Direct I/O may have many requests under way.
    pub const ASYNC_DIO: Self = Self(1 << 15);
    /// Look-ups in one directory may overlap.
    pub const PARALLEL_DIROPS: Self = Self(1 << 18);
    /// `pages_max` counts.
    pub const MAX_PAGES: Self = Self(1 << 22);
    /// There are more than 32 flags.
    pub const INIT_EXT: Self = Self(1 << 30);
    /// Files that bypass the page cache can be mapped as shared memory.
    pub const DIRECT_IO_ALLOW_MMAP: Self = Self(1 << 36);

    /// What is used here where the kernel has it.
    pub const WANTED: Self = Self(
        Self::ASYNC_READ.0
            | Self::ATOMIC_O_TRUNC.0
            | Self::BIG_WRITES.0
            | Self::ASYNC_DIO.0
            | Self::PARALLEL_DIROPS.0
            | Self::MAX_PAGES.0
            | Self::INIT_EXT.0
            | Self::DIRECT_IO_ALLOW_MMAP.0,
    );

    /// Whether all of `other` are among these.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What the kernel says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Init {
    /// Major version.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
    /// Bytes that it would read ahead.
    pub readahead_max: u32,
    /// What it can do.
    pub flags: Flags,
}

impl Init {
    /// Reads the arguments of the request.
    pub fn decode(arguments: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new(arguments);
        let (major, minor) = (fields.u32()?, fields.u32()?);
        let readahead_max = fields.u32()?;
        let low = Flags(u64::from(fields.u32()?));
        // Before there were more than 32 flags the message ended here.
        let high = match low.contains(Flags::INIT_EXT) {
            true => u64::from(fields.u32()?),
            false => 0,
        };
        Ok(Self { major, minor, readahead_max, flags: Flags(low.0 | high << 32) })
    }
}

/// What the server wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Bytes of the largest read and write.
    pub request_max: u32,
    /// Requests that may wait for an answer without anybody waiting for them.
    pub background_max: u16,
}

/// What both agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Bytes of the largest write.
    pub write_max: u32,
    /// What both can do.
    pub flags: Flags,
}

/// Answers `init`: the arguments of the reply, and what holds from now on.
///
/// A kernel that is too old gets no answer here.
#[must_use]
pub fn answer(init: &Init, terms: Terms) -> Option<(Vec<u8>, Agreed)> {
    if init.major != MAJOR || init.minor < MINOR_MIN {
        return None;
    }
    let flags = Flags(init.flags.0 & Flags::WANTED.0);
    let pages_max = match flags.contains(Flags::MAX_PAGES) {
        true => u16::try_from(terms.request_max.div_ceil(PAGE)).unwrap_or(u16::MAX),
        // What kernels without the flag take.
        false => 32,
    };
    let write_max = terms.request_max.min(u32::from(pages_max) * PAGE);
    let congested_at = terms.background_max - terms.background_max / 4;
    let answer = Message::default()
        .u32(MAJOR)
        .u32(MINOR)
        .u32(init.readahead_max.max(write_max))
        .u32(low(flags))
        .u16(terms.background_max)
        .u16(congested_at)
        .u32(write_max)
        .u32(1)
        .u16(pages_max)
        .u16(0)
        .u32(low(Flags(flags.0 >> 32)))
        .zeros(28);
    Some((answer.finish(ANSWER_LENGTH), Agreed { write_max, flags }))
}

fn low(flags: Flags) -> u32 {
    u32::try_from(flags.0 & u64::from(u32::MAX)).expect("masked to 32 bits")
}

#[cfg(test)]
mod tests {
    use super::{Agreed, Flags, Init, Terms, answer};

    const TERMS: Terms = Terms { request_max: 1 << 20, background_max: 100 };

    fn init(minor: u32, flags: u64) -> Init {
        Init { major: 7, minor, readahead_max: 1 << 17, flags: Flags(flags) }
    }

    #[test]
    fn only_what_both_can_do_is_agreed_on() {
        let (bytes, agreed) = answer(&init(45, u64::MAX), TERMS).unwrap();
        assert_eq!(agreed, Agreed { write_max: 1 << 20, flags: Flags::WANTED });
        assert_eq!(bytes[20..24], (1_u32 << 20).to_ne_bytes());
        assert_eq!(bytes[28..30], 256_u16.to_ne_bytes());
        assert_eq!(bytes[32..36], (1_u32 << 4).to_ne_bytes());
        let (_, agreed) = answer(&init(31, Flags::ASYNC_READ.0), TERMS).unwrap();
        assert_eq!(agreed, Agreed { write_max: 128 << 10, flags: Flags::ASYNC_READ });
    }

    #[test]
    fn old_kernels_get_no_answer() {
        assert_eq!(answer(&init(30, 0), TERMS), None);
        assert_eq!(answer(&Init { major: 8, ..init(45, 0) }, TERMS), None);
    }

    #[test]
    fn the_second_word_of_flags_is_read_where_it_is_announced() {
        let bytes = |flags: u32| {
            [7_u32, 45, 0, flags, 1 << 4].iter().flat_map(|n| n.to_ne_bytes()).collect::<Vec<_>>()
        };
        let announced = Init::decode(&bytes(1 << 30)).unwrap();
        assert!(announced.flags.contains(Flags::DIRECT_IO_ALLOW_MMAP));
        assert_eq!(Init::decode(&bytes(1)).unwrap().flags, Flags::ASYNC_READ);
        assert!(Init::decode(&bytes(1 << 30)[..16]).is_err());
        assert!(Init::decode(&bytes(1)[..16]).is_ok());
    }
}
