//! Option parsing with the behaviour of glibc's `getopt_long`, which scripts written for qemu-img
//! rely on.
//!
//! Options may stand after operands; short options group (`-qU`) and take glued values (`-fqcow2`,
//! and `-f=raw` really means the value `=raw`); long options take `=value` or the next argument and
//! may be abbreviated as long as the abbreviation can mean one thing only; `--` ends the options.
//! The messages are those of glibc.
//!
//! Not here: what an option means, or in which program the message is printed. Why no argument
//! library does this for us: `docs/decisions/0002-argument-parsing.md`.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Whether an option takes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Takes {
    /// Never.
    Nothing,
    /// Always; the text names the value in the help.
    Value(&'static str),
    /// Only glued, as `--name=value`.
    OptionalValue(&'static str),
}

/// One option of a command. `Id` is what the command matches on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opt<Id: 'static> {
    /// What the option means.
    pub(crate) id: Id,
    /// The letter, if it has one.
    pub(crate) short: Option<char>,
    /// The long names; the first is the one the help shows.
    pub(crate) long: &'static [&'static str],
    /// Whether a value follows.
    pub(crate) takes: Takes,
    /// Names that must be written out: an addition of ours must not make an abbreviation ambiguous
    /// that works in qemu-img.
    pub(crate) abbreviable: bool,
    /// One sentence for the help.
    pub(crate) help: &'static str,
}

/// A usage error, in the words of glibc.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UsageError {
    #[error("unrecognized option '{0}'")]
    Unrecognized(String),
    #[error("invalid option -- '{0}'")]
    Invalid(String),
    #[error("option requires an argument -- '{0}'")]
    ShortNeedsValue(char),
    #[error("option '--{0}' requires an argument")]
    LongNeedsValue(&'static str),
    #[error("option '--{0}' doesn't allow an argument")]
    LongTakesNothing(&'static str),
    #[error("option '{typed}' is ambiguous; possibilities:{}", quoted(candidates))]
    Ambiguous { typed: String, candidates: Vec<&'static str> },
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!(" '--{name}'")).collect()
}

/// An option as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given<Id> {
    /// Which one.
    pub(crate) id: Id,
    /// Its value; `None` for an option that takes none.
    pub(crate) value: Option<OsString>,
}

impl<Id> Given<Id> {
    /// The value as text; names and numbers are text, so other bytes are replaced and then refused
    /// by name.
    pub(crate) fn text(&self) -> String {
        self.value.as_deref().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// A pass over the arguments of one command.
#[derive(Debug)]
pub(crate) struct Parser<Id: 'static> {
    options: &'static [Opt<Id>],
    rest: VecDeque<OsString>,
    group: Vec<u8>,
    operands: Vec<OsString>,
    stop_at_operand: bool,
    letters_only: bool,
}

impl<Id: Copy + PartialEq> Parser<Id> {
    /// Parses `arguments` (without the program and the command) by the table `options`.
    pub(crate) fn new(options: &'static [Opt<Id>], arguments: Vec<OsString>) -> Self {
        Self {
            options,
            rest: arguments.into(),
            group: Vec::new(),
            operands: Vec::new(),
            stop_at_operand: false,
            letters_only: false,
        }
    }

    /// As [`new`](Self::new), but the first operand ends the options: what comes before the
    /// command.
    pub(crate) fn until_operand(options: &'static [Opt<Id>], arguments: Vec<OsString>) -> Self {
        Self { stop_at_operand: true, ..Self::new(options, arguments) }
    }

    /// As [`new`](Self::new), but without long names: plain `getopt`.
    pub(crate) fn letters_only(options: &'static [Opt<Id>], arguments: Vec<OsString>) -> Self {
        Self { letters_only: true, ..Self::new(options, arguments) }
    }

