//! Feature bits of the version 3 header, and the table that names them.
//!
//! A feature is of one of three classes, by what software that does not know it must do:
//!
//! | class        | unknown bit                                  |
//! |--------------|----------------------------------------------|
//! | incompatible | refuse the image                             |
//! | compatible   | ignore it and keep it                        |
//! | autoclear    | clear it before the first write              |

use crate::bytes::array;

macro_rules! features {
    ($(#[$doc:meta])* $name:ident { $($(#[$bit_doc:meta])* $constant:ident = $bit:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
        pub struct $name(u64);

        impl $name {
            $($(#[$bit_doc])* pub const $constant: Self = Self(1 << $bit);)*

            /// No bit set.
            pub const NONE: Self = Self(0);

            const KNOWN: u64 = 0 $(| 1 << $bit)*;

            /// The bits as the header stores them.
            #[must_use]
            pub const fn bits(self) -> u64 {
                self.0
            }

            /// Wraps the header's field, unknown bits included.
            #[must_use]
            pub const fn from_bits(bits: u64) -> Self {
                Self(bits)
            }

            /// Whether all bits of `other` are set.
            #[must_use]
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// The bits of both.
            #[must_use]
            pub const fn union(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// The bits of `self` that are not in `other`.
            #[must_use]
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }

            /// The bits this version of cowl knows.
            #[must_use]
            pub const fn known(self) -> Self {
                Self(self.0 & Self::KNOWN)
            }

            /// The bits this version of cowl does not know.
            #[must_use]
            pub const fn unknown(self) -> u64 {
                self.0 & !Self::KNOWN
            }
        }
    };
}

features! {
    /// Features that software must know to open the image.
    IncompatibleFeatures {
        /// Refcounts may be stale: they have to be rebuilt before a write.
        DIRTY = 0,
        /// The metadata is known to be damaged: no writes before a repair.
        CORRUPT = 1,
        /// Guest data lives in a separate file.
        DATA_FILE = 2,
        /// The compression type field is present and not zero.
        COMPRESSION_TYPE = 3,
        /// L2 entries have a subcluster bitmap.
        EXTENDED_L2 = 4,
    }
}

features! {
    /// Features that software may ignore.
    CompatibleFeatures {
        /// Refcount updates may be postponed while the dirty bit is set.
        LAZY_REFCOUNTS = 0,
    }
}

features! {
    /// Features that a writer must clear when it does not know them.
    AutoclearFeatures {
        /// The bitmaps extension is consistent.
        BITMAPS = 0,
        /// The external data file can be read on its own as a raw image.
        RAW_DATA_FILE = 1,
    }
}

/// Which of the three header fields a feature bit belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureClass {
    /// Unknown bits refuse the image.
    Incompatible,
    /// Unknown bits are ignored.
    Compatible,
    /// Unknown bits are cleared before a write.
    Autoclear,
}

impl FeatureClass {
    const fn number(self) -> u8 {
        match self {
            Self::Incompatible => 0,
            Self::Compatible => 1,
            Self::Autoclear => 2,
        }
    }
}

/// One line of the feature name table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureName {
    /// Class number as stored; [`FeatureClass`] covers 0 to 2.
    pub class: u8,
    /// Bit number as stored; only 0 to 63 mean anything.
    pub bit: u8,
    /// The name, up to the first NUL byte. Bytes of a stranger: sanitise before printing.
    pub name: Vec<u8>,
}

/// The feature name table extension: names for messages, nothing else depends on it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct FeatureNameTable {
    /// Its lines, in order.
    pub names: Vec<FeatureName>,
}

const NAME_ENTRY_LEN: usize = 48;
const NAME_LEN: usize = 46;

impl FeatureNameTable {
    /// Reads whole entries; a trailing partial one is ignored, as QEMU does.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        let names = bytes
            .chunks_exact(NAME_ENTRY_LEN)
            .map(|entry| {
                let name: [u8; NAME_LEN] = array(entry, 2);
                let end = name.iter().position(|&byte| byte == 0).unwrap_or(NAME_LEN);
                FeatureName { class: entry[0], bit: entry[1], name: name[..end].to_vec() }
            })
            .collect();
        Self { names }
    }

    /// The extension's payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.names.len() * NAME_ENTRY_LEN);
        for entry in &self.names {
            assert!(entry.name.len() <= NAME_LEN);
            bytes.extend([entry.class, entry.bit]);
            bytes.extend(&entry.name);
            bytes.resize(bytes.len() + NAME_LEN - entry.name.len(), 0);
        }
        bytes
    }

    /// The table QEMU writes into new images: every feature this version knows.
    #[must_use]
    pub fn standard() -> Self {
        let line = |class: FeatureClass, bit, name: &str| FeatureName {
            class: class.number(),
            bit,
            name: name.as_bytes().to_vec(),
        };
        Self {
            names: vec![
                line(FeatureClass::Incompatible, 0, "dirty bit"),
                line(FeatureClass::Incompatible, 1, "corrupt bit"),
                line(FeatureClass::Incompatible, 2, "external data file"),
                line(FeatureClass::Incompatible, 3, "compression type"),
                line(FeatureClass::Incompatible, 4, "extended L2 entries"),
                line(FeatureClass::Compatible, 0, "lazy refcounts"),
                line(FeatureClass::Autoclear, 0, "bitmaps"),
                line(FeatureClass::Autoclear, 1, "raw external data"),
            ],
        }
    }

    /// Names for the bits of `unknown`, comma-separated, in QEMU's wording; control characters
    /// replaced.
    #[must_use]
    pub fn describe(&self, class: FeatureClass, unknown: u64) -> String {
        let mut parts = Vec::new();
        let mut unnamed = unknown;
        for entry in &self.names {
            let named = entry.class == class.number()
                && entry.bit < 64
                && !entry.name.is_empty()
                && unnamed & (1 << entry.bit) != 0;
            if named {
                unnamed &= !(1 << entry.bit);
                parts.push(sanitise(&entry.name));
            }
        }
        if unnamed != 0 {
            parts.push(format!("Unknown incompatible feature: {unnamed:x}"));
        }
        parts.join(", ")
    }
}

fn sanitise(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{FeatureClass, FeatureNameTable, IncompatibleFeatures};

    #[test]
    fn name_table_round_trips() {
        let table = FeatureNameTable::standard();
        let bytes = table.encode();
        assert_eq!(bytes.len(), 8 * 48);
        assert_eq!(FeatureNameTable::decode(&bytes), table);
    }

    #[test]
    fn unknown_bits_are_named_from_the_image_or_by_number() {
        let mut table = FeatureNameTable::default();
        assert_eq!(
            table.describe(FeatureClass::Incompatible, 1 << 40),
            "Unknown incompatible feature: 10000000000"
        );
        table.names.push(super::FeatureName { class: 0, bit: 40, name: b"future\x1b".to_vec() });
        table.names.push(super::FeatureName { class: 0, bit: 200, name: b"hostile".to_vec() });
        assert_eq!(table.describe(FeatureClass::Incompatible, 1 << 40), "future\u{fffd}");
    }

    #[test]
    fn known_bits_are_not_unknown() {
        let features = IncompatibleFeatures::from_bits(0x3f);
        assert_eq!(features.unknown(), 0x20);
        assert!(features.contains(IncompatibleFeatures::DIRTY));
    }
}
