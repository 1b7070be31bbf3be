//! Standard output and standard error, as scripts expect them.
//!
//! Output to a pipe or file is buffered whole, so it is cheap and arrives after what stderr says;
//! to a terminal it appears line by line. A write error is kept until the end and then fails the
//! command, except for a reader that went away (`| head`), which is none of our business.
//!
//! Nothing else in the program writes to either.

use std::io::{self, BufWriter, IsTerminal, LineWriter, Write};
use std::sync::{Mutex, MutexGuard};

/// Both streams. Shared by all threads of a command.
pub(crate) struct Output {
    stdout: Mutex<Stream>,
    stderr: Mutex<Box<dyn Write + Send>>,
}

struct Stream {
    writer: Box<dyn Write + Send>,
    error: Option<io::Error>,
}

impl Output {
    /// The streams of the process.
    pub(crate) fn of_process() -> Self {
        let stdout = io::stdout();
        // Not the handle of std: that one flushes at every line whatever stands behind it.
        // Programs that are started must not hold it: its reader would wait for them, too.
        let raw = rustix::io::fcntl_dupfd_cloexec(&stdout, 3).map(std::fs::File::from);
        let writer: Box<dyn Write + Send> = match raw {
            Ok(file) if stdout.is_terminal() => Box::new(LineWriter::new(file)),
            Ok(file) => Box::new(BufWriter::with_capacity(64 << 10, file)),
            Err(_) => Box::new(LineWriter::new(stdout)),
        };
        Self::new(writer, Box::new(io::stderr()))
    }

    /// Any two streams.
    pub(crate) fn new(stdout: Box<dyn Write + Send>, stderr: Box<dyn Write + Send>) -> Self {
        let stdout = Mutex::new(Stream { writer: stdout, error: None });
        Self { stdout, stderr: Mutex::new(stderr) }
    }

    /// Writes to stdout.
    pub(crate) fn text(&self, text: &str) {
        let mut stream = lock(&self.stdout);
        let result = stream.writer.write_all(text.as_bytes());
        stream.note(result);
    }

    /// Writes to stdout and shows it at once.
    pub(crate) fn text_now(&self, text: &str) {
        self.text(text);
        let mut stream = lock(&self.stdout);
        let result = stream.writer.flush();
        stream.note(result);
    }

    /// Writes to stderr. An error there can be told to nobody.
    pub(crate) fn error_text(&self, text: &str) {
        lock(&self.stderr).write_all(text.as_bytes()).ok();
    }

    /// Flushes stdout and returns the first error it met.
    pub(crate) fn finish(&self) -> io::Result<()> {
        let mut stream = lock(&self.stdout);
        let result = stream.writer.flush();
        stream.note(result);
        match stream.error.take() {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    }
}

impl Stream {
    fn note(&mut self, result: io::Result<()>) {
        if let Err(error) = result
            && self.error.is_none()
        {
            self.error = Some(error);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::Output;
    use std::io::{self, Write};

    struct Broken(io::ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_write_error_surfaces_at_the_end() {
        let output =
            Output::new(Box::new(Broken(io::ErrorKind::StorageFull)), Box::new(io::sink()));
        output.text("x");
        output.text("y");
        assert_eq!(output.finish().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn a_reader_that_went_away_is_no_error() {
        let output = Output::new(Box::new(Broken(io::ErrorKind::BrokenPipe)), Box::new(io::sink()));
        output.text("x");
        assert!(output.finish().is_ok());
    }
}
