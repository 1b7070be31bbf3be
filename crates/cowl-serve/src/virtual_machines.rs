//! Exports that virtual machines have as disks: vhost-user sockets.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use cowl_vhost_user::{Export, Listener, Server, ServerOptions};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::disk::{DiskRef, ServedDisk};
use crate::error::ServeError;
use crate::export::{ExportOptions, VhostUserPlace};
use crate::leftovers::Leftovers;

/// A server of the exports that have such a socket, if there are any.
pub(crate) fn serve<'a>(
    exports: impl IntoIterator<Item = (&'a ExportOptions, &'a DiskRef)>,
    threads: usize,
    leftovers: &Leftovers,
) -> Result<Option<Server<ServedDisk>>, ServeError> {
    let mut served = Vec::new();
    for (options, disk) in exports {
        let Some(vhost_user) = &options.vhost_user else { continue };
        let listener = match &vhost_user.place {
            VhostUserPlace::Path(path) => {
                let listener = bind(path)?;
                leftovers.add(path);
                listener
            }
            VhostUserPlace::Descriptor(number) => {
                inherited(*number).and_then(Listener::inherited).map_err(ServeError::host(
                    "Could not use the descriptor of the vhost-user socket",
                ))?
            }
        };
        let device = Arc::new(ServedDisk::new(disk.clone(), options.rules));
        served.push(Export {
            read_only: options.is_read_only(),
            serial: vhost_user.serial.clone(),
            queues_max: vhost_user.queues_max,
            ..Export::new(device, listener)
        });
    }
    if served.is_empty() {
        return Ok(None);
    }
    let server = Server::new(served, ServerOptions { threads });
    let server = server.map_err(ServeError::host("Could not set up the vhost-user server"))?;
    Ok(Some(server))
}

fn bind(path: &std::path::Path) -> Result<Listener, ServeError> {
    Listener::bind(path).map_err(|source| ServeError::Path {
        what: "Could not create the vhost-user socket",
        path: path.to_owned(),
        source,
    })
}

/// A descriptor that the process was started with.
fn inherited(number: i32) -> io::Result<OwnedFd> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(own, number, PidfdGetfdFlags::empty())?)
}