    /// The next option, or `None` when only operands are left.
    pub(crate) fn next(&mut self) -> Result<Option<Given<Id>>, UsageError> {
        if !self.group.is_empty() {
            return self.next_in_group().map(Some);
        }
        while let Some(argument) = self.rest.pop_front() {
            let bytes = argument.as_bytes();
            if bytes == b"--" {
                self.operands.extend(self.rest.drain(..));
            } else if let Some(long) = bytes.strip_prefix(b"--")
                && !self.letters_only
            {
                return self.long(long).map(Some);
            } else if bytes.len() > 1 && bytes[0] == b'-' {
                self.group = bytes[1..].to_vec();
                return self.next_in_group().map(Some);
            } else {
                self.operands.push(argument);
                if self.stop_at_operand {
                    self.operands.extend(self.rest.drain(..));
                }
            }
        }
        Ok(None)
    }

    /// The operands, in order. Call when [`next`](Self::next) has returned `None`.
    pub(crate) fn operands(self) -> Vec<OsString> {
        self.operands
    }

    fn next_in_group(&mut self) -> Result<Given<Id>, UsageError> {
        let letter = self.group.remove(0);
        let known = self.options.iter().find(|opt| opt.short == Some(letter.into()));
        let Some(opt) = known.filter(|_| letter.is_ascii()) else {
            return Err(UsageError::Invalid(OsStr::from_bytes(&[letter]).to_string_lossy().into()));
        };
        if !matches!(opt.takes, Takes::Value(_)) {
            return Ok(Given { id: opt.id, value: None });
        }
        let glued = std::mem::take(&mut self.group);
        let value = if glued.is_empty() {
            self.rest.pop_front().ok_or(UsageError::ShortNeedsValue(letter.into()))?
        } else {
            OsString::from_vec(glued)
        };
        Ok(Given { id: opt.id, value: Some(value) })
    }

    fn long(&mut self, typed: &[u8]) -> Result<Given<Id>, UsageError> {
        let (name, glued) = match typed.iter().position(|&byte| byte == b'=') {
            Some(at) => (&typed[..at], Some(OsString::from_vec(typed[at + 1..].to_vec()))),
            None => (typed, None),
        };
        let (opt, full_name) = self.find_long(name, typed)?;
        match (opt.takes, glued) {
            (Takes::Nothing, Some(_)) => Err(UsageError::LongTakesNothing(full_name)),
            (Takes::Nothing | Takes::OptionalValue(_), None) => {
                Ok(Given { id: opt.id, value: None })
            }
            (Takes::Value(_) | Takes::OptionalValue(_), Some(value)) => {
                Ok(Given { id: opt.id, value: Some(value) })
            }
            (Takes::Value(_), None) => match self.rest.pop_front() {
                Some(value) => Ok(Given { id: opt.id, value: Some(value) }),
                None => Err(UsageError::LongNeedsValue(full_name)),
            },
        }
    }

    fn find_long(
        &self,
        name: &[u8],
        typed: &[u8],
    ) -> Result<(&'static Opt<Id>, &'static str), UsageError> {
        let mut candidates: Vec<(&'static Opt<Id>, &'static str)> = Vec::new();
        for opt in self.options {
            for &long in opt.long {
                if long.as_bytes() == name {
                    return Ok((opt, long));
                }
                if opt.abbreviable && long.as_bytes().starts_with(name) {
                    candidates.push((opt, long));
                }
            }
        }
        let typed = || format!("--{}", OsStr::from_bytes(typed).to_string_lossy());
        let Some(&first) = candidates.first() else {
            return Err(UsageError::Unrecognized(typed()));
        };
        // Two names of one option are no ambiguity.
        if candidates.iter().all(|(opt, _)| opt.id == first.0.id) {
            return Ok(first);
        }
        let candidates = candidates.into_iter().map(|(_, long)| long).collect();
        Err(UsageError::Ambiguous { typed: typed(), candidates })
    }
}

#[cfg(test)]
mod tests {
    use super::{Opt, Parser, Takes, UsageError};
    use std::ffi::OsString;

