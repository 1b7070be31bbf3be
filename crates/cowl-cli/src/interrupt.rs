//! Signals that end the program: what is half-written goes first.

use std::sync::Arc;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

/// Watches from a thread of its own. Where the host has no thread to give, the signals keep their plain
/// meaning, and a file under a temporary name may stay behind.
pub(crate) fn watch() {
    // A write past the limit for files is an error like any other, and told as one.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).ok();
    let Ok(mut signals) = Signals::new([SIGHUP, SIGINT, SIGTERM]) else { return };
    let end = move || {
        if let Some(signal) = signals.forever().next() {
            cowl_storage::remove_unfinished();
            // The exit status then says which signal it was, as for any other program.
            signal_hook::low_level::emulate_default_handler(signal).ok();
        }
    };
    std::thread::Builder::new().name("cowl-interrupt".to_owned()).spawn(end).ok();
}
