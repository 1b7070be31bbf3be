//! Exports that are files: FUSE mounts.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use cowl_fuse::{Access, Ending, Export, Options, Server, Sharing, Sizing};
use rustix::process::getuid;

use crate::disk::{DiskRef, ServedDisk};
use crate::error::ServeError;
use crate::export::{ExportOptions, FuseFile};

/// Mounted files, and the thread that unmounts them.
///
/// Landlock forbids unmounting, to threads that begin later too: so this one begins before.
pub(crate) struct Files {
    servers: Vec<Server<ServedDisk>>,
    unmount: Sender<()>,
}

impl Files {
    /// Mounts the exports that are files.
    pub(crate) fn mount<'a>(
        exports: impl IntoIterator<Item = (&'a ExportOptions, &'a DiskRef)>,
    ) -> Result<Self, ServeError> {
        let exports: Vec<_> = exports.into_iter().collect();
        check_names(exports.iter().map(|(options, _)| *options))?;
        check_places(exports.iter().filter_map(|(options, _)| options.fuse.as_ref()))?;
        let mut servers = Vec::new();
        for (options, disk) in exports {
            let Some(file) = &options.fuse else { continue };
            let access = if options.is_read_only() { Access::ReadOnly } else { Access::ReadWrite };
            let export = Export {
                device: Arc::new(ServedDisk::new(disk.clone(), options.rules)),
                name: if options.name.is_empty() { "disk".into() } else { options.name.clone() },
                access,
                sizing: if file.growable { Sizing::Growable } else { Sizing::Fixed },
            };
            let sharing = match file.allow_other {
                true => Sharing::Everyone,
                false if getuid().is_root() => Sharing::OwnerAndRoot,
                // Sharing with root takes a line in /etc/fuse.conf.
                false => Sharing::Owner,
            };
            let fuse = Options { sharing, ..Options::standard() };
            let mounted = Server::new(export, &file.mount_point, fuse);
            servers.push(mounted.map_err(|source| ServeError::Mount { source })?);
        }
        let (unmount, told) = channel();
        if !servers.is_empty() {
            let servers = servers.clone();
            let thread = std::thread::Builder::new().name("cowl-unmount".to_owned());
            let spawned = thread.spawn(move || unmount_when_told(&told, servers));
            spawned.map_err(ServeError::host("Could not start the thread that unmounts"))?;
        }
        Ok(Self { servers, unmount })
    }

    pub(crate) fn servers(&self) -> &[Server<ServedDisk>] {
        &self.servers
    }

    /// Unmounts all; the servers' threads then come to their end.
    pub(crate) fn stop(&self) {
        // Without files nobody listens.
        let _nobody_listens = self.unmount.send(());
    }

    /// Says how the mounts ended, and lets go of the disks.
    pub(crate) fn end(self) {
        for server in self.servers {
            let mount_point = server.mount_point().display();
            match server.ending() {
                Some(Ending::Unmounted) => {}
                Some(ending) => {
                    tracing::warn!(%mount_point, ?ending, "a file was not simply unmounted");
                }
                None => tracing::warn!(%mount_point, "a file is still mounted"),
            }
        }
    }
}

/// Refuses names that no file in a directory can have.
fn check_names<'a>(exports: impl IntoIterator<Item = &'a ExportOptions>) -> Result<(), ServeError> {
    for options in exports {
        let is_in_directory = options.fuse.as_ref().is_some_and(|file| file.mount_point.is_dir());
        if is_in_directory && matches!(options.name.as_str(), "." | "..") {
            return Err(ServeError::NoFileName { name: options.name.clone() });
        }
    }
    Ok(())
}

/// Refuses mount points that are the same or lie in each other: to look at the second one the
/// kernel would ask the first mount, which nobody serves yet.
fn check_places<'a>(files: impl IntoIterator<Item = &'a FuseFile>) -> Result<(), ServeError> {
    let mut known: Vec<PathBuf> = Vec::new();
    for file in files {
        // What cannot be found is refused by whoever mounts it.
        let Ok(place) = std::fs::canonicalize(&file.mount_point) else { continue };
        if known.iter().any(|other| place.starts_with(other) || other.starts_with(&place)) {
            return Err(ServeError::MountPointTaken { path: file.mount_point.clone() });
        }
        known.push(place);
    }
    Ok(())
}

fn unmount_when_told(told: &Receiver<()>, servers: Vec<Server<ServedDisk>>) {
    // Also when nobody is left to tell.
    let _told_or_alone = told.recv();
    servers.iter().for_each(Server::stop);
}
