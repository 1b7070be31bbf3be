//! Serves an image as a file, writable, until it is unmounted or told to end:
//! `serve IMAGE MOUNTPOINT THREADS`.
//!
//! The mount point is a plain file, which shows the disk from then on, or a directory, which gets a
//! file of the image's name. With `COWL_FUSE_DIRECT` in the environment all requests come here
//! instead of to the page cache of the kernel; with `COWL_FUSE_GROWABLE` the file can grow; with
//! `COWL_FUSE_READ_ONLY` it cannot be written; with `COWL_FUSE_PLAIN` the image is read and written
//! by plain calls on the serving threads instead of by their rings.

use std::path::Path;
use std::sync::Arc;

use cowl::{Access, Disk, Files, OpenOptions, Rings, StorageOpener};
use cowl_fuse::{Caching, Export, Options, Server, Sizing};
use cowl_storage::ring_runtime;
use signal_hook::consts::{SIGINT, SIGTERM};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, image, mount_point, threads] = &arguments[..] else {
        return Err("usage: serve IMAGE MOUNTPOINT THREADS".into());
    };
    match is_set("COWL_FUSE_PLAIN") {
        true => serve(&Files, image, mount_point, threads.parse()?),
        false => serve(&Rings, image, mount_point, threads.parse()?),
    }
}

fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some()
}

fn serve<O: StorageOpener>(
    opener: &O,
    image: &str,
    mount_point: &str,
    threads: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    let access = match is_set("COWL_FUSE_READ_ONLY") {
        true => Access::ReadOnly,
        false => Access::ReadWrite,
    };
    let options = OpenOptions { access, ..OpenOptions::local() };
    let runtime = ring_runtime()?;
    let disk = Arc::new(runtime.block_on(Disk::open_with(opener, image.as_ref(), &options))?);
    let name = Path::new(image).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let export = Export {
        device: Arc::clone(&disk),
        name,
        access: cowl_fuse::Access::ReadWrite,
        sizing: if is_set("COWL_FUSE_GROWABLE") { Sizing::Growable } else { Sizing::Fixed },
    };
    let caching = if is_set("COWL_FUSE_DIRECT") { Caching::Direct } else { Caching::PageCache };
    let options = Options { caching, ..Options::standard() };
    let server = Server::new(export, mount_point.as_ref(), options)?;
    let threads: Vec<_> = (0..threads)
        .map(|_| {
            let server = server.clone();
            std::thread::spawn(move || ring_runtime()?.block_on(server.run()))
        })
        .collect();
    let stopping = server.clone();
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            stopping.stop();
        }
    });
    let upkeep = Arc::clone(&disk);
    let served = runtime.block_on(async move {
        // Tables are written back beside the requests, not by them.
        let _background = compio::runtime::spawn(async move {
            match upkeep.qcow2() {
                Some(image) => image.background().await,
                None => Ok(()),
            }
        });
        let join = move || threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>();
        compio::runtime::spawn_blocking(join).await
    });
    for thread in served.map_err(|_| "joining the serving threads panicked")? {
        thread.map_err(|_| "a serving thread panicked")??;
    }
    drop(server);
    match Arc::try_unwrap(disk) {
        Ok(disk) => Ok(runtime.block_on(disk.shut())?),
        Err(disk) => Ok(runtime.block_on(cowl::BlockDevice::flush(disk.as_ref()))?),
    }
}
