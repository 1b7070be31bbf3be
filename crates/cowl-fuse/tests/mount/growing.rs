//! Files whose size can change.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};

use cowl_fuse::{Caching, Sizing};
use rustix::fs::{FallocateFlags, fallocate};

use crate::program::can_mount;
use crate::serving::{How, Serving};

const MIB: u64 = 1 << 20;

#[test]
fn a_growable_file_grows_with_what_is_written() {
    let Some(_alone) = can_mount() else { return };
    for caching in [Caching::PageCache, Caching::Direct] {
        let how = How { caching, sizing: Sizing::Growable, ..How::PLAIN };
        let serving = Serving::new_image(MIB, how);
        let file = serving.open();
        file.write_all_at(b"end", 5 * MIB).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 5 * MIB + 512);
        file.set_len(6 * MIB + 1).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 6 * MIB + 512);
        fallocate(&file, FallocateFlags::empty(), 6 * MIB + 512, 2 * MIB).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), 8 * MIB + 512);
        assert!(2 * MIB <= metadata.blocks() * 512, "{}", metadata.blocks());
        let mut bytes = [1; 5];
        file.read_exact_at(&mut bytes, 5 * MIB - 1).unwrap();
        assert_eq!(bytes, *b"\0end\0");
        drop(file);
        serving.finish();
    }
}

#[test]
fn opening_a_growable_file_with_truncation_empties_it() {
    let Some(_alone) = can_mount() else { return };
    let serving = Serving::new_image(MIB, How { sizing: Sizing::Growable, ..How::PLAIN });
    serving.open().write_all_at(&[5; 70_000], 0).unwrap();
    let file = File::create(&serving.file).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
    file.write_all_at(&[6; 512], 0).unwrap();
    drop(file);
    assert_eq!(std::fs::read(&serving.file).unwrap(), [6; 512]);
    serving.finish();
}

#[test]
fn sizes_that_no_file_has_are_refused() {
    let Some(_alone) = can_mount() else { return };
    let serving = Serving::new_image(MIB, How { sizing: Sizing::Growable, ..How::PLAIN });
    let file = serving.open();
    for size in [1 << 62, i64::MAX as u64] {
        assert!(file.set_len(size).is_err());
        assert!(file.write_at(b"x", size - 1).is_err());
    }
    assert_eq!(file.metadata().unwrap().len(), MIB);
    drop(file);
    serving.finish();
}

#[test]
fn appenders_side_by_side_lose_nothing() {
    let Some(_alone) = can_mount() else { return };
    let how = How { caching: Caching::Direct, sizing: Sizing::Growable, ..How::PLAIN };
    let serving = Serving::new_image(0, how);
    std::thread::scope(|scope| {
        for number in 1..=4_u8 {
            let path = &serving.file;
            scope.spawn(move || {
                use std::io::Write;
                let mut file = File::options().append(true).open(path).unwrap();
                for _ in 0..50 {
                    file.write_all(&[number; 1024]).unwrap();
                }
            });
        }
    });
    let bytes = std::fs::read(&serving.file).unwrap();
    assert_eq!(bytes.len(), 4 * 50 * 1024);
    for number in 1..=4 {
        assert_eq!(bytes.iter().filter(|byte| **byte == number).count(), 50 * 1024);
    }
    serving.finish();
}
