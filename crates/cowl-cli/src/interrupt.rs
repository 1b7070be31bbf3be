//! Signals that end the program: what is half-written goes first.
//!
//! A command that has an orderly end of its own takes over with [`end_by`]: the first signal then
//! asks for that end, and the next one ends the program at once.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

/// The end of a command.
pub(crate) struct Ending {
    /// Asks for the orderly end; returns at once.
    pub(crate) ask: Box<dyn Fn() + Send>,
    /// The last thing before the program ends at once, on the next signal; without it every signal
    /// asks.
    pub(crate) at_once: Option<Box<dyn Fn() + Send>>,
}

/// A second signal this soon says the same as the first.
const SAME_WISH: Duration = Duration::from_millis(100);

static ENDING: Mutex<Option<Ending>> = Mutex::new(None);

/// From now on signals end the command in its own way.
pub(crate) fn end_by(ending: Ending) {
    *ENDING.lock().unwrap_or_else(PoisonError::into_inner) = Some(ending);
}

/// Watches from a thread of its own. Where the host has no thread to give, the signals keep their
/// plain meaning, and a file under a temporary name may stay behind.
pub(crate) fn watch() {
    // A write past the limit for files is an error like any other, and told as one.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).ok();
    let Ok(mut signals) = Signals::new([SIGHUP, SIGINT, SIGTERM]) else { return };
    let end = move || {
        let mut asked = None::<Instant>;
        for signal in signals.forever() {
            if let Some(ending) = &*ENDING.lock().unwrap_or_else(PoisonError::into_inner) {
                match &ending.at_once {
                    // One wish can come twice: timeout(1) signals the process and its group.
                    Some(_) if asked.is_some_and(|asked| asked.elapsed() < SAME_WISH) => continue,
                    Some(at_once) if asked.is_some() => at_once(),
                    _ => {
                        asked = Some(Instant::now());
                        (ending.ask)();
                        continue;
                    }
                }
            }
            cowl_storage::remove_unfinished();
            // The exit status then says which signal it was, as for any other program.
            signal_hook::low_level::emulate_default_handler(signal).ok();
        }
    };
    std::thread::Builder::new().name("cowl-interrupt".to_owned()).spawn(end).ok();
}
