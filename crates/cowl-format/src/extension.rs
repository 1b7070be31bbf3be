//! Header extensions: the typed records between the fixed header and the backing file name.
//!
//!   { type: u32, length: u32, payload, zero padding to 8 bytes } ... { 0, 0 }
//!
//! The area ends at an end record, at the backing file name, or at the end of cluster 0. Records of
//! an unknown type are kept and written back.

use crate::bitmap::BitmapsExtension;
use crate::bytes::{be32, be64, pad8, put64};
use crate::feature::FeatureNameTable;
use crate::limits::{BACKING_FORMAT_BYTES_MAX, DATA_FILE_NAME_BYTES_MAX, EXTENSION_COUNT_MAX};
use crate::{ByteCount, Corruption, Geometry, HostOffset};

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const CRYPTO_HEADER: u32 = 0x0537_be77;
const DATA_FILE_NAME: u32 = 0x4441_5441;

const RECORD_HEADER_LEN: usize = 8;

/// What kind of record an extension is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtensionKind {
    /// The format of the backing file.
    BackingFormat,
    /// Names of feature bits.
    FeatureNames,
    /// Where the persistent bitmaps are.
    Bitmaps,
    /// Where the LUKS header is.
    CryptoHeader,
    /// The name of the external data file.
    DataFileName,
    /// Something newer.
    Unknown(u32),
}

impl ExtensionKind {
    const fn from_number(number: u32) -> Self {
        match number {
            BACKING_FORMAT => Self::BackingFormat,
            FEATURE_NAMES => Self::FeatureNames,
            BITMAPS => Self::Bitmaps,
            CRYPTO_HEADER => Self::CryptoHeader,
            DATA_FILE_NAME => Self::DataFileName,
            other => Self::Unknown(other),
        }
    }

    /// The number on disk.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::BackingFormat => BACKING_FORMAT,
            Self::FeatureNames => FEATURE_NAMES,
            Self::Bitmaps => BITMAPS,
            Self::CryptoHeader => CRYPTO_HEADER,
            Self::DataFileName => DATA_FILE_NAME,
            Self::Unknown(number) => number,
        }
    }
}

/// One record with its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// What it is.
    pub kind: ExtensionKind,
    /// Its payload without padding.
    pub payload: Vec<u8>,
}

impl Extension {
    /// Splits `area`, the bytes from the end of the header to the end of the extension area, into
    /// records. `area_offset` is where `area` starts in the file, for messages.
    ///
    /// `area_end` is where the area ends by the header; when `area` is shorter and the records run
    /// past it, the error is [`Corruption::HeaderTruncated`] with the number of bytes to read.
    pub(crate) fn decode_all(
        area: &[u8],
        area_offset: usize,
        area_end: usize,
    ) -> Result<Vec<Self>, Corruption> {
        let mut extensions: Vec<Self> = Vec::new();
        let mut at = 0;
        let available = |length: usize| {
            if area.len() < length && area_offset + area.len() < area_end {
                let needed = (area_offset + length).min(area_end);
                return Err(Corruption::HeaderTruncated { needed: ByteCount::from_usize(needed) });
            }
            Ok(())
        };
        while area_offset + at + RECORD_HEADER_LEN <= area_end {
            available(at + RECORD_HEADER_LEN)?;
            let number = be32(area, at);
            let length = be32(area, at + 4);
            if number == END {
                break;
            }
            let too_large = Corruption::ExtensionTooLarge { kind: number, length };
            let payload_at = at + RECORD_HEADER_LEN;
            let payload_len = usize::try_from(length).map_err(|_| too_large.clone())?;
            if area_end - (area_offset + payload_at) < payload_len {
                return Err(too_large);
            }
            available(payload_at + payload_len)?;
            let kind = ExtensionKind::from_number(number);
            let known = !matches!(kind, ExtensionKind::Unknown(_));
            if known && extensions.iter().any(|other| other.kind == kind) {
                return Err(Corruption::ExtensionDuplicate { kind: number });
            }
            if extensions.len() == EXTENSION_COUNT_MAX {
                return Err(Corruption::ExtensionCount);
            }
            let payload = area[payload_at..payload_at + payload_len].to_vec();
            extensions.push(Self { kind, payload });
            at = payload_at + pad8(payload_len);
        }
        Ok(extensions)
    }

    /// Appends the record, padded, to `bytes`.
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        let length = u32::try_from(self.payload.len()).expect("payload fits in cluster 0");
        bytes.extend(self.kind.number().to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(&self.payload);
        bytes.resize(pad8(bytes.len()), 0);
    }

    /// Appends the record that ends the area.
    pub(crate) fn encode_end(bytes: &mut Vec<u8>) {
        bytes.extend([0; RECORD_HEADER_LEN]);
    }
}

/// Where the LUKS header of an encrypted image lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CryptoHeaderPointer {
    /// Its first byte, cluster-aligned.
    pub offset: HostOffset,
    /// Its length, key material included.
    pub length: ByteCount,
}

impl CryptoHeaderPointer {
    const LEN: usize = 16;

    pub(crate) fn decode(payload: &[u8], geometry: Geometry) -> Result<Self, Corruption> {
        expect_length("CRYPTO", payload, Self::LEN)?;
        let offset = be64(payload, 0);
        let length = be64(payload, 8);
        if !geometry.is_cluster_aligned(offset) {
            let cluster_size = geometry.cluster_size();
            return Err(Corruption::CryptoHeaderOffset { offset, cluster_size });
        }
        if offset == 0 || offset.checked_add(length).is_none() {
            return Err(Corruption::CryptoHeaderRange { offset, length });
        }
        Ok(Self { offset: HostOffset::new(offset), length: ByteCount::new(length) })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut payload = vec![0; Self::LEN];
        put64(&mut payload, 0, self.offset.get());
        put64(&mut payload, 8, self.length.get());
        payload
    }
}

