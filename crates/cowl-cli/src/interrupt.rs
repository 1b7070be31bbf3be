//! Signals that end the program: what is half-written goes first.

use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

/// What a command that has more to end than itself does when it is told to.
static TAKEN_OVER: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

/// From now on signals call `end` instead of ending the program; each of them does.
pub(crate) fn take_over(end: impl Fn() + Send + Sync + 'static) {
    let is_first = TAKEN_OVER.set(Box::new(end)).is_ok();
    assert!(is_first, "one command runs in a process");
}

/// Watches from a thread of its own. Where the host has no thread to give, the signals keep their
/// plain meaning, and a file under a temporary name may stay behind.
pub(crate) fn watch() {
    // A write past the limit for files is an error like any other, and told as one.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).ok();
    let Ok(mut signals) = Signals::new([SIGHUP, SIGINT, SIGTERM]) else { return };
    let end = move || {
        for signal in signals.forever() {
            if let Some(end) = TAKEN_OVER.get() {
                end();
                continue;
            }
            cowl_storage::remove_unfinished();
            // The exit status then says which signal it was, as for any other program.
            signal_hook::low_level::emulate_default_handler(signal).ok();
        }
    };
    std::thread::Builder::new().name("cowl-interrupt".to_owned()).spawn(end).ok();
}
