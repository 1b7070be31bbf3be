//! Many at once.

use std::os::unix::fs::FileExt;

use cowl_fuse::Caching;

use crate::model::{aligned, open_direct};
use crate::program::can_mount;
use crate::serving::{How, Serving};

const WRITERS: u64 = 8;
const PIECE: u64 = 40_960;
const PIECES: u64 = 60;

/// Writers whose pieces lie between one another's, each of which reads back what it wrote.
fn write_side_by_side(how: How) {
    let serving = Serving::new_image(WRITERS * PIECE * PIECES, how);
    let stamp = |writer: u64, piece: u64| (writer * 31 + piece * 7) as u8 | 1;
    let at = |writer: u64, piece: u64| (piece * WRITERS + writer) * PIECE;
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let file = match writer % 2 {
                0 => serving.open(),
                _ => open_direct(&serving.file).unwrap(),
            };
            scope.spawn(move || {
                for piece in 0..PIECES {
                    let mut bytes = aligned(PIECE as usize, stamp(writer, piece));
                    file.write_all_at(bytes.bytes(), at(writer, piece)).unwrap();
                    bytes.bytes().fill(0);
                    file.read_exact_at(bytes.bytes(), at(writer, piece)).unwrap();
                    let expected = stamp(writer, piece);
                    assert!(bytes.bytes().iter().all(|byte| *byte == expected));
                    if piece % 16 == 0 {
                        file.sync_data().unwrap();
                    }
                }
            });
        }
    });
    let all = std::fs::read(&serving.file).unwrap();
    for writer in 0..WRITERS {
        for piece in 0..PIECES {
            let at = at(writer, piece) as usize;
            let bytes = &all[at..at + PIECE as usize];
            assert!(bytes.iter().all(|byte| *byte == stamp(writer, piece)), "{writer} {piece}");
        }
    }
    assert_eq!(serving.server.stats().bytes_written, WRITERS * PIECE * PIECES);
    serving.finish();
}

#[test]
fn writers_side_by_side_lose_nothing() {
    let Some(_alone) = can_mount() else { return };
    write_side_by_side(How::PLAIN);
}

#[test]
fn writers_side_by_side_lose_nothing_without_the_page_cache() {
    let Some(_alone) = can_mount() else { return };
    write_side_by_side(How { caching: Caching::Direct, ..How::PLAIN });
}

#[test]
fn writers_side_by_side_lose_nothing_in_little_memory() {
    let Some(_alone) = can_mount() else { return };
    write_side_by_side(How { memory_max: 1, ..How::PLAIN });
}
