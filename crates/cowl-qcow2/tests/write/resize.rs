//! Growing and shrinking, with every preallocation, and the commits that nobody waits for.

use std::sync::Arc;

use cowl_block::BlockDevice;
use cowl_format::{ByteCount, GuestOffset, Version};
use cowl_qcow2::{
    BeyondEnd, BuilderFiles, CreateOptions, Image, Layer, LayerFiles, LayerOptions, Preallocation,
    check, create, read_header,
};
use cowl_storage::{Access, FaultRule, FaultStorage, MemoryStorage, Purpose};
use futures_util::future::{Either, select};
use pollster::block_on;

use crate::subject::{Noise, Subject, TINY};

const MODES: [Preallocation; 4] =
    [Preallocation::Off, Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full];

fn run(seed: u64, options: &CreateOptions, base: Option<Vec<u8>>) {
    let what = format!("seed {seed}, {options:?}");
    let mut noise = Noise(seed);
    let mut subject = Subject::new(options, base, TINY);
    for round in 0..8_u64 {
        let image = subject.open(Access::ReadWrite);
        for _ in 0..30 {
            subject.step(&image, &mut noise, options.cluster_size);
        }
        // Mostly up and down by a few clusters, now and then past the reach of the L1 table.
        let scale = if round == 5 { 3 << 20 } else { 40 * options.cluster_size };
        let size = (1 + noise.next(scale / 512)) * 512;
        let old = subject.model.len() as u64;
        let mode = if size < old { Preallocation::Off } else { MODES[noise.next(4) as usize] };
        block_on(image.resize(ByteCount::new(size), mode)).unwrap();
        subject.model.resize(size as usize, 0);
        subject.compare(&image, &what);
        for _ in 0..30 {
            subject.step(&image, &mut noise, options.cluster_size);
        }
        subject.compare(&image, &what);
        block_on(image.close()).unwrap();
        subject.check(0, &format!("{what}, round {round}"));
        subject.compare(&subject.open(Access::ReadOnly), &what);
    }
}

#[test]
fn sizes_go_up_and_down() {
    for seed in 0..6 {
        for cluster_size in [512, 4096, 16_384] {
            let options =
                CreateOptions { cluster_size, ..CreateOptions::new(ByteCount::new(100_352)) };
            run(seed, &options, None);
            run(seed + 100, &options, Some(vec![0x5a; 150_000]));
            let old = CreateOptions { version: Version::V2, ..options.clone() };
            run(seed + 200, &old, None);
            let data_file = Some(b"data".to_vec());
            let outside =
                CreateOptions { data_file, data_file_raw: seed % 2 == 0, ..options.clone() };
            run(seed + 300, &outside, None);
        }
        let options = CreateOptions {
            extended_l2: true,
            cluster_size: 16_384,
            ..CreateOptions::new(ByteCount::new(100_352))
        };
        run(seed + 400, &options, Some(vec![0x5a; 150_000]));
    }
}

#[test]
fn a_size_that_cannot_be_is_refused_and_changes_nothing() {
    let options = CreateOptions::new(ByteCount::new(1 << 20));
    let subject = Subject::new(&options, None, TINY);
    let image = subject.open(Access::ReadWrite);
    let resize = |size, mode| block_on(image.resize(ByteCount::new(size), mode));
    assert!(resize(1000, Preallocation::Off).is_err());
    assert!(resize(!511, Preallocation::Off).is_err());
    assert!(resize(512, Preallocation::Full).is_err());
    subject.compare(&image, "after refusals");
}

#[test]
fn a_background_commit_writes_what_waits() {
    let options =
        CreateOptions { cluster_size: 512, ..CreateOptions::new(ByteCount::new(1 << 20)) };
    let subject = Subject::new(&options, None, TINY);
    let image = subject.open(Access::ReadWrite);
    let writes = async {
        for index in 0..200 {
            image.write_from(GuestOffset::new(index * 5000), &[7; 100]).await.unwrap();
        }
    };
    match block_on(select(Box::pin(writes), Box::pin(image.background()))) {
        Either::Left(_) => {}
        Either::Right((result, _)) => panic!("the background ended: {result:?}"),
    }
    // The first tick only looks; the second one finds what still waits.
    block_on(image.write_from(GuestOffset::new(3), &[8])).unwrap();
    let before = image.stats().barriers;
    block_on(image.tick()).unwrap();
    assert_eq!(image.stats().barriers, before);
    block_on(image.tick()).unwrap();
    assert!(before < image.stats().barriers);
    let after = image.stats().barriers;
    block_on(BlockDevice::flush(&image)).unwrap();
    assert_eq!(image.stats().barriers, after, "nothing is left to flush");
}

#[test]
fn a_preallocation_that_fails_leaves_the_old_size() {
    for mode in [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full] {
        for after in 0..3 {
            let file = Arc::new(FaultStorage::new(MemoryStorage::new()));
            let files = BuilderFiles { image: Arc::clone(&file), data: None };
            let options =
                CreateOptions { cluster_size: 4096, ..CreateOptions::new(ByteCount::new(40_960)) };
            block_on(create(files, &options, Preallocation::Off)).unwrap();
            let header = block_on(read_header(file.as_ref())).unwrap();
            let options = LayerOptions {
                access: Access::ReadWrite,
                cache: TINY,
                beyond_end: BeyondEnd::ReadZeros,
                snapshot: None,
                offload: None,
            };
            let files = LayerFiles { image: Arc::clone(&file), data: None };
            let layer = block_on(Layer::open(files, header, options)).unwrap();
            let image = Image::new(vec![layer], None);
            block_on(image.write_from(GuestOffset::new(5000), &[9; 9000])).unwrap();
            let is_purpose = FaultRule::fail(28).purpose(Purpose::Preallocation);
            file.add(is_purpose.after(after).times(1));
            let grown = block_on(image.resize(ByteCount::new(8 << 20), mode));
            match grown {
                Ok(()) => assert_eq!(image.size().get(), 8 << 20),
                Err(error) => {
                    assert_eq!(error.errno(), 28);
                    assert_eq!(image.size().get(), 40_960);
                    block_on(image.resize(ByteCount::new(8 << 20), mode)).unwrap();
                }
            }
            let mut bytes = vec![1; 8 << 20];
            block_on(image.read_into(GuestOffset::ZERO, &mut bytes)).unwrap();
            assert!(bytes[5000..14_000].iter().all(|byte| *byte == 9));
            assert!(bytes[14_000..].iter().all(|byte| *byte == 0));
            block_on(image.close()).unwrap();
            let header = block_on(read_header(file.as_ref())).unwrap();
            let report = block_on(check(file.as_ref(), &header, None, &())).unwrap();
            assert!(report.is_clean(), "{mode:?}, after {after}: {report:?}");
        }
    }
}