    const OPTIONS: &[Opt<char>] = &[
        opt('f', Some('f'), &["format"], Takes::Value("FMT")),
        opt('U', Some('U'), &["force-share"], Takes::Nothing),
        opt('q', Some('q'), &["quiet"], Takes::Nothing),
        opt('a', None, &["a-format", "left-format"], Takes::Value("FMT")),
        opt('l', None, &["left-fmt"], Takes::Value("FMT")),
        Opt { abbreviable: false, ..opt('p', None, &["progress"], Takes::OptionalValue("HOW")) },
    ];

    const fn opt(
        id: char,
        short: Option<char>,
        long: &'static [&'static str],
        takes: Takes,
    ) -> Opt<char> {
        Opt { id, short, long, takes, abbreviable: true, help: "" }
    }

    /// What the arguments mean, as one line: `f=raw U | operand`.
    fn parse(arguments: &[&str]) -> Result<String, UsageError> {
        let mut parser = Parser::new(OPTIONS, arguments.iter().map(OsString::from).collect());
        let mut text = String::new();
        while let Some(given) = parser.next()? {
            text.push(given.id);
            if given.value.is_some() {
                text = format!("{text}={}", given.text());
            }
            text.push(' ');
        }
        let operands: Vec<_> =
            parser.operands().iter().map(|o| o.to_string_lossy().into_owned()).collect();
        Ok(format!("{text}| {}", operands.join(" ")))
    }

    #[test]
    fn options_may_follow_operands() {
        assert_eq!(parse(&["a", "-U", "b", "-f", "raw"]).unwrap(), "U f=raw | a b");
    }

    #[test]
    fn short_options_group_and_take_glued_values() {
        assert_eq!(parse(&["-qUfraw"]).unwrap(), "q U f=raw | ");
        assert_eq!(parse(&["-f=raw"]).unwrap(), "f==raw | ");
        assert_eq!(parse(&["-qf", "raw"]).unwrap(), "q f=raw | ");
    }

    #[test]
    fn long_options_take_either_form_of_value() {
        assert_eq!(parse(&["--format=raw", "--format", "-U"]).unwrap(), "f=raw f=-U | ");
        assert_eq!(parse(&["--progress", "x", "--progress=jsonl"]).unwrap(), "p p=jsonl | x");
    }

    #[test]
    fn double_dash_ends_the_options_and_a_lone_dash_is_an_operand() {
        assert_eq!(parse(&["-q", "--", "-f", "--x"]).unwrap(), "q | -f --x");
        assert_eq!(parse(&["-", "-q"]).unwrap(), "q | -");
    }

    #[test]
    fn an_abbreviation_works_while_it_means_one_option() {
        assert_eq!(parse(&["--form", "raw", "--force", "--left-for=x"]).unwrap(), "f=raw U a=x | ");
        assert_eq!(
            parse(&["--fo=1"]).unwrap_err().to_string(),
            "option '--fo=1' is ambiguous; possibilities: '--format' '--force-share'"
        );
        assert_eq!(
            parse(&["--left"]).unwrap_err().to_string(),
            "option '--left' is ambiguous; possibilities: '--left-format' '--left-fmt'"
        );
        assert_eq!(parse(&["--p"]), Err(UsageError::Unrecognized("--p".into())));
    }

    #[test]
    fn errors_are_worded_as_glibc_words_them() {
        for (arguments, message) in [
            (&["--foo=1"][..], "unrecognized option '--foo=1'"),
            (&["-qx"], "invalid option -- 'x'"),
            (&["-f"], "option requires an argument -- 'f'"),
            (&["--form"], "option '--format' requires an argument"),
            (&["--force=1"], "option '--force-share' doesn't allow an argument"),
        ] {
            assert_eq!(parse(arguments).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn what_precedes_the_command_ends_at_the_command() {
        let arguments = ["-q", "info", "-U"].map(OsString::from).to_vec();
        let mut parser = Parser::until_operand(OPTIONS, arguments);
        assert_eq!(parser.next().unwrap().unwrap().id, 'q');
        assert_eq!(parser.next().unwrap(), None);
        assert_eq!(parser.operands(), ["info", "-U"]);
    }
}
