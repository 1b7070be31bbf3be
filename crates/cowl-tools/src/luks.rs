//! The facts of a LUKS (version 1) header that `info` shows.
//!
//! | offset | length | field                                 |
//! |--------|--------|---------------------------------------|
//! |      0 |      6 | magic `LUKS\xba\xbe`                  |
//! |      6 |      2 | version, 1                            |
//! |      8 |     32 | cipher                                |
//! |     40 |     32 | mode, such as `xts-plain64`           |
//! |     72 |     32 | hash                                  |
//! |    104 |      4 | payload: first sector                 |
//! |    108 |      4 | master key: bytes                     |
//! |    112 |     52 | digest of the master key, and its salt |
//! |    164 |      4 | iterations of that digest             |
//! |    168 |     40 | UUID                                  |
//! |    208 |  8*48  | key slots                             |
//!
//! A key slot holds: state (4), iterations (4), salt (32), first sector of the key material (4),
//! stripes (4).
//!
//! Not here: keys. Nothing is decrypted.

use crate::info::{KeySlotInfo, LuksInfo};

/// Bytes that the facts are in.
pub(crate) const HEADER_BYTES: usize = 592;

const SLOTS_OFFSET: usize = 208;
const SLOT_BYTES: usize = 48;
const SLOT_COUNT: usize = 8;
const SLOT_ACTIVE: u32 = 0x00ac_71f3;
const SECTOR_BYTES: u64 = 512;

const _: () = assert!(SLOTS_OFFSET + SLOT_COUNT * SLOT_BYTES == HEADER_BYTES);

/// Reads the facts; `None` when this is no such header.
pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<LuksInfo> {
    if &bytes[..6] != b"LUKS\xba\xbe" || bytes[6..8] != [0, 1] {
        return None;
    }
    let mode = text(&bytes[40..72]);
    let (cipher_mode, iv) = mode.split_once('-').unwrap_or((&mode, ""));
    let (generator, generator_hash) = match iv.split_once(':') {
        Some((generator, hash)) => (generator, Some(hash.to_owned())),
        None => (iv, None),
    };
    // In XTS mode the key is two keys.
    let key_bits = be32(bytes, 108).saturating_mul(if cipher_mode == "xts" { 4 } else { 8 });
    Some(LuksInfo {
        ivgen_alg: generator.to_owned(),
        ivgen_hash_alg: generator_hash,
        detached_header: false,
        hash_alg: text(&bytes[72..104]),
        cipher_alg: format!("{}-{key_bits}", text(&bytes[8..40])),
        uuid: text(&bytes[168..208]),
        format: "luks",
        cipher_mode: cipher_mode.to_owned(),
        slots: (0..SLOT_COUNT).map(|slot| decode_slot(bytes, slot)).collect(),
        payload_offset: u64::from(be32(bytes, 104)) * SECTOR_BYTES,
        master_key_iters: u64::from(be32(bytes, 164)),
    })
}

fn decode_slot(bytes: &[u8; HEADER_BYTES], slot: usize) -> KeySlotInfo {
    let at = SLOTS_OFFSET + slot * SLOT_BYTES;
    let active = be32(bytes, at) == SLOT_ACTIVE;
    KeySlotInfo {
        active,
        iters: active.then(|| u64::from(be32(bytes, at + 4))),
        key_offset: u64::from(be32(bytes, at + 40)) * SECTOR_BYTES,
        stripes: active.then(|| u64::from(be32(bytes, at + 44))),
    }
}

/// Text up to the first zero byte.
fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

fn be32(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

#[cfg(test)]
mod tests {
    use super::{HEADER_BYTES, decode};

    fn header(mode: &[u8]) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(b"LUKS\xba\xbe\0\x01");
        bytes[8..11].copy_from_slice(b"aes");
        bytes[40..40 + mode.len()].copy_from_slice(mode);
        bytes[72..78].copy_from_slice(b"sha256");
        bytes[104..108].copy_from_slice(&4040u32.to_be_bytes());
        bytes[108..112].copy_from_slice(&64u32.to_be_bytes());
        bytes[208..216].copy_from_slice(&[0, 0xac, 0x71, 0xf3, 0, 0, 0, 9]);
        bytes
    }

    #[test]
    fn the_mode_names_cipher_mode_and_generator() {
        let info = decode(&header(b"xts-plain64")).unwrap();
        assert_eq!(info.cipher_alg, "aes-256");
        assert_eq!((info.cipher_mode.as_str(), info.ivgen_alg.as_str()), ("xts", "plain64"));
        assert_eq!(info.payload_offset, 2_068_480);
        let info = decode(&header(b"cbc-essiv:sha256")).unwrap();
        assert_eq!(info.cipher_alg, "aes-512");
        assert_eq!(info.ivgen_hash_alg.as_deref(), Some("sha256"));
    }

    #[test]
    fn only_active_slots_have_iterations() {
        let info = decode(&header(b"xts-plain64")).unwrap();
        assert_eq!(info.slots[0].iters, Some(9));
        assert_eq!((info.slots[1].active, info.slots[1].iters), (false, None));
    }

    #[test]
    fn other_bytes_are_no_header() {
        assert_eq!(decode(&[0; HEADER_BYTES]), None);
    }
}
