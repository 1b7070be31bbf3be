//! Serves an image on a unix socket, writable, until it is killed: `serve IMAGE SOCKET THREADS`.
//!
//! What `cowl serve` does in essence: one disk for all threads, one ring per thread.

use std::sync::Arc;

use cowl::{Access, Disk, OpenOptions, Rings};
use cowl_nbd::{Export, Exports, FastZero, Listener, Server, ServerOptions};
use cowl_storage::ring_runtime;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, image, socket, threads] = &arguments[..] else {
        return Err("usage: serve IMAGE SOCKET THREADS".into());
    };
    let options = OpenOptions { access: Access::ReadWrite, ..OpenOptions::local() };
    let open = Disk::open_with(&Rings, image.as_ref(), &options);
    let disk = Arc::new(ring_runtime()?.block_on(open)?);
    let export = Export { fast_zero: FastZero::Always, ..Export::whole("", disk) };
    let listeners = vec![Listener::bind_unix(socket.as_ref())?];
    let server = Server::new(Exports::new([export]), listeners, ServerOptions::standard());
    let threads: Vec<_> = (0..threads.parse::<usize>()?)
        .map(|_| {
            let server = server.clone();
            std::thread::spawn(move || ring_runtime()?.block_on(server.run()))
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| "a serving thread panicked")??;
    }
    Ok(())
}
