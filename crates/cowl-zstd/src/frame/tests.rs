//! What the library writes and reads is the oracle.

use std::io::Write;

use proptest::prelude::*;

use super::Decoder;
use crate::Fault;

/// A frame of `bytes` that says its length, one block where the library can.
fn frame(bytes: &[u8], level: i32) -> Vec<u8> {
    zstd::bulk::compress(bytes, level).unwrap()
}

/// A frame of `bytes` whose blocks end each `block` bytes.
fn frame_in_blocks(bytes: &[u8], block: usize, level: i32) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), level).unwrap();
    encoder.include_contentsize(true).unwrap();
    encoder.set_pledged_src_size(Some(bytes.len() as u64)).unwrap();
    for part in bytes.chunks(block) {
        encoder.write_all(part).unwrap();
        encoder.flush().unwrap();
    }
    encoder.finish().unwrap()
}

/// What is decoded; several times, since nothing may come from what was in the memory before, nor
/// depend on how much there is behind what is asked for.
fn decode(stream: &[u8], length: usize, reach: usize) -> Result<Vec<u8>, Fault> {
    let mut decoder = Decoder::new();
    let mut decode = |byte, room| {
        let mut output = vec![byte; room];
        let done = decoder.decode(stream, length, &mut output, reach)?;
        output.truncate(done);
        Ok(output)
    };
    let first = decode(0xee, length);
    assert_eq!(first, decode(0x11, length));
    assert_eq!(first, decode(0xee, length + 100));
    for room in [0, reach / 2, reach, reach + 1, reach + 40, reach.midpoint(length)] {
        // Where less has room than is asked for, less is looked at.
        if room < length && (reach <= room || first.is_ok()) {
            let fits = |mut bytes: Vec<u8>| {
                bytes.truncate(room);
                bytes
            };
            assert_eq!(first.clone().map(fits), decode(0x11, room), "{reach} {room} {length}");
        }
    }
    first
}

/// Numbers that look random.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

/// Something like a program: bytes of uneven frequency, and copies from nearby and from far.
fn program(length: usize) -> Vec<u8> {
    let noise = noise(2 * length);
    let mut bytes = Vec::with_capacity(length);
    for pair in noise.as_chunks::<2>().0 {
        let [kind, value] = *pair;
        let distance = usize::from(value) * usize::from(kind % 64) + 1;
        match kind {
            0..40 if distance <= bytes.len() => {
                for _ in 0..value % 40 {
                    bytes.push(bytes[bytes.len() - distance]);
                }
            }
            40..44 => bytes.extend([value; 30]),
            _ => bytes.push(value & value.rotate_left(3)),
        }
    }
    bytes.truncate(length);
    bytes
}

/// Every kind of content: pieces that repeat, run, copy and are new.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        (any::<u8>(), 1..3000_usize).prop_map(|(byte, length)| vec![byte; length]),
        (1..5000_usize).prop_map(noise),
        (1..30_000_usize).prop_map(program),
        proptest::collection::vec(any::<u8>(), 1..40),
        "[a-f ]{1,200}".prop_map(String::into_bytes),
    ];
    let pieces =
        proptest::collection::vec((piece, any::<prop::sample::Index>(), any::<u16>()), 1..12);
    pieces.prop_map(|pieces| {
        let mut bytes = Vec::new();
        for (piece, index, copied) in pieces {
            bytes.extend(piece);
            let from = index.index(bytes.len());
            let end = bytes.len().min(from + usize::from(copied));
            bytes.extend_from_within(from..end);
        }
        bytes
    })
}

proptest! {
    #[test]
    fn as_many_bytes_as_are_asked_for_are_those_of_the_library(
        bytes in content(),
        level in -5..=19_i32,
        block in prop_oneof![Just(None), (1000..40_000_usize).prop_map(Some)],
        reach in any::<prop::sample::Index>(),
    ) {
        let stream = match block {
            Some(block) => frame_in_blocks(&bytes, block, level),
            None => frame(&bytes, level),
        };
        prop_assume!(stream[4] & 0x20 != 0);
        prop_assert_eq!(decode(&stream, bytes.len(), bytes.len() + 1), Ok(bytes.clone()));
        let reach = reach.index(bytes.len()) + 1;
        let first = decode(&stream, bytes.len(), reach).unwrap();
        prop_assert!(reach <= first.len());
        prop_assert_eq!(&first[..], &bytes[..first.len()]);
    }

    #[test]
    fn what_is_damaged_is_refused_or_what_the_library_makes_of_it(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        reach in 1..=40_000_usize,
    ) {
        let bytes = program(40_000);
        let mut stream = frame_in_blocks(&bytes, 15_000, 3);
        for (index, value) in edits {
            let index = index.index(stream.len());
            stream[index] = value;
        }
        let theirs = zstd::bulk::decompress(&stream, bytes.len());
        // The library takes streams that say more than their section does, which is refused here;
        // and it looks at what lies behind.
        if let Ok(mine) = decode(&stream, bytes.len(), reach)
            && let Ok(theirs) = &theirs
        {
            prop_assert!(reach <= mine.len() && theirs.starts_with(&mine));
        }
        if let Ok(mine) = decode(&stream, bytes.len(), bytes.len() + 1) {
            prop_assert_eq!(mine, theirs.unwrap());
        }
    }
}

