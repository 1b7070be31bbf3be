//! Showing how far the work is.
//!
//! `-p` writes `    (12.34/100%)` and a carriage return to stdout whenever a step is passed, as
//! qemu-img does. `--progress=jsonl` writes an object a line to stderr. Whatever is chosen, SIGUSR1
//! makes one line appear on stderr, at once, even when the work is stuck.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cowl_format::ByteCount;
use cowl_tools::Progress;
use serde::Serialize;
use signal_hook::consts::SIGUSR1;
use signal_hook::iterator::{Handle, Signals};

use crate::option::ProgressMode;
use crate::output::Output;

/// What is shown, and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProgressOptions {
    /// How.
    pub(crate) mode: ProgressMode,
    /// The name of the work, for machines.
    pub(crate) operation: &'static str,
    /// Percent to pass before the next line.
    pub(crate) step: f64,
}

/// Prints the progress of one command until it is dropped.
pub(crate) struct ProgressPrinter {
    state: Arc<Mutex<State>>,
    signals: Option<Handle>,
}

struct State {
    options: ProgressOptions,
    output: Arc<Output>,
    total: u64,
    done: u64,
    complete: bool,
    last_shown: Option<f64>,
}

#[derive(Serialize)]
struct Line {
    operation: &'static str,
    done: u64,
    total: u64,
    percent: f64,
}

impl ProgressPrinter {
    /// Starts at 0 %.
    pub(crate) fn start(options: ProgressOptions, output: Arc<Output>) -> Self {
        let state = State { options, output, total: 0, done: 0, complete: false, last_shown: None };
        let state = Arc::new(Mutex::new(state));
        let signals = watch_signal(Arc::clone(&state));
        lock(&state).show();
        Self { state, signals }
    }

    /// The work is complete, whatever the estimate said.
    pub(crate) fn complete(&self) {
        let mut state = lock(&self.state);
        state.complete = true;
        if state.last_shown != Some(100.0) {
            state.show();
        }
    }

    /// Ends the line on the terminal. Also for work that failed.
    pub(crate) fn end(&self) {
        let state = lock(&self.state);
        if state.options.mode == ProgressMode::Percent {
            state.output.text("\n");
        }
    }
}

impl Progress for ProgressPrinter {
    fn total(&self, total: ByteCount) {
        lock(&self.state).total = total.get();
    }

    fn advance(&self, done: ByteCount) {
        let mut state = lock(&self.state);
        state.done += done.get();
        let step = state.options.step;
        let percent = state.percent();
        if state.last_shown.is_none_or(|last| {
            last + step < percent || percent + step < last || (percent == 100.0 && last != 100.0)
        }) {
            state.show();
        }
    }
}

impl Drop for ProgressPrinter {
    fn drop(&mut self) {
        if let Some(signals) = &self.signals {
            signals.close();
        }
    }
}

impl State {
    fn percent(&self) -> f64 {
        if self.complete {
            return 100.0;
        }
        // Work whose length is not known yet is at its start.
        if self.total == 0 {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "two decimals are printed")]
        let percent = self.done as f64 * 100.0 / self.total as f64;
        percent.min(100.0)
    }

    fn show(&mut self) {
        let percent = self.percent();
        self.last_shown = Some(percent);
        match self.options.mode {
            ProgressMode::Off => {}
            ProgressMode::Percent => self.output.text_now(&format!("    ({percent:3.2}/100%)\r")),
            ProgressMode::JsonLines => self.output.error_text(&self.json_line()),
        }
    }

    fn json_line(&self) -> String {
        let line = Line {
            operation: self.options.operation,
            done: self.done,
            total: self.total,
            percent: (self.percent() * 100.0).round() / 100.0,
        };
        format!("{}\n", serde_json::to_string(&line).expect("numbers are JSON"))
    }

    fn asked(&self) {
        match self.options.mode {
            ProgressMode::JsonLines => self.output.error_text(&self.json_line()),
            _ => self.output.error_text(&format!("    ({:3.2}/100%)\n", self.percent())),
        }
    }
}

/// Answers SIGUSR1 from a thread of its own. Without it the signal keeps its default meaning.
fn watch_signal(state: Arc<Mutex<State>>) -> Option<Handle> {
    let mut signals = Signals::new([SIGUSR1]).ok()?;
    let handle = signals.handle();
    std::thread::Builder::new()
        .name("progress".into())
        .spawn(move || signals.forever().for_each(|_| lock(&state).asked()))
        .ok()?;
    Some(handle)
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{ProgressOptions, ProgressPrinter};
    use crate::option::ProgressMode;
    use crate::output::Output;
    use cowl_format::ByteCount;
    use cowl_tools::Progress;
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What work of 200 bytes, done in `pieces`, prints to stdout and stderr.
    fn run(mode: ProgressMode, pieces: &[u64]) -> (String, String) {
        let (stdout, stderr) = (Captured::default(), Captured::default());
        let output = Output::new(Box::new(stdout.clone()), Box::new(stderr.clone()));
        let options = ProgressOptions { mode, operation: "compare", step: 2.0 };
        let printer = ProgressPrinter::start(options, Arc::new(output));
        printer.total(ByteCount::new(200));
        for &piece in pieces {
            printer.advance(ByteCount::new(piece));
        }
        printer.complete();
        printer.end();
        let text =
            |captured: Captured| String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
        (text(stdout), text(stderr))
    }

    #[test]
    fn percent_lines_appear_when_a_step_is_passed() {
        let (stdout, stderr) = run(ProgressMode::Percent, &[1, 1, 2, 1, 100, 95]);
        let expected = "    (0.00/100%)\r    (2.50/100%)\r    (52.50/100%)\r    (100.00/100%)\r\n";
        assert_eq!((stdout.as_str(), stderr.as_str()), (expected, ""));
    }

    #[test]
    fn json_lines_go_to_stderr() {
        let (stdout, stderr) = run(ProgressMode::JsonLines, &[50]);
        assert_eq!(stdout, "");
        let last = stderr.lines().nth(1).unwrap();
        assert_eq!(last, r#"{"operation":"compare","done":50,"total":200,"percent":25.0}"#);
        assert_eq!(stderr.lines().count(), 3);
    }

    #[test]
    fn nothing_is_shown_unasked() {
        assert_eq!(run(ProgressMode::Off, &[200]), (String::new(), String::new()));
    }
}
