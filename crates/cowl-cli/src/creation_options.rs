//! `-o`: the options of a new image, as qemu-img's tables type them.
//!
//! Values are checked for their type here (`size`, `on|off`, number); whether they make sense
//! together is decided by whoever makes the image.

use crate::option_list::{self, OptionList};
use crate::size::{SizeError, parse_size};

/// Options that were given, in the order of the format's table.
#[derive(Clone, Debug)]
pub(crate) struct CreationOptions {
    table: &'static [Entry],
    values: Vec<(&'static str, OptionValue)>,
}

/// The value of an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OptionValue {
    Text(String),
    Size(u64),
    Number(u64),
    Switch {
        on: bool,
        /// `on` may also have been given as `yes`, `true` or `y`, and is shown as given.
        spelling: String,
    },
}

impl std::fmt::Display for OptionValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) | Self::Switch { spelling: text, .. } => f.write_str(text),
            Self::Size(number) => number.fmt(f),
            Self::Number(number) => number.cast_signed().fmt(f),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Text,
    Size,
    Number,
    Switch,
}

#[derive(Debug)]
struct Entry {
    name: &'static str,
    kind: Type,
    help: &'static str,
}

const fn entry(name: &'static str, kind: Type, help: &'static str) -> Entry {
    Entry { name, kind, help }
}

/// In the order in which `Formatting '...'` shows them.
const QCOW2: &[Entry] = &[
    entry("encryption", Type::Switch, "Old name of encrypt.format=aes"),
    entry("encrypt.format", Type::Text, "Kind of encryption: aes or luks"),
    entry("encrypt.key-secret", Type::Text, "ID of the secret that holds the password"),
    entry("encrypt.cipher-alg", Type::Text, "Cipher"),
    entry("encrypt.cipher-mode", Type::Text, "Mode of the cipher"),
    entry("encrypt.ivgen-alg", Type::Text, "Generator of initialisation vectors"),
    entry("encrypt.ivgen-hash-alg", Type::Text, "Hash of that generator"),
    entry("encrypt.hash-alg", Type::Text, "Hash of the key derivation"),
    entry("encrypt.iter-time", Type::Number, "Milliseconds to spend on the key derivation"),
    entry("cluster_size", Type::Size, "Bytes per cluster, 512 to 2M (64k)"),
    entry("extended_l2", Type::Switch, "Divide each cluster into 32 subclusters (off)"),
    entry("preallocation", Type::Text, "Allocate now: off, metadata, falloc or full (off)"),
    entry(
        "compression_type",
        Type::Text,
        "How compressed clusters are packed: zlib or zstd (zlib)",
    ),
    entry("size", Type::Size, "Size of the disk"),
    entry("compat", Type::Text, "Version of the format: 0.10 (v2) or 1.1 (v3)"),
    entry("backing_file", Type::Text, "The image to build upon"),
    entry("backing_fmt", Type::Text, "Format of that image"),
    entry("data_file", Type::Text, "Keep the data in this other file"),
    entry("data_file_raw", Type::Switch, "Keep that file readable as a raw image (off)"),
    entry("lazy_refcounts", Type::Switch, "Write refcounts late (off)"),
    entry("refcount_bits", Type::Number, "Bits per refcount, 1 to 64 (16)"),
    entry("nocow", Type::Switch, "Turn copy-on-write of the file system off (btrfs)"),
    entry("extent_size_hint", Type::Size, "Extent size hint for the file system (xfs)"),
];

/// The options that every new qcow2 image has a value of, for the line that says what is made.
pub(crate) const QCOW2_DEFAULTS: &[(&str, DefaultValue)] = &[
    ("cluster_size", DefaultValue::Size(65536)),
    ("extended_l2", DefaultValue::Off),
    ("compression_type", DefaultValue::Text("zlib")),
    ("lazy_refcounts", DefaultValue::Off),
    ("refcount_bits", DefaultValue::Size(16)),
];

/// A value that needs no memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DefaultValue {
    Size(u64),
    Off,
    Text(&'static str),
}

impl DefaultValue {
    /// The same as an option given by the user.
    pub(crate) fn to_value(self) -> OptionValue {
        match self {
            Self::Size(size) => OptionValue::Size(size),
            Self::Off => OptionValue::Switch { on: false, spelling: "off".into() },
            Self::Text(text) => OptionValue::Text(text.into()),
        }
    }
}

const RAW: &[Entry] = &[
    entry("size", Type::Size, "Size of the disk"),
    entry("nocow", Type::Switch, "Turn copy-on-write of the file system off (btrfs)"),
    entry("preallocation", Type::Text, "Allocate now: off, falloc or full (off)"),
    entry("extent_size_hint", Type::Size, "Extent size hint for the file system (xfs)"),
];

fn table(format: &str) -> &'static [Entry] {
    if format == "qcow2" { QCOW2 } else { RAW }
}

impl CreationOptions {
    /// Types `list` by the table of `format`. The error is qemu-img's text.
    pub(crate) fn parse(format: &str, list: &OptionList) -> Result<Self, String> {
        let table = table(format);
        let mut values: Vec<Option<OptionValue>> = table.iter().map(|_| None).collect();
        for (name, text) in list.iter() {
            let Some(at) = table.iter().position(|entry| entry.name == name) else {
                return Err(format!("Invalid parameter '{name}'"));
            };
            values[at] = Some(parse_value(table[at].kind, name, text)?);
        }
        let given = table.iter().zip(values);
        let values = given.filter_map(|(entry, value)| Some((entry.name, value?))).collect();
        Ok(Self { table, values })
    }

