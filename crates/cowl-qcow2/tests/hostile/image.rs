//! Valid images to break, and short words for what comes of it.

use std::sync::Arc;

use cowl_format::{ByteCount, Corruption, GuestOffset, Header};
use cowl_fuzz_bodies::{Budget, BudgetStorage, SEEDS};
use cowl_qcow2::{
    BeyondEnd, CacheLimits, CheckReport, Error, Image, Layer, LayerFiles, LayerOptions, read_header,
};
use pollster::block_on;

/// The file of a seed.
pub(crate) fn seed(name: &str) -> Vec<u8> {
    let seed = SEEDS.iter().find(|seed| seed.name == name);
    seed.unwrap_or_else(|| panic!("no seed {name}")).bytes.to_vec()
}

/// A seed with bytes changed.
pub(crate) fn edited(name: &str, edits: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = seed(name);
    for (at, new) in edits {
        put(&mut bytes, *at, new);
    }
    bytes
}

/// Overwrites bytes; the file grows where needed.
pub(crate) fn put(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    if bytes.len() < at + new.len() {
        bytes.resize(at + new.len(), 0);
    }
    bytes[at..at + new.len()].copy_from_slice(new);
}

pub(crate) fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The offset in a table entry.
pub(crate) fn pointer(bytes: &[u8], at: usize) -> usize {
    ByteCount::new(word(bytes, at) & 0x00ff_ffff_ffff_fe00).as_usize()
}

/// What reading a small file may ask for: a few times what it holds.
pub(crate) fn file(bytes: &[u8]) -> Arc<BudgetStorage> {
    let length = bytes.len() as u64;
    let budget = Budget { reads: 2000 + length / 8, bytes: (8 << 20) + 64 * length };
    Arc::new(BudgetStorage::new(bytes, budget))
}

pub(crate) fn header(bytes: &[u8]) -> Result<Header, Error> {
    block_on(read_header(&*file(bytes)))
}

/// Opens with caches of a few slices.
pub(crate) fn open_as(
    bytes: &[u8],
    beyond_end: BeyondEnd,
    snapshot: Option<&str>,
) -> Result<Image<BudgetStorage>, Error> {
    let header = header(bytes)?;
    let data = header.has_data_file().then(|| file(&[0x5a; 3000]));
    let options = LayerOptions {
        access: cowl_storage::Access::ReadOnly,
        cache: CacheLimits { l2_bytes: 2048, refcount_bytes: 512, decoded_bytes: 8192 },
        beyond_end,
        snapshot: snapshot.map(str::to_owned),
        offload: None,
    };
    let files = LayerFiles { image: file(bytes), data };
    Ok(Image::new(vec![block_on(Layer::open(files, header, options))?], None))
}

pub(crate) fn open(bytes: &[u8]) -> Result<Image<BudgetStorage>, Error> {
    open_as(bytes, BeyondEnd::ReadZeros, None)
}

/// Reads one byte.
pub(crate) fn byte_at(image: &Image<BudgetStorage>, at: u64) -> Result<u8, Error> {
    let mut byte = [0];
    block_on(image.read_into(GuestOffset::new(at), &mut byte)).map(|()| byte[0])
}

pub(crate) fn check(bytes: &[u8]) -> CheckReport {
    let file = file(bytes);
    let header = block_on(read_header(&*file)).unwrap();
    block_on(cowl_qcow2::check(&*file, &header, None, &())).unwrap()
}

pub(crate) fn corruption<T>(result: Result<T, Error>) -> Corruption {
    match result {
        Err(Error::Corrupt { corruption, .. }) => corruption,
        Err(other) => panic!("another error: {other}"),
        Ok(_) => panic!("it went through"),
    }
}

/// Asserts that `$result` is the corruption `$pattern`.
macro_rules! refused {
    ($result:expr, $pattern:pat $(if $guard:expr)?) => {
        match $crate::image::corruption($result) {
            $pattern $(if $guard)? => {}
            other => panic!("refused for another reason: {other:?}"),
        }
    };
}
pub(crate) use refused;
