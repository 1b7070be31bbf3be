//! Reads lines, finds their commands and prints what came out.

use std::io::BufRead;
use std::sync::Arc;

use super::command::{self, Command};
use super::device::Device;
use super::in_flight::InFlight;
use crate::image_name::ImageName;
use crate::session::Session;
use crate::settings::Settings;

/// Why a command failed, and where that is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// A line of standard output: requests that failed, numbers that are none.
    Line(String),
    /// A line of standard error.
    ErrorLine(String),
    /// A line of standard error that begins with the name of the program.
    Message(String),
    /// A wrong letter: a line of standard error, and how the command is used.
    Option(String),
    /// How the command is used.
    Usage,
    /// It was said already.
    Told,
}

impl From<String> for Trouble {
    fn from(line: String) -> Self {
        Self::Line(line)
    }
}

/// What happens after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// The next one.
    Continue,
    /// Nothing more.
    Quit,
}

/// A run of the command language.
pub(crate) struct Shell<'a> {
    pub(super) session: &'a Session,
    pub(super) device: Option<Arc<Device>>,
    pub(super) in_flight: InFlight,
    /// Whether images that `open` names may name further files.
    pub(super) untrusted: bool,
    failed: bool,
}

impl<'a> Shell<'a> {
    /// A shell without a disk.
    pub(crate) fn new(session: &'a Session, untrusted: bool) -> Self {
        let in_flight = InFlight::new();
        Self { session, device: None, in_flight, untrusted, failed: false }
    }

    /// Opens the disk that the commands are about; the error is the reason in words.
    pub(crate) fn open(&mut self, name: &ImageName, mut settings: Settings) -> Result<(), String> {
        settings.tune(&name.tuning)?;
        self.attach(name, settings)
    }

    /// The same, with settings that already contain what the name says.
    pub(super) fn attach(&mut self, name: &ImageName, settings: Settings) -> Result<(), String> {
        let device = Device::open(name, settings)?;
        if device.deserves_warning() {
            self.session.warn_of_guess(&name.given);
        }
        self.device = Some(Arc::new(device));
        Ok(())
    }

    /// Runs the commands of the command line.
    pub(crate) fn run_lines(&mut self, lines: &[String]) {
        for line in lines {
            if self.run_line(line) == Flow::Quit {
                break;
            }
        }
    }

    /// Runs the commands of standard input.
    pub(crate) fn run_input(&mut self) -> std::io::Result<()> {
        let mut input = std::io::stdin().lock();
        let mut line = Vec::new();
        loop {
            self.session.output.text_now(&format!("{}> ", self.session.program));
            line.clear();
            if input.read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&line);
            if self.run_line(text.trim_end_matches('\n')) == Flow::Quit {
                return Ok(());
            }
        }
    }

    /// Ends all requests and closes the disk. Returns whether every command went well.
    pub(crate) fn finish(mut self) -> bool {
        let closed = self.close_device();
        self.failed |= closed.is_err();
        if let Err(trouble) = closed {
            self.tell(trouble, None);
        }
        !self.failed
    }

    /// The disk that is open.
    pub(super) fn device(&self) -> &Arc<Device> {
        self.device.as_ref().expect("commands that need a disk are refused without one")
    }

    /// Closes the disk, if one is open.
    pub(super) fn close_device(&mut self) -> Result<(), Trouble> {
        let rest = self.in_flight.take_all();
        self.print(&rest);
        // All requests have ended, and with them their hold on the disk.
        match self.device.take().and_then(Arc::into_inner) {
            Some(device) if !device.settings.read_only => {
                let name = device.name.given;
                device
                    .disk
                    .close()
                    .map_err(|error| Trouble::Message(format!("could not close '{name}': {error}")))
            }
            _ => Ok(()),
        }
    }

    /// Prints to standard output.
    pub(super) fn print(&self, text: &str) {
        self.session.output.text(text);
    }

    fn run_line(&mut self, line: &str) -> Flow {
        let words: Vec<String> =
            line.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        let finished = self.in_flight.take_finished();
        self.print(&finished);
        let Some(name) = words.first() else {
            return Flow::Continue;
        };
        let Some(command) = command::find(name) else {
            self.failed = true;
            self.session.output.error_text(&format!("command \"{name}\" not found\n"));
            return Flow::Continue;
        };
        match self.run_command(command, &words) {
            Ok(flow) => flow,
            Err(trouble) => {
                self.failed = true;
                self.tell(trouble, Some(command));
                Flow::Continue
            }
        }
    }

    fn run_command(&mut self, command: &Command, words: &[String]) -> Result<Flow, Trouble> {
        if command.needs_disk && self.device.is_none() {
            return Err(Trouble::ErrorLine("no file open, try 'help open'".into()));
        }
        if let Some(expected) = command.wrong_count(words.len() - 1) {
            let (count, name) = (words.len() - 1, &words[0]);
            return Err(Trouble::ErrorLine(format!(
                "bad argument count {count} to {name}, expected {expected} arguments"
            )));
        }
        if command.writes && self.device().settings.read_only {
            return Err(Trouble::Message("Block node is read-only".into()));
        }
        (command.run)(self, words)
    }

    fn tell(&self, trouble: Trouble, command: Option<&Command>) {
        let output = &self.session.output;
        let usage = command.map_or(String::new(), |command| command.usage(command.name));
        match trouble {
            Trouble::Line(line) => output.text(&format!("{line}\n")),
            Trouble::ErrorLine(line) => output.error_text(&format!("{line}\n")),
            Trouble::Message(line) => {
                output.error_text(&format!("{}: {line}\n", self.session.program));
            }
            Trouble::Option(line) => {
                output.error_text(&format!("{line}\n"));
                output.text(&usage);
            }
            Trouble::Usage => output.text(&usage),
            Trouble::Told => {}
        }
    }
}
