//! Random operations through the mount against a model in memory.

use cowl_fuse::{Caching, Sizing};

use crate::model::{Model, open_direct};
use crate::program::can_mount;
use crate::serving::{How, Place, Serving};

const SIZE: u64 = 9 << 20;

/// The bytes are in the image, too.
fn check_image(serving: Serving<crate::serving::Image>, bytes: &[u8]) {
    let folder = serving.finish();
    let convert = ["convert", "-f", "qcow2", "-O", "raw", "disk.qcow2", "disk.raw"];
    let converted = cowl_testkit::run(cowl_testkit::Tool::Img, folder.path(), &convert);
    let _converted = converted.expect_success("qemu-img convert");
    let raw = std::fs::read(folder.path().join("disk.raw")).unwrap();
    assert_eq!(raw.len(), bytes.len());
    assert!(raw == bytes, "the image holds other bytes than the file had");
}

#[test]
fn the_file_holds_what_was_written_through_the_page_cache() {
    let Some(_alone) = can_mount() else { return };
    for seed in 0..3 {
        let serving = Serving::new_image(SIZE, How::PLAIN);
        let mut model = Model::new(serving.open(), SIZE, 1, seed);
        for _ in 0..700 {
            model.step();
        }
        model.check();
        check_image(serving, &model.into_bytes());
    }
}

#[test]
fn the_file_holds_what_was_written_past_the_page_cache() {
    let Some(_alone) = can_mount() else { return };
    for (seed, place) in [(10, Place::OverFile), (11, Place::InDirectory)] {
        let serving = Serving::new_image(SIZE, How { place, ..How::PLAIN });
        let direct = open_direct(&serving.file).unwrap();
        let mut model = Model::new(direct, SIZE, 512, seed);
        for _ in 0..700 {
            model.step();
        }
        model.check();
        check_image(serving, &model.into_bytes());
    }
}

#[test]
fn the_file_holds_what_was_written_where_the_server_answers_everything() {
    let Some(_alone) = can_mount() else { return };
    let serving = Serving::new_image(SIZE, How { caching: Caching::Direct, ..How::PLAIN });
    let mut model = Model::new(serving.open(), SIZE, 1, 20);
    for _ in 0..1000 {
        model.step();
    }
    model.check();
    check_image(serving, &model.into_bytes());
}

#[test]
fn the_file_holds_what_was_written_while_its_size_changes() {
    let Some(_alone) = can_mount() else { return };
    for (seed, caching) in [(30, Caching::PageCache), (31, Caching::Direct)] {
        let how = How { caching, sizing: Sizing::Growable, ..How::PLAIN };
        let serving = Serving::new_image(SIZE, how);
        let mut model = Model::new(serving.open(), SIZE, 1, seed);
        for _ in 0..60 {
            model.resize_step(SIZE * 2);
            for _ in 0..8 {
                model.step();
            }
            model.check();
        }
        check_image(serving, &model.into_bytes());
    }
}
