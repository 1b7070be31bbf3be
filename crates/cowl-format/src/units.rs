//! Numbers with a unit.
//!
//! A guest offset and a host offset are both 64-bit byte counts, and mixing them up is the classic
//! way to destroy an image. Each is a type of its own here; only [`Geometry`](crate::Geometry)
//! converts between offsets, clusters and table indices.
//!
//! Not here: any knowledge of the cluster size.

use core::fmt;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name($inner);

        impl $name {
            /// Zero of this unit.
            pub const ZERO: Self = Self(0);

            /// Wraps a bare number.
            #[must_use]
            pub const fn new(value: $inner) -> Self {
                Self(value)
            }

            /// The bare number.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

unit! {
    /// A byte offset in the virtual disk, as the guest sees it.
    GuestOffset(u64)
}
unit! {
    /// A byte offset in a host file (the image file or its external data file).
    HostOffset(u64)
}
unit! {
    /// A number of bytes.
    ByteCount(u64)
}
unit! {
    /// Index of a guest cluster: guest offset divided by the cluster size.
    GuestCluster(u64)
}
unit! {
    /// Index of a host cluster: host offset divided by the cluster size.
    HostCluster(u64)
}
unit! {
    /// Index of an entry in an L1 table.
    L1Index(u32)
}
unit! {
    /// Index of an entry in an L2 table.
    L2Index(u32)
}
unit! {
    /// Index of an entry in the refcount table.
    RefcountTableIndex(u32)
}
unit! {
    /// Index of an entry in a refcount block.
    RefcountBlockIndex(u32)
}

macro_rules! offset {
    ($name:ident) => {
        impl $name {
            /// This offset moved up by `count`, or `None` when it leaves 64 bits.
            #[must_use]
            pub const fn checked_add(self, count: ByteCount) -> Option<Self> {
                match self.0.checked_add(count.0) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// Bytes from `start` up to this offset. Panics when `start` lies behind it: a caller's
            /// mistake.
            #[must_use]
            pub const fn since(self, start: Self) -> ByteCount {
                assert!(start.0 <= self.0, "offset lies before its start");
                ByteCount(self.0 - start.0)
            }

            /// Whether the offset is a multiple of `alignment`, a power of two.
            #[must_use]
            pub const fn is_aligned_to(self, alignment: u64) -> bool {
                assert!(alignment.is_power_of_two());
                self.0 & (alignment - 1) == 0
            }
        }

        impl core::ops::Add<ByteCount> for $name {
            type Output = Self;

            /// Panics on overflow; use [`Self::checked_add`] for numbers from outside.
            fn add(self, count: ByteCount) -> Self {
                self.checked_add(count).expect("offset stays within 64 bits")
            }
        }
    };
}

offset!(GuestOffset);
offset!(HostOffset);

impl ByteCount {
    /// The sum, or `None` when it leaves 64 bits.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The smaller of two counts.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Ord::min(self, other)
    }

    /// As a length of memory. Panics where `usize` is too small, which no supported target is.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).expect("64-bit target")
    }

    /// Wraps a length of memory.
    #[must_use]
    pub const fn from_usize(length: usize) -> Self {
        Self(length as u64)
    }
}

impl core::ops::Add for ByteCount {
    type Output = Self;

    /// Panics on overflow; use [`Self::checked_add`] for numbers from outside.
    fn add(self, other: Self) -> Self {
        self.checked_add(other).expect("byte count stays within 64 bits")
    }
}

impl core::ops::Sub for ByteCount {
    type Output = Self;

    /// Panics when `other` is larger.
    fn sub(self, other: Self) -> Self {
        Self(self.0.checked_sub(other.0).expect("byte count stays positive"))
    }
}

#[cfg(test)]
mod tests {
    use super::{ByteCount, GuestOffset, HostOffset};

    #[test]
    fn adding_bytes_to_an_offset_keeps_the_unit() {
        assert_eq!(GuestOffset::new(512) + ByteCount::new(512), GuestOffset::new(1024));
        assert_eq!(HostOffset::new(u64::MAX).checked_add(ByteCount::new(1)), None);
    }

    #[test]
    fn distance_between_offsets_is_a_byte_count() {
        assert_eq!(HostOffset::new(7).since(HostOffset::new(3)), ByteCount::new(4));
    }

    #[test]
    fn debug_names_the_unit() {
        assert_eq!(format!("{:?}", HostOffset::new(0x10000)), "HostOffset(0x10000)");
    }
}
