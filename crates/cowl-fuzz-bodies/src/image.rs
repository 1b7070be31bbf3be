//! Whole files: open, read, check.

use std::sync::{Arc, Mutex, PoisonError};

use cowl_block::{ExtentKind, RawImage, RawOptions};
use cowl_format::{ByteCount, GuestOffset, Header};
use cowl_qcow2::{
    BeyondEnd, CacheLimits, Image, Layer, LayerFiles, LayerOptions, Offload, OffloadJob,
    read_bitmaps, read_header, read_snapshots,
};
use cowl_storage::IoBuffer;
use pollster::block_on;

use crate::seeds::SEEDS;
use crate::{Budget, BudgetStorage};

/// A few slices and one small cluster: everything is evicted while it is in use.
pub(crate) const TINY: CacheLimits =
    CacheLimits { l2_bytes: 2048, refcount_bytes: 512, decoded_bytes: 4096 };

/// Longest read.
const READ_MAX: u64 = 36 << 10;

/// Answers taken for the extents of one disk.
const ANSWERS_MAX: usize = 3;

/// What opening may read: the header twice, 32 MiB of L1, 64 MiB of snapshots in doubling steps.
const OPEN: Budget = Budget { reads: 64, bytes: 192 << 20 };

/// What reading may add: each piece is at least 512 bytes, and needs a slice and a cluster.
const READ: Budget = Budget { reads: 1 << 17, bytes: 1 << 30 };

/// Opens `data` as an image, alone and in a chain, and reads it.
pub fn open_read(data: &[u8]) {
    let Some(header) = open_header(data) else { return };
    if let Some(layer) = open_layer(data, &header, BeyondEnd::ReadZeros, None) {
        read_image(&Image::new(vec![layer], None), data);
    }
    // One more way to open it: all of them for each input would be slow.
    match noise(data) % 5 {
        0 => read_snapshot(data, &header, "1"),
        1 => read_snapshot(data, &header, "second"),
        2 => {
            if let Some(layer) = open_layer(data, &header, BeyondEnd::Refuse, None) {
                read_image(&Image::new(vec![layer], Some(base(data))), data);
            }
        }
        // Below an overlay, and above a base of another size.
        3 => {
            if let Some(layer) = open_layer(data, &header, BeyondEnd::ReadZeros, None) {
                read_image(&Image::new(vec![seed_layer(), layer], None), data);
            }
        }
        _ => {
            if let Some(layer) = open_layer(data, &header, BeyondEnd::ReadZeros, None) {
                read_image(&Image::new(vec![layer, seed_layer()], Some(base(data))), data);
            }
        }
    }
}

fn read_snapshot(data: &[u8], header: &Header, name: &str) {
    if let Some(layer) = open_layer(data, header, BeyondEnd::ReadZeros, Some(name)) {
        read_image(&Image::new(vec![layer], None), data);
    }
}

fn seed_layer() -> Layer<BudgetStorage> {
    let v3 = SEEDS[1].bytes;
    let header = open_header(v3).expect("a seed is valid");
    open_layer(v3, &header, BeyondEnd::ReadZeros, None).expect("a seed is valid")
}

/// A number that depends on every byte.
fn noise(data: &[u8]) -> u64 {
    let mix = |sum: u64, &byte: &u8| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    data.iter().fold(0x9e37_79b9_7f4a_7c15, mix) >> 7
}

fn open_header(data: &[u8]) -> Option<Header> {
    let file = BudgetStorage::new(data, OPEN);
    let header = block_on(read_header(&file)).ok()?;
    drop(block_on(read_snapshots(&file, &header)));
    drop(block_on(read_bitmaps(&file, &header)));
    Some(header)
}

fn open_layer(
    data: &[u8],
    header: &Header,
    beyond_end: BeyondEnd,
    snapshot: Option<&str>,
) -> Option<Layer<BudgetStorage>> {
    let budget = Budget { reads: OPEN.reads + READ.reads, bytes: OPEN.bytes + READ.bytes };
    let file = |bytes: &[u8]| Arc::new(BudgetStorage::new(bytes, budget));
    let data_file = header.has_data_file().then(|| file(&data[data.len() / 2..]));
    let files = LayerFiles { image: file(data), data: data_file };
    let snapshot = snapshot.map(str::to_owned);
    let access = cowl_storage::Access::ReadOnly;
    let options = LayerOptions { access, cache: TINY, beyond_end, snapshot, offload: None };
    block_on(Layer::open(files, header.clone(), options)).ok()
}

fn base(data: &[u8]) -> RawImage<BudgetStorage> {
    let file = BudgetStorage::new(&data[..data.len() / 3], READ);
    block_on(RawImage::open(file, RawOptions::whole_file())).expect("a window of memory")
}

