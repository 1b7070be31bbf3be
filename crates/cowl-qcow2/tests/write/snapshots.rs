//! Images with internal snapshots and bitmaps that QEMU made: what cowl writes leaves the snapshots
//! as they were, and QEMU agrees.

use cowl_block::ZeroRequest;
use cowl_format::{ByteCount, GuestOffset};
use cowl_qcow2::{read_bitmaps, read_header};
use cowl_storage::{FaultEffect, FaultRule, MemoryStorage, Purpose};
use pollster::block_on;

use crate::lab::{Event, Guest, Limits, Scratch, Setup, Step, has_qemu, judge_now};
use crate::subject::Noise;
use Step::{Compressed, Discard, Flush, Write, Zero, ZeroKeeping};

/// The guest's disk as QEMU reads it.
fn raw_of(scratch: &Scratch) -> Vec<u8> {
    scratch.run("qemu-img convert -f qcow2 -O raw image raw");
    scratch.read("raw")
}

/// A disk with data, zeros and compressed clusters, in two snapshots; returns their content.
fn with_snapshots(scratch: &Scratch, options: &str) -> Vec<Vec<u8>> {
    scratch.run(&format!("qemu-img create -f qcow2 -o {options} image 1M"));
    let write = |lines: &[&str]| {
        for line in lines {
            let mut command = std::process::Command::new("qemu-io");
            let output = command.args(["-f", "qcow2", "-c", line]).arg(scratch.path("image"));
            assert!(output.output().unwrap().status.success(), "{line}");
        }
    };
    write(&["write -P 1 0 500k", "write -z 64k 64k", "write -c -P 2 512k 128k"]);
    scratch.run("qemu-img snapshot -c one image");
    let one = raw_of(scratch);
    write(&["write -P 3 100k 40k", "write -P 4 600k 100k", "write -c -P 5 768k 64k"]);
    scratch.run("qemu-img snapshot -c two image");
    vec![one, raw_of(scratch)]
}

// peers.md Q1, Q13; section 8, qcow2-rs 3.
#[test]
fn snapshots_keep_every_byte_whatever_is_written() {
    if !has_qemu() {
        return;
    }
    let cases = ["cluster_size=64k", "cluster_size=4k", "cluster_size=512,refcount_bits=64"];
    let more = ["cluster_size=64k,extended_l2=on", "cluster_size=4k,refcount_bits=8,compat=1.1"];
    for (seed, options) in (0..).zip(cases.into_iter().chain(more)) {
        let scratch = Scratch::new();
        let snapshots = with_snapshots(&scratch, options);
        let header =
            block_on(read_header(&MemoryStorage::from_vec(scratch.read("image")))).unwrap();
        let unit = header.geometry.cluster_size() / 512;
        let setup = Setup::new(header.geometry.cluster_size(), 2048 / unit);
        let mut guest = Guest::over(setup, vec![scratch.read("image")]);
        guest.open();
        write_over_everything(&guest, seed, unit);
        guest.close();
        scratch.write("image", &guest.contents()[0].to_vec());
        scratch.run("qemu-img check image");
        for (name, expected) in ["one", "two"].iter().zip(&snapshots) {
            scratch.run(&format!("qemu-img snapshot -a {name} image"));
            assert!(raw_of(&scratch) == *expected, "{options}: snapshot {name} has changed");
            scratch.run("qemu-img check image");
        }
    }
}

fn write_over_everything(guest: &Guest, seed: u64, unit: u64) {
    let mut noise = Noise(seed);
    for first in (0..2048).step_by(8) {
        let (first, count) = (first + noise.next(4), 1 + noise.next(4));
        let cluster = first / unit * unit;
        let step = match noise.next(8) {
            0 => Discard(cluster, unit),
            1 => Compressed(cluster, unit),
            2 => Zero(first, count),
            3 => ZeroKeeping(cluster, unit),
            4 => Flush,
            _ => Write(first, count),
        };
        block_on(guest.request_one(&step, 7)).unwrap();
    }
    let image = guest.image();
    let (at, length) = (GuestOffset::ZERO, ByteCount::new(300_000));
    block_on(image.zero(at, length, ZeroRequest::MayUnmap)).unwrap();
    block_on(image.write_from(at, &vec![9; 400_000])).unwrap();
    block_on(image.discard(at, image.size())).unwrap();
}