#[test]
fn a_read_ends_close_behind_what_it_is_asked_for() {
    let bytes = program(1 << 16);
    let stream = frame(&bytes, 3);
    for reach in [1, 100, 4096, 30_000, (1 << 16) - 1] {
        let first = decode(&stream, bytes.len(), reach).unwrap();
        assert!((reach..reach + 200).contains(&first.len()), "{} of {reach}", first.len());
        assert_eq!(first, bytes[..first.len()]);
    }
    assert_eq!(decode(&stream, bytes.len(), 0).unwrap(), []);
}

#[test]
fn what_lies_behind_a_read_is_not_looked_at() {
    let bytes = program(1 << 16);
    // In the second block, and in the sequences at the end of the first one, which are the first
    // bytes of its last stream.
    let mut stream = frame_in_blocks(&bytes, 1 << 15, 3);
    let length = stream.len();
    stream.truncate(length * 2 / 3);
    assert_eq!(decode(&stream, bytes.len(), 1 << 15).unwrap(), bytes[..1 << 15]);
    assert_eq!(decode(&stream, bytes.len(), (1 << 15) + 1), Err(Fault::Short));
    let whole = frame(&bytes, 3);
    let found = (0..whole.len()).filter(|&at| {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        let theirs = zstd::bulk::decompress(&damaged, bytes.len());
        let is_damaged = !theirs.is_ok_and(|theirs| theirs == bytes);
        is_damaged
            && decode(&damaged, bytes.len(), 4096).is_ok_and(|first| bytes.starts_with(&first))
    });
    assert!(whole.len() / 8 < found.count());
}

#[test]
fn a_frame_that_is_cut_off_gives_its_own_bytes_or_none() {
    let bytes = program(20_000);
    let stream = frame_in_blocks(&bytes, 7000, 3);
    for length in 0..stream.len() {
        for reach in [1, 7000, 7001, 20_000] {
            let first = decode(&stream[..length], bytes.len(), reach);
            if let Ok(first) = first {
                assert!(reach <= first.len() && bytes.starts_with(&first), "{length}, {reach}");
            }
        }
    }
    // And what follows it is nobody's.
    let followed = [stream, vec![0xa5; 300]].concat();
    assert_eq!(decode(&followed, bytes.len(), 20_000).unwrap(), bytes);
}

#[test]
fn blocks_of_every_kind_are_read() {
    let run = vec![7; 100_000];
    let noise = noise(200_000);
    let few = [1, 2, 3, 1, 2, 3, 1, 1].repeat(30);
    let long = [&noise[..150_000], &noise[1..140_000], b"and the rest"].concat();
    let flat: Vec<u8> = noise.iter().map(|byte| byte % 3).collect();
    for bytes in [&run, &noise, &few, &long, &flat, &vec![], &vec![1], &program(300_000)] {
        for level in [-7, 1, 3, 9, 19] {
            let stream = frame(bytes, level);
            assert_eq!(decode(&stream, bytes.len(), bytes.len()).as_ref(), Ok(bytes), "{level}");
        }
    }
}

#[test]
fn a_decoder_takes_nothing_from_one_frame_into_the_next() {
    let (first, second) = (program(50_000), [noise(20), vec![0; 500]].concat());
    let mut decoder = Decoder::default();
    let mut output = vec![0; first.len()];
    for _ in 0..2 {
        for bytes in [&first, &second] {
            let output = &mut output[..bytes.len()];
            assert_eq!(
                decoder.decode(&frame(bytes, 3), bytes.len(), output, bytes.len()),
                Ok(bytes.len())
            );
            assert_eq!(output, bytes);
        }
    }
    // A block with the codes of the one before, where there is none: coded as before, one stream.
    let mut output = [0; 10];
    let stream = [0x28, 0xb5, 0x2f, 0xfd, 0x20, 10, 0x25, 0, 0, 0xa3, 0x40, 0, 0x80, 0];
    assert_eq!(decoder.decode(&stream, output.len(), &mut output, 10), Err(Fault::Table));
}

#[test]
fn nothing_is_looked_at_behind_what_has_room() {
    // 20 bytes, of which a raw block has 10, and nothing follows.
    let stream = [&[0x28, 0xb5, 0x2f, 0xfd, 0x20, 20, 0x50, 0, 0][..], &[7; 10]].concat();
    let mut decoder = Decoder::new();
    let mut output = [0; 20];
    for (room, reach) in [(10, 10), (10, 11), (9, 10), (10, usize::MAX), (0, 5), (0, 0)] {
        let result = decoder.decode(&stream, 20, &mut output[..room], reach);
        assert_eq!(result, Ok(room.min(10)), "{room}, {reach}");
    }
    assert_eq!(decoder.decode(&stream, 20, &mut output, 11), Err(Fault::Short));
    assert_eq!(decoder.decode(&stream, 20, &mut output[..11], 11), Err(Fault::Short));
    assert_eq!(decoder.decode(&frame(&[], 3), 0, &mut [], 1), Ok(0));
}

