//! The exports of a daemon, and the disks under them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cowl::Preallocation;
use cowl_format::ByteCount;
use cowl_nbd::{Clients, Export, Exports, FastZero, Server};

use crate::counters::Counters;
use crate::disk::{DiskRef, ServedDisk};
use crate::error::ServeError;
use crate::export::{Bitmaps, ExportOptions};

/// An export that clients can have.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) options: ExportOptions,
    pub(crate) disk: DiskRef,
    pub(crate) counters: Arc<Counters>,
}

/// Whether a disk may lose what lies behind its new end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    Accepted,
    Refused,
}

/// All of them, by name.
pub(crate) struct ExportTable {
    pub(crate) server: Server<ServedDisk>,
    /// The server of virtual machines, until it has ended; its exports stay as they are.
    pub(crate) machines: Mutex<Option<cowl_vhost_user::Server<ServedDisk>>>,
    entries: Mutex<BTreeMap<String, Entry>>,
}

/// What a new export stands on.
pub(crate) enum Ground {
    /// A disk that another export has already.
    Shared(DiskRef),
    /// A disk that was opened for it.
    New(DiskRef),
}

impl Ground {
    pub(crate) fn disk(&self) -> &DiskRef {
        match self {
            Self::Shared(disk) | Self::New(disk) => disk,
        }
    }
}

/// The export as the NBD server has it.
pub(crate) fn nbd_export(
    options: &ExportOptions,
    served: ServedDisk,
    bitmaps: Bitmaps,
) -> Export<ServedDisk> {
    // Zeros are metadata in qcow2 and a hole in a file; on a device they may be writes.
    Export {
        description: options.description.clone(),
        start: options.start,
        length: options.length,
        read_only: options.is_read_only(),
        fast_zero: FastZero::Always,
        bitmaps,
        ..Export::whole(options.name.clone(), Arc::new(served))
    }
}

impl ExportTable {
    pub(crate) fn new(
        server: Server<ServedDisk>,
        machines: Option<cowl_vhost_user::Server<ServedDisk>>,
        entries: Vec<Entry>,
    ) -> Self {
        let by_name = entries.into_iter().map(|entry| (entry.options.name.clone(), entry));
        let entries = Mutex::new(by_name.collect());
        Self { server, machines: Mutex::new(machines), entries }
    }

    /// The server of virtual machines, if there is one.
    pub(crate) fn machines(&self) -> Option<cowl_vhost_user::Server<ServedDisk>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// No server runs any more: lets go of what they hold besides the exports.
    pub(crate) fn servers_have_ended(&self) {
        drop(self.machines.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All exports at the moment.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.lock().values().cloned().collect()
    }

    pub(crate) fn find(&self, name: &str) -> Result<Entry, ServeError> {
        let no_such = || ServeError::NoSuchExport { name: name.to_owned() };
        self.lock().get(name).cloned().ok_or_else(no_such)
    }

    /// Opens the image of a new export, unless another export has it open.
    pub(crate) async fn ground(&self, options: &ExportOptions) -> Result<Ground, ServeError> {
        options.check_texts()?;
        if self.lock().contains_key(&options.name) {
            return Err(ServeError::NameTaken { name: options.name.clone() });
        }
        let shares = |entry: &&Entry| entry.options.shares_disk_with(&entry.disk, options);
        let shared = self.lock().values().find(shares).map(|entry| entry.disk.clone());
        let ground = match shared {
            Some(disk) => Ground::Shared(disk),
            None => Ground::New(options.open().await?),
        };
        options.check_window(cowl::BlockDevice::size(&ground.disk().disk).get())?;
        Ok(ground)
    }

    /// Shows a new export to clients.
    pub(crate) fn add(
        &self,
        options: ExportOptions,
        disk: DiskRef,
        bitmaps: Bitmaps,
    ) -> Result<(), ServeError> {
        let served = ServedDisk::new(disk.clone(), options.rules);
        let counters = Arc::clone(&served.counters);
        let name = options.name.clone();
        let mut entries = self.lock();
        if self.server.exports().add(nbd_export(&options, served, bitmaps)).is_err() {
            return Err(ServeError::NameTaken { name });
        }
        entries.insert(name, Entry { options, disk, counters });
        Ok(())
    }

    /// Takes an export away. Gives back its disk where no other export has it.
    pub(crate) fn remove(
        &self,
        name: &str,
        clients: Clients,
    ) -> Result<Option<DiskRef>, ServeError> {
        let options = self.find(name)?.options;
        if options.vhost_user.is_some() || options.fuse.is_some() {
            return Err(ServeError::Fixed { name: name.to_owned() });
        }
        self.take(name, clients)
    }

    /// Takes all exports away, those that stay until the end too, and gives back their disks, each
    /// once.
    pub(crate) fn remove_all(&self) -> Vec<DiskRef> {
        let names: Vec<_> = self.lock().keys().cloned().collect();
        let take = |name: String| self.take(&name, Clients::Cut).ok().flatten();
        names.into_iter().filter_map(take).collect()
    }

    fn take(&self, name: &str, clients: Clients) -> Result<Option<DiskRef>, ServeError> {
        let mut entries = self.lock();
        let Some(entry) = entries.remove(name) else {
            return Err(ServeError::NoSuchExport { name: name.to_owned() });
        };
        self.server.exports().remove(name, clients);
        let is_used = entries.values().any(|other| other.disk.is_same(&entry.disk));
        Ok((!is_used).then(|| entry.disk.clone()))
    }

    /// Makes everything durable that clients were told is done.
    pub(crate) async fn flush(&self, entry: &Entry) -> Result<(), ServeError> {
        let fail = |source| ServeError::Request { path: entry.options.path.clone(), source };
        cowl::BlockDevice::flush(&entry.disk.disk).await.map_err(fail)
    }

    /// Changes the size of the disk under `entry`, for all exports of it.
    pub(crate) async fn resize(
        &self,
        entry: &Entry,
        size: u64,
        loss: Loss,
    ) -> Result<(), ServeError> {
        let fail = |source| ServeError::Request { path: entry.options.path.clone(), source };
        if entry.options.is_read_only() {
            return Err(fail(cowl::BlockError::ReadOnly));
        }
        let now = cowl::BlockDevice::size(&entry.disk.disk).get();
        if size < now && loss == Loss::Refused {
            return Err(ServeError::WouldShrink { now, size });
        }
        let size = ByteCount::new(size);
        entry.disk.disk.change_size(size, Preallocation::Off).await.map_err(fail)?;
        if let Some(machines) = self.machines() {
            machines.announce_resize();
        }
        Ok(())
    }
}

/// The exports with which a server starts.
pub(crate) fn exports(
    entries: impl IntoIterator<Item = (ExportOptions, DiskRef, Bitmaps)>,
) -> (Exports<ServedDisk>, Vec<Entry>) {
    let (mut exports, mut known) = (Vec::new(), Vec::new());
    for (options, disk, bitmaps) in entries {
        let served = ServedDisk::new(disk.clone(), options.rules);
        let counters = Arc::clone(&served.counters);
        exports.push(nbd_export(&options, served, bitmaps));
        known.push(Entry { options, disk, counters });
    }
    (Exports::new(exports), known)
}