    /// The options that were given.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &OptionValue)> {
        self.values.iter().map(|(name, value)| (*name, value))
    }

    /// Sets an option of the format's table, in its place.
    pub(crate) fn set(&mut self, name: &'static str, value: OptionValue) {
        self.values.retain(|(given, _)| *given != name);
        let table = self.table;
        let rank = |name: &str| table.iter().position(|entry| entry.name == name);
        let at = self.values.iter().position(|(given, _)| rank(name) < rank(given));
        self.values.insert(at.unwrap_or(self.values.len()), (name, value));
    }

    fn get(&self, name: &str) -> Option<&OptionValue> {
        self.iter().find(|(given, _)| *given == name).map(|(_, value)| value)
    }

    /// A text option.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            OptionValue::Text(text) => Some(text),
            other => unreachable!("{name} is no text: {other:?}"),
        }
    }

    /// A size or number.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        match self.get(name)? {
            OptionValue::Size(number) | OptionValue::Number(number) => Some(*number),
            other => unreachable!("{name} is no number: {other:?}"),
        }
    }

    /// A switch.
    pub(crate) fn switch(&self, name: &str) -> Option<bool> {
        match self.get(name)? {
            OptionValue::Switch { on, .. } => Some(*on),
            other => unreachable!("{name} is no switch: {other:?}"),
        }
    }
}

fn parse_value(kind: Type, name: &str, text: &str) -> Result<OptionValue, String> {
    match kind {
        Type::Text => Ok(OptionValue::Text(text.into())),
        Type::Switch => match text {
            "on" | "yes" | "true" | "y" => {
                Ok(OptionValue::Switch { on: true, spelling: text.into() })
            }
            "off" | "no" | "false" | "n" => {
                Ok(OptionValue::Switch { on: false, spelling: text.into() })
            }
            _ => Err(format!("Parameter '{name}' expects 'on' or 'off'")),
        },
        Type::Number => parse_number(text)
            .map(OptionValue::Number)
            .ok_or_else(|| format!("Parameter '{name}' expects a number")),
        Type::Size => parse_size(text).map(OptionValue::Size).map_err(|error| match error {
            SizeError::OutOfRange => {
                format!("Value '{text}' is out of range for parameter '{name}'")
            }
            SizeError::Malformed => format!(
                "Parameter '{name}' expects a non-negative number below 2^64\nOptional suffix k, \
                 M, \
                 G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
            ),
        }),
    }
}

/// A number in C's notation: decimal, `0x` or octal, and negative ones wrap around.
fn parse_number(text: &str) -> Option<u64> {
    let text = text.trim_start();
    if let Some(negative) = text.strip_prefix('-') {
        return parse_number(negative).map(u64::wrapping_neg);
    }
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    if text.len() > 1 && text.starts_with('0') {
        return u64::from_str_radix(&text[1..], 8).ok();
    }
    text.parse().ok()
}

/// The list of options for `-o help`.
pub(crate) fn help(format: &str) -> String {
    let mut entries: Vec<&Entry> = table(format).iter().collect();
    entries.sort_by_key(|entry| entry.name);
    let mut text = format!("Supported {format} options:\n");
    for entry in entries {
        let kind = match entry.kind {
            Type::Text => "str",
            Type::Size => "size",
            Type::Number => "num",
            Type::Switch => "bool (on/off)",
        };
        let name = format!("{}=<{kind}>", entry.name);
        text.push_str(&format!("  {name:<22} - {}\n", entry.help));
    }
    text
}

/// Joins repeated `-o` values; `None` when one of them could not be joined.
pub(crate) fn join(lists: &[String]) -> Result<OptionList, String> {
    let mut joined = OptionList::default();
    for list in lists {
        if !option_list::is_valid(list) {
            return Err(format!("Invalid option list: {list}"));
        }
        joined.append(OptionList::parse(list, None));
    }
    Ok(joined)
}

#[cfg(test)]
mod tests {
    use super::{CreationOptions, help, join};

    fn parse(format: &str, text: &str) -> Result<CreationOptions, String> {
        CreationOptions::parse(format, &join(&[text.into()])?)
    }

    #[test]
    fn values_are_typed_and_stand_in_the_order_of_the_table() {
        let options = parse("qcow2", "refcount_bits=8,cluster_size=128k,lazy_refcounts,compat=v3");
        let options = options.unwrap();
        let names: Vec<_> = options.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["cluster_size", "compat", "lazy_refcounts", "refcount_bits"]);
        assert_eq!(options.number("cluster_size"), Some(131_072));
        assert_eq!(options.switch("lazy_refcounts"), Some(true));
        assert_eq!(options.text("compat"), Some("v3"));
        assert_eq!(options.get("size"), None);
    }

    #[test]
    fn mistakes_are_told_in_the_words_of_qemu_img() {
        for (text, message) in [
            ("nope=1", "Invalid parameter 'nope'"),
            ("nocow", "Invalid parameter 'cow'"),
            ("lazy_refcounts=maybe", "Parameter 'lazy_refcounts' expects 'on' or 'off'"),
            ("refcount_bits=16k", "Parameter 'refcount_bits' expects a number"),
            ("cluster_size=-1", "Value '-1' is out of range for parameter 'cluster_size'"),
            ("size=1,", "Invalid option list: size=1,"),
        ] {
            assert_eq!(parse("qcow2", text).unwrap_err(), message);
        }
        assert!(parse("qcow2", "size=x").unwrap_err().contains("Optional suffix k, M, G"));
        assert_eq!(parse("raw", "cluster_size=1").unwrap_err(), "Invalid parameter 'cluster_size'");
    }

    #[test]
    fn the_help_lists_every_option_once() {
        let text = help("qcow2");
        assert_eq!(text.lines().count(), 1 + super::QCOW2.len());
        assert!(text.contains("  cluster_size=<size>    - "));
    }
}