#[test]
fn frames_of_other_kinds_are_refused() {
    let bytes = program(10_000);
    let refused = |stream: &[u8]| assert_eq!(decode(stream, 10_000, 1), Err(Fault::Kind));
    let encode = |change: fn(&mut zstd::stream::write::Encoder<'static, Vec<u8>>)| {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        change(&mut encoder);
        encoder.write_all(&bytes[..10]).unwrap();
        encoder.flush().unwrap();
        encoder.write_all(&bytes[10..]).unwrap();
        encoder.finish().unwrap()
    };
    // Of another length, of unknown length, with a checksum, with a window; none, half a header.
    refused(&frame(&bytes[1..], 3));
    refused(&encode(|_| ()));
    refused(&encode(|encoder| {
        encoder.set_pledged_src_size(Some(10_000)).unwrap();
        encoder.include_checksum(true).unwrap();
    }));
    let mut windowed = frame(&bytes, 3);
    windowed[4] &= !0x20;
    refused(&windowed);
    refused(&[0; 20]);
    refused(&[]);
    refused(&frame(&bytes, 3)[..6]);
}

#[test]
fn bytes_behind_the_end_of_the_content_are_refused() {
    // One segment of 2 bytes; a raw block of 3, a run of 3, a run of 2 and one more of it.
    let header = [0x28, 0xb5, 0x2f, 0xfd, 0x20, 2];
    let with = |blocks: &[u8]| decode(&[&header, blocks].concat(), 2, 2);
    assert_eq!(with(&[0x19, 0, 0, 1, 2, 3]), Err(Fault::Block));
    assert_eq!(with(&[0x1b, 0, 0, 1]), Err(Fault::Block));
    assert_eq!(with(&[0x12, 0, 0, 9, 0x0b, 0, 0, 9]).unwrap(), [9, 9]);
    assert_eq!(with(&[0x0a, 0, 0, 9, 0x13, 0, 0, 9]), Err(Fault::Room));
    // Ends early, and a block of the kind that there is not.
    assert_eq!(with(&[0x0b, 0, 0, 9]), Err(Fault::Short));
    assert_eq!(with(&[0x0e, 0, 0, 9]), Err(Fault::Block));
}

#[test]
fn four_streams_without_literals_are_refused() {
    // A compressed block: four streams for no literals, codes of two symbols, one byte for each
    // stream; no sequences.
    let literals = [0b0110, 0x00, 0x03, 0x80, 0x10, 1, 0, 1, 0, 1, 0, 1, 1, 1, 1];
    let mut stream = vec![0x28, 0xb5, 0x2f, 0xfd, 0x20, 20, (16 << 3) | 5, 0, 0];
    stream.extend(literals);
    stream.push(0);
    assert_eq!(decode(&stream, 20, 20), Err(Fault::Stream));
}

/// Frames that the library refuses, whole ones.
#[test]
fn what_no_stream_says_is_refused() {
    let hex = |digits: &str| -> Vec<u8> {
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
        (0..digits.len()).step_by(2).map(byte).collect()
    };
    for (digits, length, reach, fault) in [
        // An offset of nearly 4 GiB; with a match that is longer than a chunk.
        (
            "28b52ffd2028150100c06162636465666768696a6b6c6d6e6f70717273747576777801\
             54041f0dffffffff",
            40,
            39,
            Fault::Sequence,
        ),
        (
            "28b52ffd2029150100c06162636465666768696a6b6c6d6e6f70717273747576777801\
             54041f0effffffff",
            41,
            39,
            Fault::Sequence,
        ),
        // Sequences from bits before their stream, where the read ends and before that.
        ("28b52ffd20145d00002061626364015404010d01", 20, 20, Fault::Stream),
        ("28b52ffd203c5c00002061626364015404010d0143010009", 60, 19, Fault::Stream),
        // Weights from bits before theirs.
        ("28b52ffd203c4c000022400103d007010400d3010009", 60, 60, Fault::Stream),
        // No code of the greatest length.
        ("28b52ffd20084500008200018020aa0100", 8, 8, Fault::Table),
        // Four streams of six literals: the fourth has none, and bits.
        ("28b52ffd203c8400006600038010010001000100050604ff00b3010009", 60, 60, Fault::Stream),
    ] {
        let stream = hex(digits);
        assert!(zstd::bulk::decompress(&stream, length).is_err(), "{digits}");
        assert_eq!(decode(&stream, length, reach), Err(fault), "{digits}");
    }
}
