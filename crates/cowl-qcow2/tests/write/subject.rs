//! An image in memory that is written to, and what it has to read as.

use std::sync::Arc;

use cowl_block::{BlockDevice, RawImage, RawOptions, ZeroRequest};
use cowl_format::{ByteCount, GuestOffset, IncompatibleFeatures};
use cowl_qcow2::{
    BeyondEnd, BuilderFiles, CacheLimits, CreateOptions, Image, Layer, LayerFiles, LayerOptions,
    Preallocation, check, create, read_header,
};
use cowl_storage::{Access, MemoryStorage};
use pollster::block_on;

/// A few slices and blocks: everything is evicted while it is in use.
pub(crate) const TINY: CacheLimits =
    CacheLimits { l2_bytes: 4096, refcount_bytes: 4096, decoded_bytes: 8192 };

/// A reproducible stream of numbers.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % below
    }
}

/// The layer in `file`.
pub(crate) fn open_layer(
    file: &Arc<MemoryStorage>,
    data: Option<Arc<MemoryStorage>>,
    access: Access,
    cache: CacheLimits,
) -> Layer<MemoryStorage> {
    let header = block_on(read_header(file.as_ref())).unwrap();
    let beyond_end = BeyondEnd::ReadZeros;
    let options = LayerOptions { access, cache, beyond_end, snapshot: None, offload: None };
    let files = LayerFiles { image: Arc::clone(file), data };
    block_on(Layer::open(files, header, options)).unwrap()
}

/// A raw image with this content.
pub(crate) fn open_base(bytes: &[u8]) -> RawImage<MemoryStorage> {
    let storage = MemoryStorage::from_vec(bytes.to_vec());
    block_on(RawImage::open(storage, RawOptions::whole_file())).unwrap()
}

/// An image, its files and its model.
pub(crate) struct Subject {
    pub(crate) file: Arc<MemoryStorage>,
    pub(crate) data: Option<Arc<MemoryStorage>>,
    pub(crate) base: Option<Vec<u8>>,
    pub(crate) limits: CacheLimits,
    pub(crate) model: Vec<u8>,
    pub(crate) version_2: bool,
}

impl Subject {
    pub(crate) fn new(options: &CreateOptions, base: Option<Vec<u8>>, limits: CacheLimits) -> Self {
        let file = Arc::new(MemoryStorage::new());
        let data = options.data_file.as_ref().map(|_| Arc::new(MemoryStorage::new()));
        let files = BuilderFiles { image: Arc::clone(&file), data: data.clone() };
        block_on(create(files, options, Preallocation::Off)).unwrap();
        let mut model = vec![0; options.size.as_usize()];
        if let Some(base) = &base {
            let length = base.len().min(model.len());
            model[..length].copy_from_slice(&base[..length]);
        }
        let version_2 = options.version == cowl_format::Version::V2;
        Self { file, data, base, limits, model, version_2 }
    }

    pub(crate) fn open(&self, access: Access) -> Image<MemoryStorage> {
        let layer = open_layer(&self.file, self.data.clone(), access, self.limits);
        Image::new(vec![layer], self.base.as_deref().map(open_base))
    }

    /// Compares everything the guest sees with the model.
    pub(crate) fn compare(&self, image: &Image<MemoryStorage>, what: &str) {
        assert_eq!(image.size().as_usize(), self.model.len(), "{what}");
        let mut bytes = vec![0; self.model.len()];
        block_on(image.read_into(GuestOffset::ZERO, &mut bytes)).unwrap();
        if let Some(at) = bytes.iter().zip(&self.model).position(|(a, b)| a != b) {
            panic!("{what}: byte {at:#x} is {:#x} and not {:#x}", bytes[at], self.model[at]);
        }
    }

    /// Whether the refcounts are out of date.
    pub(crate) fn is_dirty(&self) -> bool {
        let header = block_on(read_header(self.file.as_ref())).unwrap();
        header.incompatible.contains(IncompatibleFeatures::DIRTY)
    }

    /// Checks the metadata: no corruption, and no more leaks than this.
    pub(crate) fn check(&self, leaks_max: u64, what: &str) {
        let header = block_on(read_header(self.file.as_ref())).unwrap();
        let report = block_on(check(self.file.as_ref(), &header, None, &())).unwrap();
        let clean = report.corruptions == 0 && report.check_errors == 0;
        assert!(clean && report.leaks <= leaks_max, "{what}: {report:?}");
    }

    /// One random operation on the image and the model.
    pub(crate) fn step(&mut self, image: &Image<MemoryStorage>, noise: &mut Noise, unit: u64) {
        let size = self.model.len() as u64;
        let at = noise.next(size);
        let scale = [1, 512, unit, 4 * unit, 16 * unit][noise.next(5) as usize];
        let length = 1 + noise.next(scale);
        let (at, length) = match noise.next(3) {
            0 => (at, length),
            1 => (at / 512 * 512, length.next_multiple_of(512)),
            _ => (at / unit * unit, length.next_multiple_of(unit)),
        };
        let length = length.min(size - at);
        let range = at as usize..(at + length) as usize;
        let guest = GuestOffset::new(at);
        let count = ByteCount::new(length);
        match noise.next(20) {
            0..9 => {
                let value = 1 + noise.next(255) as u8;
                block_on(image.write_from(guest, &vec![value; length as usize])).unwrap();
                self.model[range].fill(value);
            }
            9..11 => {
                block_on(image.zero(guest, count, ZeroRequest::MayUnmap)).unwrap();
                self.model[range].fill(0);
            }
            11..13 => {
                block_on(image.zero(guest, count, ZeroRequest::KeepAllocated)).unwrap();
                self.model[range].fill(0);
            }
            13..15 => self.discard(image, guest, count, unit),
            15..17 if self.data.is_none() => {
                let at = at / unit * unit;
                let length = unit.min(size - at);
                let seed = noise.next(255) as u8;
                let bytes: Vec<u8> =
                    (0..length).map(|i| seed.wrapping_add((i / 64) as u8)).collect();
                block_on(image.write_compressed(GuestOffset::new(at), &bytes)).unwrap();
                self.model[at as usize..(at + length) as usize].copy_from_slice(&bytes);
            }
            17 => block_on(BlockDevice::flush(image)).unwrap(),
            _ => {
                let mut bytes = vec![0; length as usize];
                block_on(image.read_into(guest, &mut bytes)).unwrap();
                assert_eq!(bytes, self.model[range], "read at {at:#x}");
            }
        }
    }

    fn discard(
        &mut self,
        image: &Image<MemoryStorage>,
        at: GuestOffset,
        length: ByteCount,
        unit: u64,
    ) {
        block_on(image.discard(at, length)).unwrap();
        let end = at + length;
        let first = at.get().next_multiple_of(unit);
        let is_end = end.get() == self.model.len() as u64;
        let last = if is_end { end.get() } else { end.get() / unit * unit };
        if first < last && !(self.version_2 && self.base.is_some()) {
            self.model[first as usize..last as usize].fill(0);
        }
    }
}
