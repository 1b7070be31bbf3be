//! What a command knows about the process it runs in: its names, its streams.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use crate::failure::{Failure, Voice};
use crate::output::Output;

/// One run of the program.
pub(crate) struct Session {
    /// `argv[0]` as given: getopt's messages and the pointer to the help carry it.
    pub(crate) invoked_as: String,
    /// Its last component: all other messages carry it.
    pub(crate) program: String,
    /// Where text goes.
    pub(crate) output: Arc<Output>,
    /// Whether errors are for a machine.
    pub(crate) errors_as_json: bool,
}

impl Session {
    /// A session for `argv[0]` and the arguments, which are only searched for `--errors=json`: a
    /// usage error before it must already obey it.
    pub(crate) fn new(argv0: Option<OsString>, arguments: &[OsString], output: Output) -> Self {
        let invoked_as = argv0.map_or("cowl".into(), |name| name.to_string_lossy().into_owned());
        let program = Path::new(&invoked_as)
            .file_name()
            .map_or(invoked_as.clone(), |name| name.to_string_lossy().into_owned());
        let errors_as_json = arguments
            .iter()
            .take_while(|argument| *argument != "--")
            .any(|argument| argument == "--errors=json");
        Self { invoked_as, program, output: Arc::new(output), errors_as_json }
    }

    /// Whether scripts written for QEMU's tools are the likely caller.
    pub(crate) fn is_drop_in(&self) -> bool {
        self.program == "qemu-img" || self.is_whole_program()
    }

    /// Whether the program is one verb and nothing else.
    pub(crate) fn is_whole_program(&self) -> bool {
        self.is_qemu_io() || self.is_qemu_nbd()
    }

    /// Whether the program is `io` and nothing else.
    pub(crate) fn is_qemu_io(&self) -> bool {
        self.program == "qemu-io"
    }

    /// Whether the program is an NBD server and nothing else.
    pub(crate) fn is_qemu_nbd(&self) -> bool {
        self.program == "qemu-nbd"
    }

    /// Tells the user of something that does not stop the command.
    pub(crate) fn warn(&self, message: &str) {
        self.output.error_text(&format!("{}: warning: {message}\n", self.program));
    }

    /// Tells the user that nobody said that an image is raw which is opened for writing.
    pub(crate) fn warn_of_guess(&self, name: &str) {
        self.output.error_text(&format!(
            "WARNING: Image format was not specified for '{name}' and probing guessed raw.\n\
             \x20        Automatically detecting the format is dangerous for raw images, write \
             operations on block 0 will be restricted.\n\
             \x20        Specify the 'raw' format explicitly to remove the restrictions.\n"
        ));
    }

    /// Tells the user why `verb` failed; an empty verb is the program itself.
    pub(crate) fn report(&self, verb: &str, failure: &Failure) {
        if self.errors_as_json {
            self.output.error_text(&format!("{}\n", failure.to_json()));
            return;
        }
        let command = format!("{} {verb}", self.invoked_as);
        let command = command.trim_end();
        let speaker = match failure.voice {
            Voice::Command => command,
            Voice::Invoked => &self.invoked_as,
            Voice::Program | Voice::ProgramWithHelp => &self.program,
        };
        let mut text = format!("{speaker}: {}\n", failure.message);
        if let Some(context) = &failure.context {
            text.push_str(&format!("{speaker}: {context}\n"));
        }
        if matches!(failure.voice, Voice::Command | Voice::ProgramWithHelp) {
            text.push_str(&format!("Try '{command} --help' for more info\n"));
        }
        if let Some(hint) = failure.hint.as_deref().filter(|_| !self.is_drop_in()) {
            text.push_str(&format!("hint: {hint}\n"));
        }
        self.output.error_text(&text);
    }
}