/// Reads here and there, twice, in one piece and in many, and holds it against the extents.
fn read_image(image: &Image<BudgetStorage>, data: &[u8]) {
    let size = image.size().get();
    let mut noise = noise(data);
    let mut starts = vec![0, size / 2, size.saturating_sub(READ_MAX), size.saturating_sub(1)];
    for _ in 0..3 {
        noise = noise.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        starts.push((noise >> 3).checked_rem(size).unwrap_or(0));
    }
    for start in starts {
        read_range(image, start, READ_MAX.min(size - start));
    }
    for cluster in [0, 1, 5, 1 << 20] {
        drop(block_on(image.layers()[0].refcount(cowl_format::HostCluster::new(cluster))));
    }
    extents_of(image);
    let past = block_on(image.read_into(GuestOffset::new(size), &mut [0]));
    assert!(past.is_err(), "a read past the end");
}

fn read_range(image: &Image<BudgetStorage>, start: u64, length: u64) {
    let at = GuestOffset::new(start);
    let length = ByteCount::new(length).as_usize();
    let (cold, whole) = block_on(image.read(at, IoBuffer::zeroed(length)));
    let mut pieces = vec![0xee; length];
    let mut all = Ok(());
    for (index, piece) in pieces.chunks_mut(1000).enumerate() {
        let at = at + ByteCount::from_usize(index * 1000);
        all = all.and(block_on(image.read_into(at, piece)));
    }
    assert_eq!(cold.is_ok(), all.is_ok(), "at {start}: {cold:?}, in pieces {all:?}");
    if cold.is_ok() {
        assert!(*whole == *pieces, "at {start}: two reads differ");
        extents_agree(image, start, &whole);
    }
}

/// Extents that say zero must read as zeros.
fn extents_agree(image: &Image<BudgetStorage>, start: u64, bytes: &[u8]) {
    let length = ByteCount::from_usize(bytes.len());
    let extents = block_on(image.extents(GuestOffset::new(start), length));
    let mut next = start;
    for extent in extents.expect("the bytes could be read") {
        assert_eq!(extent.start.get(), next);
        assert!(0 < extent.length.get());
        let from = ByteCount::new(next - start).as_usize();
        let part = &bytes[from..from + extent.length.as_usize()];
        let zero = matches!(extent.kind, ExtentKind::Zero { .. } | ExtentKind::Unallocated { .. });
        assert!(!zero || part.iter().all(|&byte| byte == 0), "{extent:?} does not read as zeros");
        next += extent.length.get();
    }
}

fn extents_of(image: &Image<BudgetStorage>) {
    let end = GuestOffset::ZERO + image.size();
    let mut next = GuestOffset::ZERO;
    for _ in 0..ANSWERS_MAX {
        let Ok(extents) = block_on(image.extents(next, end.since(next))) else { return };
        let Some(last) = extents.last() else {
            assert_eq!(next, end);
            return;
        };
        next = last.start + last.length;
        assert!(next <= end);
    }
}

/// Checks `data` as an image, with jobs run at once and with jobs run late and backwards.
pub fn check(data: &[u8]) {
    let length = data.len() as u64;
    // Each table once, tables that lie over each other as far as the check follows them, and the
    // refcount table, which has a limit of its own.
    let bytes = OPEN.bytes + (8 << 20) + 8 * length;
    let budget = Budget { reads: 4096 + length / 16, bytes };
    let file = BudgetStorage::new(data, budget);
    let Ok(header) = block_on(read_header(&file)) else { return };
    let now = block_on(cowl_qcow2::check(&file, &header, None, &())).expect("memory does not fail");
    let file = BudgetStorage::new(data, budget);
    let offload = Arc::new(Backwards::default());
    let late =
        block_on(drive(&offload, cowl_qcow2::check(&file, &header, Some(offload.clone()), &())));
    let late = late.expect("memory does not fail");
    assert_eq!(late, now, "the report depends on the order of work");
    let counted = now.corruptions + now.leaks + now.check_errors;
    assert_eq!(now.is_clean(), counted == 0);
    assert_eq!(now.findings.is_empty(), counted == 0);
    // Two bytes for each cluster of the smallest size, the refcount table, and the numbers over
    // 254.
    assert!(now.memory_bytes <= (16 << 20) + 128 * (length / 512 + 2), "{}", now.memory_bytes);
}

/// Runs the newest job first, and only when nothing else can go on.
#[derive(Default)]
struct Backwards {
    jobs: Mutex<Vec<OffloadJob>>,
}

impl Offload for Backwards {
    fn submit(&self, job: OffloadJob) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).push(job);
    }
}

impl Backwards {
    fn run_one(&self) -> bool {
        let job = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).pop();
        job.map(|job| job()).is_some()
    }
}

/// Polls `future`; whenever it waits, runs one job.
async fn drive<T>(offload: &Backwards, future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| {
        loop {
            let poll = future.as_mut().poll(context);
            if poll.is_ready() {
                return poll;
            }
            assert!(offload.run_one(), "waits for nothing");
        }
    })
    .await
}
