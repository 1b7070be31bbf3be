//! Long chains of layers of different sizes and geometries: what was found on the way to a byte is
//! remembered, and must never be told of another byte or after a write.

use std::sync::Arc;

use cowl_block::ZeroRequest;
use cowl_format::{ByteCount, GuestOffset};
use cowl_qcow2::{BuilderFiles, CacheLimits, CreateOptions, Image, Preallocation, create};
use cowl_storage::{Access, MemoryStorage, Storage};
use pollster::block_on;

use crate::subject::{Noise, TINY, open_base, open_layer};

const SIZE: u64 = 2 << 20;

/// Cluster sizes; with subclusters from 16 KiB on, now and then. A chain that has none below the
/// second one has layers that end within what all of them map together.
const CLUSTERS: [u64; 4] = [512, 4096, 16_384, 65_536];

struct Chain {
    /// The top one first.
    files: Vec<Arc<MemoryStorage>>,
    base: Option<Vec<u8>>,
    model: Vec<u8>,
    limits: CacheLimits,
    is_coarse: bool,
}

impl Chain {
    fn new(noise: &mut Noise, limits: CacheLimits, is_coarse: bool) -> Self {
        let length = SIZE / 2 + 512 * noise.next(2000);
        let bytes: Vec<u8> = (0..length).map(|at| (at / 700) as u8).collect();
        let base = (noise.next(2) == 0).then_some(bytes);
        let model = base.clone().unwrap_or_default();
        Self { files: Vec::new(), base, model, limits, is_coarse }
    }

    fn push(&mut self, noise: &mut Noise) {
        let cluster_size = match self.is_coarse {
            true => CLUSTERS[2 + noise.next(2) as usize],
            false => CLUSTERS[noise.next(4) as usize],
        };
        // Sizes that end within clusters, above and below each other.
        let size = SIZE - 512 * noise.next(300);
        let options = CreateOptions {
            cluster_size,
            extended_l2: 16_384 <= cluster_size && !self.is_coarse && noise.next(2) == 0,
            backing: Some(b"below".to_vec()),
            ..CreateOptions::new(ByteCount::new(size))
        };
        let file = Arc::new(MemoryStorage::new());
        let files = BuilderFiles { image: Arc::clone(&file), data: None };
        block_on(create(files, &options, Preallocation::Off)).unwrap();
        self.files.insert(0, file);
        self.model.resize(size as usize, 0);
    }

    fn image(&self) -> Image<MemoryStorage> {
        let accesses =
            std::iter::once(Access::ReadWrite).chain(std::iter::repeat(Access::ReadOnly));
        let layers = self.files.iter().zip(accesses);
        let layers = layers.map(|(file, access)| open_layer(file, None, access, self.limits));
        Image::new(layers.collect(), self.base.as_deref().map(open_base))
    }

    fn read(&self, image: &Image<MemoryStorage>, at: usize, length: usize) {
        let length = length.min(self.model.len() - at);
        let mut bytes = vec![0; length];
        block_on(image.read_into(GuestOffset::new(at as u64), &mut bytes)).unwrap();
        let same = bytes == self.model[at..at + length];
        assert!(same, "{length} bytes at {at:#x}, {} layers", self.files.len());
    }

    /// Gives the layer something that a shorter one above it hides.
    fn fill_the_end(&mut self, image: &Image<MemoryStorage>, byte: u8) {
        let at = self.model.len() - (100 << 10);
        let bytes = vec![byte; self.model.len() - at];
        block_on(image.write_from(GuestOffset::new(at as u64), &bytes)).unwrap();
        self.model[at..].fill(byte);
    }

    fn step(&mut self, image: &Image<MemoryStorage>, noise: &mut Noise) {
        let at = noise.next(self.model.len() as u64) as usize;
        let length = (1 + noise.next(9000) as usize).min(self.model.len() - at);
        let guest = GuestOffset::new(at as u64);
        match noise.next(10) {
            0 => {
                let byte = 1 + noise.next(255) as u8;
                block_on(image.write_from(guest, &vec![byte; length])).unwrap();
                self.model[at..at + length].fill(byte);
            }
            1 => {
                let count = ByteCount::from_usize(length);
                block_on(image.zero(guest, count, ZeroRequest::MayUnmap)).unwrap();
                self.model[at..at + length].fill(0);
            }
            // The same places again and again, from both sides of every boundary.
            _ => {
                let at = at / 512 * 512;
                self.read(image, at, 512);
                self.read(image, at, 4096);
                self.read(image, at.saturating_sub(1), 2);
            }
        }
    }
}

#[test]
fn what_a_search_has_found_is_true_for_its_granule_only() {
    for seed in 0..48 {
        let mut noise = Noise(seed);
        let limits = if seed % 2 == 0 { TINY } else { CacheLimits::STANDARD };
        let mut chain = Chain::new(&mut noise, limits, seed % 4 < 2);
        for _ in 0..7 {
            chain.push(&mut noise);
            let image = chain.image();
            if noise.next(2) == 0 {
                chain.fill_the_end(&image, 1 + noise.next(255) as u8);
            }
            for _ in 0..300 {
                chain.step(&image, &mut noise);
            }
            for at in (0..chain.model.len()).step_by(512) {
                chain.read(&image, at, 512);
            }
            chain.read(&image, 0, chain.model.len());
            block_on(image.close()).unwrap();
        }
    }
}

#[test]
fn giving_up_what_is_not_there_takes_nothing_although_the_disk_ends_within_a_cluster() {
    let size = (1 << 20) + 512;
    let file = Arc::new(MemoryStorage::new());
    let files = BuilderFiles { image: Arc::clone(&file), data: None };
    let options = CreateOptions::new(ByteCount::new(size));
    block_on(create(files, &options, Preallocation::Off)).unwrap();
    let before = block_on(file.len()).unwrap();
    let chain = Chain {
        files: vec![Arc::clone(&file)],
        base: None,
        model: vec![0; size as usize],
        limits: TINY,
        is_coarse: true,
    };
    let image = chain.image();
    block_on(image.discard(GuestOffset::ZERO, ByteCount::new(size))).unwrap();
    block_on(image.zero(GuestOffset::ZERO, ByteCount::new(size), ZeroRequest::MayUnmap)).unwrap();
    block_on(image.close()).unwrap();
    assert_eq!(block_on(file.len()).unwrap(), before);
}
