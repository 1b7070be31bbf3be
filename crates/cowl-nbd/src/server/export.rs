//! Exports: devices by name, each with a window and rights.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use cowl_block::{BlockDevice, DirtyBitmap};
use cowl_format::GuestOffset;

use crate::protocol::handshake::{Catalogue, Facts};
use crate::protocol::limits::BITMAP_COUNT_MAX;

/// How clients are answered who want zeros only if they are fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastZero {
    /// Zeroing is a matter of metadata, as in qcow2.
    Always,
    /// It may write zeros, so such requests fail at once.
    Never,
}

/// What becomes of the clients of an export that is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// They keep it for as long as they stay.
    Stay,
    /// Their connections are cut.
    Cut,
}

/// A device, or a part of one, under a name.
pub struct Export<E> {
    /// Its name; the empty name serves clients that give none, as does the first export.
    pub name: String,
    /// A text for people; may be empty.
    pub description: String,
    /// The device.
    pub device: Arc<E>,
    /// First byte of the device that clients see.
    pub start: u64,
    /// Number of bytes that they see; `None` for all to the end, wherever it is.
    pub length: Option<u64>,
    /// Whether changes are refused, also where the device takes them.
    pub read_only: bool,
    /// About zeros that must be fast.
    pub fast_zero: FastZero,
    /// Dirty bitmaps that clients can ask about, at most [`BITMAP_COUNT_MAX`], with their names.
    /// They are those of the device, and stay as they are.
    pub bitmaps: Vec<(String, Arc<DirtyBitmap>)>,
}

impl<E: BlockDevice> Export<E> {
    /// All of `device` under `name`, to be changed where the device can be.
    #[must_use]
    pub fn whole(name: impl Into<String>, device: Arc<E>) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            device,
            start: 0,
            length: None,
            read_only: false,
            fast_zero: FastZero::Never,
            bitmaps: Vec::new(),
        }
    }

    /// Bytes that clients see, at the moment.
    #[must_use]
    pub fn size(&self) -> u64 {
        let rest = self.device.size().get().saturating_sub(self.start);
        self.length.map_or(rest, |length| length.min(rest))
    }

    /// Where a byte of the export lies in the device.
    pub(crate) fn place(&self, at: u64) -> GuestOffset {
        GuestOffset::new(self.start + at)
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only || self.device.is_read_only()
    }

    fn facts(&self) -> Facts {
        // The document asks for at least 4 KiB as the preferred size, and for a power of two.
        let block = self.device.request_alignment().get().clamp(4096, 64 << 10);
        Facts {
            name: self.name.clone(),
            description: self.description.clone(),
            size: self.size(),
            read_only: self.is_read_only(),
            preferred_block: u32::try_from(block.next_power_of_two()).unwrap_or(4096),
            bitmaps: self.bitmaps.iter().map(|(name, _)| name.clone()).collect(),
        }
    }
}

/// An export, and whether its clients have to go.
pub struct Offer<E> {
    pub(crate) export: Arc<Export<E>>,
    pub(crate) revoked: Arc<AtomicBool>,
}

impl<E> Offer<E> {
    fn new(export: Export<E>) -> Self {
        assert!(export.bitmaps.len() <= BITMAP_COUNT_MAX);
        Self { export: Arc::new(export), revoked: Arc::default() }
    }
}

/// The exports of a server.
pub struct Exports<E> {
    list: RwLock<Vec<Offer<E>>>,
    /// The name of the export that clients get who give none, from the beginning on: when it is
    /// removed they get nothing, and never a disk that they did not have before.
    default: OnceLock<String>,
}

impl<E: BlockDevice> Exports<E> {
    /// These exports. The one without a name, else the first, is what clients get who name none;
    /// it stays the default, also when it is removed. Without exports that is the first one added.
    #[must_use]
    pub fn new(list: impl IntoIterator<Item = Export<E>>) -> Self {
        let list: Vec<_> = list.into_iter().map(Offer::new).collect();
        let nameless = list.iter().find(|offer| offer.export.name.is_empty());
        let default = nameless.or(list.first()).map(|offer| offer.export.name.clone());
        let default = default.map_or_else(OnceLock::new, OnceLock::from);
        Self { list: RwLock::new(list), default }
    }

    /// Adds an export; gives it back when there is one of that name.
    pub fn add(&self, export: Export<E>) -> Result<(), Export<E>> {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        if list.iter().any(|known| known.export.name == export.name) {
            return Err(export);
        }
        self.default.get_or_init(|| export.name.clone());
        list.push(Offer::new(export));
        Ok(())
    }

    /// Takes an export away from new connections. Those that have it keep it, or are cut within
    /// seconds. Says whether there was one.
    pub fn remove(&self, name: &str, clients: Clients) -> bool {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = list.iter().position(|offer| offer.export.name == name) else {
            return false;
        };
        let offer = list.remove(at);
        offer.revoked.store(clients == Clients::Cut, Ordering::SeqCst);
        true
    }
}

impl<E: BlockDevice> Catalogue for Exports<E> {
    type Export = Offer<E>;

    fn find(&self, name: &[u8]) -> Option<(Self::Export, Facts)> {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        let of_name = |name: &[u8]| {
            let is_it = |offer: &&Offer<E>| offer.export.name.as_bytes() == name;
            list.iter().find(is_it)
        };
        let default = || self.default.get().filter(|_| name.is_empty());
        let by_default = || default().and_then(|name| of_name(name.as_bytes()));
        let Offer { export, revoked } = of_name(name).or_else(by_default)?;
        let facts = export.facts();
        Some((Offer { export: Arc::clone(export), revoked: Arc::clone(revoked) }, facts))
    }

    fn names(&self) -> Vec<(String, String)> {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        let named =
            |offer: &Offer<E>| (offer.export.name.clone(), offer.export.description.clone());
        list.iter().map(named).collect()
    }
}
