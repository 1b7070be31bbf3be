//! A command that failed: facts first, words at the edge.
//!
//! People read `NAME: message`, NAME being the name the program was called by, as qemu-img does it.
//! With `--errors=json` a machine reads one object on one line of stderr instead.

use std::path::PathBuf;

use serde::Serialize;

use crate::getopt::UsageError;

/// What kind of failure, for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// The command line is wrong.
    Usage,
    /// This version cannot do it.
    NotAvailable,
    /// A file could not be opened or created.
    Open,
    /// Reading or writing failed on the way.
    Io,
    /// The image contradicts its format.
    Format,
    /// Standard output could not be written.
    Output,
}

/// Who speaks in the message, and whether it points to the help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Voice {
    /// `qemu-img: message`
    Program,
    /// `qemu-img: message`, then where the help is.
    ProgramWithHelp,
    /// `qemu-img info: message`, then where the help is: what getopt itself refuses.
    Command,
    /// `./qemu-nbd: message`: what getopt itself refuses, where the message says the rest.
    Invoked,
}

/// A failed command.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// Exit code of the process.
    pub(crate) exit: u8,
    /// What kind.
    pub(crate) kind: Kind,
    /// Who says it.
    pub(crate) voice: Voice,
    /// What happened; may have several lines.
    pub(crate) message: String,
    /// A second message: what it was part of.
    pub(crate) context: Option<String>,
    /// The file it is about.
    pub(crate) file: Option<PathBuf>,
    /// A way out.
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// A failure of `kind`, exit code 1.
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            exit: 1,
            kind,
            voice: Voice::Program,
            message,
            context: None,
            file: None,
            hint: None,
        }
    }

    /// A wrong command line.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// A wrong command line whose message names the help.
    pub(crate) fn usage_with_help(message: impl Into<String>) -> Self {
        Self { voice: Voice::ProgramWithHelp, ..Self::usage(message) }
    }

    /// The same with another exit code.
    pub(crate) fn with_exit(self, exit: u8) -> Self {
        Self { exit, ..self }
    }

    /// The same, as part of something larger.
    pub(crate) fn within(self, context: impl Into<String>) -> Self {
        Self { context: Some(context.into()), ..self }
    }

    /// The same, about `file`.
    pub(crate) fn about(self, file: impl Into<PathBuf>) -> Self {
        Self { file: Some(file.into()), ..self }
    }

    /// The same with a way out.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// One line of JSON.
    pub(crate) fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Object<'a> {
            kind: Kind,
            message: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            context: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            file: Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            hint: Option<&'a str>,
            exit: u8,
        }
        let object = Object {
            kind: self.kind,
            message: &self.message,
            context: self.context.as_deref(),
            file: self.file.as_ref().map(|path| path.to_string_lossy().into_owned()),
            hint: self.hint.as_deref(),
            exit: self.exit,
        };
        serde_json::to_string(&object).expect("strings and numbers are JSON")
    }
}

/// Why a command ended before its end.
#[derive(Clone, Debug)]
pub(crate) enum Stop {
    /// The help was asked for.
    Help,
    /// Something else was asked for that replaces the work, such as a list of options.
    Answer(String),
    /// It failed.
    Failed(Box<Failure>),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(Box::new(failure))
    }
}

impl From<UsageError> for Stop {
    fn from(error: UsageError) -> Self {
        Failure { voice: Voice::Command, ..Failure::usage(error.to_string()) }.into()
    }
}