pub(crate) fn expect_length(
    name: &'static str,
    payload: &[u8],
    expected: usize,
) -> Result<(), Corruption> {
    if payload.len() == expected {
        return Ok(());
    }
    let number = |length| u32::try_from(length).unwrap_or(u32::MAX);
    Err(Corruption::ExtensionLength {
        name,
        length: number(payload.len()),
        expected: number(expected),
    })
}

/// The records of one header, sorted by kind.
#[derive(Default)]
pub(crate) struct KnownExtensions {
    pub(crate) backing_format: Option<Vec<u8>>,
    pub(crate) feature_names: Option<FeatureNameTable>,
    pub(crate) bitmaps: Option<Result<BitmapsExtension, Corruption>>,
    pub(crate) crypto_header: Option<CryptoHeaderPointer>,
    pub(crate) data_file_name: Option<Vec<u8>>,
    pub(crate) unknown: Vec<Extension>,
}

impl KnownExtensions {
    pub(crate) fn sort(all: Vec<Extension>, geometry: Geometry) -> Result<Self, Corruption> {
        let mut sorted = Self::default();
        for extension in all {
            let payload = extension.payload;
            match extension.kind {
                ExtensionKind::BackingFormat => {
                    sorted.backing_format = Some(decode_backing_format(payload)?);
                }
                ExtensionKind::FeatureNames => {
                    sorted.feature_names = Some(FeatureNameTable::decode(&payload));
                }
                // Bitmaps hold no guest data: broken ones must not keep anybody from it.
                ExtensionKind::Bitmaps => {
                    sorted.bitmaps = Some(BitmapsExtension::decode(&payload, geometry));
                }
                ExtensionKind::CryptoHeader => {
                    sorted.crypto_header = Some(CryptoHeaderPointer::decode(&payload, geometry)?);
                }
                ExtensionKind::DataFileName => {
                    sorted.data_file_name = Some(decode_data_file_name(payload)?);
                }
                ExtensionKind::Unknown(_) => {
                    sorted.unknown.push(Extension { kind: extension.kind, payload });
                }
            }
        }
        Ok(sorted)
    }
}

fn decode_backing_format(payload: Vec<u8>) -> Result<Vec<u8>, Corruption> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    if length > BACKING_FORMAT_BYTES_MAX {
        return Err(Corruption::BackingFormatLength { length });
    }
    check_text("backing format", &payload)?;
    Ok(payload)
}

fn decode_data_file_name(payload: Vec<u8>) -> Result<Vec<u8>, Corruption> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    if length > DATA_FILE_NAME_BYTES_MAX {
        return Err(Corruption::DataFileNameLength { length });
    }
    check_text("data file name", &payload)?;
    Ok(payload)
}

fn check_text(name: &'static str, bytes: &[u8]) -> Result<(), Corruption> {
    match text_fault(bytes) {
        Some(reason) => Err(Corruption::ExtensionText { name, reason }),
        None => Ok(()),
    }
}

/// Why `bytes` cannot be a name, if so.
pub(crate) fn text_fault(bytes: &[u8]) -> Option<&'static str> {
    if bytes.contains(&0) {
        return Some("it contains a NUL byte");
    }
    if bytes.iter().any(u8::is_ascii_control) {
        return Some("it contains a control character");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{Extension, ExtensionKind};
    use crate::{ByteCount, Corruption};

    fn record(kind: ExtensionKind, payload: &[u8]) -> Extension {
        Extension { kind, payload: payload.to_vec() }
    }

    fn encoded(records: &[Extension]) -> Vec<u8> {
        let mut bytes = Vec::new();
        records.iter().for_each(|record| record.encode(&mut bytes));
        bytes
    }

    #[test]
    fn unknown_records_round_trip_with_padding() {
        let records = [
            record(ExtensionKind::Unknown(7), b"abc"),
            record(ExtensionKind::BackingFormat, b"raw"),
        ];
        let mut bytes = encoded(&records);
        Extension::encode_end(&mut bytes);
        assert_eq!(bytes.len(), 16 + 16 + 8);
        assert_eq!(Extension::decode_all(&bytes, 112, 65_536).unwrap(), records);
    }

    #[test]
    fn the_area_may_end_without_an_end_record() {
        let bytes = encoded(&[record(ExtensionKind::Unknown(7), b"12345678")]);
        let end = 112 + bytes.len();
        assert_eq!(Extension::decode_all(&bytes, 112, end).unwrap().len(), 1);
    }

    #[test]
    fn a_record_past_the_area_is_refused() {
        let mut bytes = encoded(&[record(ExtensionKind::Unknown(7), b"12345678")]);
        bytes[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        let error = Extension::decode_all(&bytes, 112, 112 + bytes.len()).unwrap_err();
        assert_eq!(error, Corruption::ExtensionTooLarge { kind: 7, length: u32::MAX });
    }

    #[test]
    fn a_short_read_says_how_much_is_needed() {
        let bytes = encoded(&[record(ExtensionKind::Unknown(7), &[1; 100])]);
        let error = Extension::decode_all(&bytes[..40], 112, 4096).unwrap_err();
        assert_eq!(error, Corruption::HeaderTruncated { needed: ByteCount::new(112 + 108) });
    }

    #[test]
    fn a_known_record_appears_once() {
        let twice = encoded(&[
            record(ExtensionKind::BackingFormat, b"raw"),
            record(ExtensionKind::BackingFormat, b"qcow2"),
        ]);
        let error = Extension::decode_all(&twice, 112, 112 + twice.len()).unwrap_err();
        assert_eq!(error, Corruption::ExtensionDuplicate { kind: 0xe279_2aca });
    }
}