/// An image with a bitmap that records writes and one that does not.
fn with_bitmaps() -> (Scratch, Guest) {
    let scratch = Scratch::new();
    scratch.run("qemu-img create -f qcow2 image 1M");
    scratch.run("qemu-img bitmap --add image live");
    scratch.run("qemu-img bitmap --add --disable image still");
    let guest = Guest::over(Setup::new(65_536, 16), vec![scratch.read("image")]);
    (scratch, guest)
}

// format-and-qemu.md 2, "bitmap in_use marking"; DESIGN.md 7, last edge.
#[test]
fn a_live_bitmap_is_marked_durably_before_any_guest_byte_and_a_still_one_is_not() {
    if !has_qemu() {
        return;
    }
    let (scratch, mut guest) = with_bitmaps();
    guest.open();
    guest.run(&Write(0, 3));
    guest.run(&Flush);
    guest.close();
    let log = guest.lab.log();
    let change = |purpose: Purpose| {
        let is_it =
            |event: &Event| matches!(event, Event::Change(change) if change.purpose == purpose);
        log.iter().position(is_it).unwrap()
    };
    let (mark, data) = (change(Purpose::Bitmap), change(Purpose::GuestData));
    let is_between =
        |event: &Event| matches!(event, Event::Barrier { issued, .. } if mark < *issued);
    assert!(log[..data].iter().any(is_between), "no barrier between the mark and the data");
    let header = block_on(read_header(&guest.contents()[0])).unwrap();
    let directory = block_on(read_bitmaps(&guest.contents()[0], &header)).unwrap();
    assert_eq!(directory.entries.len(), 2);
    scratch.write("image", &guest.contents()[0].to_vec());
    let info = scratch.run("qemu-img info image");
    let (live, still) = info.split_once("name: live").map_or((0, 0), |(before, after)| {
        (before.matches("in-use").count(), after.matches("in-use").count())
    });
    // The flags of a bitmap come before its name.
    assert_eq!((live, still), (1, 0), "{info}");
    scratch.run("qemu-img check image");
    judge_now(&guest, Limits { leaks_max: 0 }, "bitmaps");
}

#[test]
fn a_bitmap_that_cannot_be_marked_keeps_the_guest_from_writing() {
    if !has_qemu() {
        return;
    }
    for effect in [FaultEffect::Fail { errno: 28 }, FaultEffect::FailAfterwards { errno: 28 }] {
        let (_, mut guest) = with_bitmaps();
        guest.files[0].add(FaultRule::new(effect).purpose(Purpose::Bitmap).after(1).times(1));
        guest.open();
        let write = |byte| block_on(guest.image().write_from(GuestOffset::new(0), &[byte; 512]));
        assert_eq!(write(1).unwrap_err().errno(), 28);
        let data = |event: &&Event| match event {
            Event::Change(change) => change.purpose == Purpose::GuestData,
            _ => false,
        };
        assert_eq!(guest.lab.log().iter().filter(data).count(), 0);
        // The next request tries again.
        write(2).unwrap();
        block_on(guest.image().flush()).unwrap();
        guest.close();
        let header = block_on(read_header(&guest.contents()[0])).unwrap();
        let directory = block_on(read_bitmaps(&guest.contents()[0], &header)).unwrap();
        assert!(directory.marks().is_empty(), "{directory:?}");
    }
}

// peers.md I7, I11.
#[test]
fn opening_for_writing_changes_nothing() {
    if !has_qemu() {
        return;
    }
    let (_, mut guest) = with_bitmaps();
    guest.open();
    block_on(guest.image().flush()).unwrap();
    guest.close();
    let changes = |event: &&Event| matches!(event, Event::Change(_));
    assert_eq!(guest.lab.log().iter().filter(changes).count(), 0);
}

// peers.md I7: an image that is refused keeps its bitmaps.
#[test]
fn an_image_that_is_refused_for_writing_is_left_as_it_is() {
    if !has_qemu() {
        return;
    }
    // The last byte of the incompatible features: corrupt.
    {
        let (scratch, _) = with_bitmaps();
        let mut bytes = scratch.read("image");
        bytes[79] |= 2;
        let guest = Guest::over(Setup::new(65_536, 16), vec![bytes.clone()]);
        let access = cowl_storage::Access::ReadWrite;
        let limits = guest.setup.limits;
        assert!(block_on(crate::lab::open(&guest.files, None, access, limits)).is_err());
        assert!(guest.contents()[0].to_vec() == bytes);
        let writes = |event: &&Event| matches!(event, Event::Change(_));
        assert_eq!(guest.lab.log().iter().filter(writes).count(), 0);
    }
}
