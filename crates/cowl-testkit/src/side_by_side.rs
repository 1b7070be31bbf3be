//! The same command given to qemu-img or qemu-io and to ours.

use std::ffi::OsStr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::oracle::{self, Output, Tool};

/// Our program, reachable under the names `qemu-img` and `qemu-io`.
#[derive(Debug)]
pub struct SideBySide {
    folder: PathBuf,
}

/// What both said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// The command, for messages.
    pub command: String,
    /// The oracle's.
    pub theirs: Output,
    /// Ours.
    pub ours: Output,
}

impl SideBySide {
    /// Makes `program` reachable by QEMU's names in `folder`; `None` where the oracle is missing.
    ///
    /// # Panics
    /// When the folder takes no link.
    #[must_use]
    pub fn new(program: &str, folder: &Path) -> Option<Self> {
        if !oracle::is_available() {
            return None;
        }
        for tool in [Tool::Img, Tool::Io] {
            symlink(program, folder.join(tool.name())).expect("the folder takes a link");
        }
        Some(Self { folder: folder.to_owned() })
    }

    /// Gives `arguments` to both, in `directory`. Both are found through the search path, so that
    /// both see the name `qemu-img` in `argv[0]`.
    #[must_use]
    pub fn run<S: AsRef<OsStr>>(&self, directory: &Path, arguments: &[S]) -> Answers {
        let words: Vec<_> = arguments.iter().map(|a| a.as_ref().to_string_lossy()).collect();
        Answers {
            command: format!("qemu-img {}", words.join(" ")),
            theirs: oracle::run(Tool::Img, directory, arguments),
            ours: self.run_ours(directory, arguments),
        }
    }

    /// Gives `arguments` to ours alone.
    #[must_use]
    pub fn run_ours<S: AsRef<OsStr>>(&self, directory: &Path, arguments: &[S]) -> Output {
        Output::of(self.our(Tool::Img).args(arguments).current_dir(directory))
    }

    /// Ours under the name of `tool`, to be given arguments and a folder.
    #[must_use]
    pub fn our(&self, tool: Tool) -> Command {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(self.folder.join(tool.name()));
        command.arg0(tool.name()).env("LC_ALL", "C");
        command
    }
}

impl Answers {
    /// What differs in the exit code and the two streams; `None` when nothing does.
    #[must_use]
    pub fn difference(&self) -> Option<String> {
        let (theirs, ours) = (&self.theirs, &self.ours);
        if theirs.code != ours.code {
            let codes = format!("{} became {}", theirs.code, ours.code);
            return Some(format!("{}: exit code {codes}: {}", self.command, ours.stderr));
        }
        let stdout = self.line_difference("stdout", &theirs.stdout, &ours.stdout);
        stdout.or_else(|| self.line_difference("stderr", &theirs.stderr, &ours.stderr))
    }

    /// The same without standard error.
    #[must_use]
    pub fn difference_but_stderr(&self) -> Option<String> {
        let mut answers = self.clone();
        answers.ours.stderr.clone_from(&self.theirs.stderr);
        answers.difference()
    }

    fn line_difference(&self, stream: &str, theirs: &str, ours: &str) -> Option<String> {
        if theirs == ours {
            return None;
        }
        let (mut their_lines, mut our_lines) = (theirs.split('\n'), ours.split('\n'));
        loop {
            let (their_line, our_line) = (their_lines.next(), our_lines.next());
            if their_line != our_line {
                return Some(format!(
                    "{}: {stream}\n    theirs: {}\n    ours:   {}",
                    self.command,
                    their_line.unwrap_or("(nothing)"),
                    our_line.unwrap_or("(nothing)")
                ));
            }
        }
    }
}
