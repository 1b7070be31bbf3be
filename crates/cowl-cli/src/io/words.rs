//! The words of one command, taken apart: letters, their values, and the rest.

use std::ffi::OsString;

use super::number;
use super::report::Statistics;
use super::shell::Trouble;
use crate::getopt::{Opt, Parser, Takes};

/// What a letter of a command means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// Just that it was given.
    Letter(char),
    /// The byte that a pattern consists of.
    Pattern,
    /// Where in what was read the pattern begins.
    PatternOffset,
    /// How long the pattern is.
    PatternLength,
    /// Any text.
    Text(char),
}

/// A letter without a value.
pub(super) const fn letter(letter: char) -> Opt<Word> {
    opt(Word::Letter(letter), letter, Takes::Nothing)
}

/// A letter with a value.
pub(super) const fn value(id: Word, letter: char) -> Opt<Word> {
    opt(id, letter, Takes::Value(""))
}

const fn opt(id: Word, letter: char, takes: Takes) -> Opt<Word> {
    Opt { id, short: Some(letter), long: &[], takes, abbreviable: false, help: "" }
}

/// The words of a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    letters: Vec<char>,
    texts: Vec<(char, String)>,
    /// The value of `-P`.
    pub(super) pattern: Option<u8>,
    /// The value of `-s` where it belongs to a pattern.
    pub(super) pattern_offset: Option<u64>,
    /// The value of `-l`.
    pub(super) pattern_length: Option<u64>,
    /// What is no option.
    pub(super) operands: Vec<String>,
}

impl Words {
    /// Takes `words` apart by the table `options`; the first of them is the name of the command.
    pub(super) fn parse(words: &[String], options: &'static [Opt<Word>]) -> Result<Self, Trouble> {
        let arguments: Vec<OsString> = words[1..].iter().map(OsString::from).collect();
        let mut parser = Parser::letters_only(options, arguments);
        let mut parsed = Self::default();
        loop {
            let given = match parser.next() {
                Ok(Some(given)) => given,
                Ok(None) => break,
                Err(error) => return Err(Trouble::Option(format!("{}: {error}", words[0]))),
            };
            let text = given.text();
            match given.id {
                Word::Letter(letter) => parsed.letters.push(letter),
                Word::Text(letter) => parsed.texts.push((letter, text)),
                Word::Pattern => parsed.pattern = Some(number::pattern(&text)?),
                Word::PatternOffset => parsed.pattern_offset = Some(number::bytes(&text)?),
                Word::PatternLength => parsed.pattern_length = Some(number::bytes(&text)?),
            }
        }
        let operands = parser.operands();
        parsed.operands = operands.iter().map(|word| word.to_string_lossy().into()).collect();
        Ok(parsed)
    }

    /// Whether a letter was given.
    pub(super) fn has(&self, letter: char) -> bool {
        self.letters.contains(&letter)
    }

    /// The last value of a letter.
    pub(super) fn text(&self, letter: char) -> Option<&str> {
        self.texts.iter().rev().find(|(given, _)| *given == letter).map(|(_, text)| text.as_str())
    }

    /// What `-q` and `-C` say.
    pub(super) fn statistics(&self) -> Statistics {
        if self.has('q') {
            Statistics::Quiet
        } else if self.has('C') {
            Statistics::Machine
        } else {
            Statistics::Human
        }
    }
}
