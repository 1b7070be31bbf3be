//! What an operator writes where an image is wanted: a file name, `file:NAME`, `json:{...}`, or
//! with `--image-opts` a list of dotted keys.
//!
//! All forms end in one [`ImageName`]. Only local files with the drivers `raw` and `qcow2` exist;
//! whatever else a form could say is refused by name, and never ignored when it changes what the
//! guest would see.
//!
//! Not here: names found *inside* images. Those are not the operator's, and the engine decides
//! about them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde_json::Value;

use crate::failure::{Failure, Kind};
use crate::nbd_name;
use crate::option_list::OptionList;

/// How deep `backing.backing.…` may nest. Deeper chains come from images, not from command lines.
const NESTING_MAX: usize = 16;

/// An image as the operator named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageName {
    /// The words used, for messages.
    pub(crate) given: String,
    /// The image file.
    pub(crate) path: PathBuf,
    /// Its format, if stated.
    pub(crate) format: Option<String>,
    /// What stands below it.
    pub(crate) backing: BackingChoice,
    /// Options that tune how it is accessed. Most commands have no use for them.
    pub(crate) tuning: BTreeMap<String, String>,
}

/// Which backing file an image is opened with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum BackingChoice {
    /// The one that the image names.
    #[default]
    FromImage,
    /// None at all.
    Nothing,
    /// This one.
    Image(Box<ImageName>),
}

/// Keys of `--image-opts` or `json:`, flattened to dots; `None` is the null of JSON.
type Keys = BTreeMap<String, Option<String>>;

impl ImageName {
    /// Reads an operand. `format` is the value of `-f`; `image_opts` says that the operand is a
    /// list.
    pub(crate) fn parse(
        operand: &OsStr,
        format: Option<&str>,
        image_opts: bool,
    ) -> Result<Self, Failure> {
        Self::try_parse(operand, format, image_opts)
            .map_err(|reason| could_not_open(&operand.to_string_lossy(), &reason))
    }

    /// The same; the error is the reason alone.
    pub(crate) fn try_parse(
        operand: &OsStr,
        format: Option<&str>,
        image_opts: bool,
    ) -> Result<Self, String> {
        let given = operand.to_string_lossy().into_owned();
        let parsed = if image_opts {
            from_list(&given).and_then(|keys| from_keys(&given, keys, NESTING_MAX))
        } else {
            parse_name(operand, &given)
        };
        parsed.and_then(|name| name.with_format(format))
    }

    /// A file with a list of options, as `open -o OPTIONS FILE` gives them.
    pub(crate) fn with_options(file: &str, options: &str) -> Result<Self, String> {
        let mut keys = from_list(options)?;
        if keys.keys().any(|key| key.starts_with("file.filename")) {
            return Err("Cannot specify both a file name and 'file.filename'".into());
        }
        let path = parse_name(OsStr::new(file), file)?.path;
        keys.insert("file.filename".into(), Some(path.to_string_lossy().into_owned()));
        from_keys(file, keys, NESTING_MAX)
    }

    /// The file that an operand names for a new image. It is a plain name or `file:NAME`: to say
    /// more is for images that exist.
    pub(crate) fn new_file(operand: &OsStr) -> Result<PathBuf, String> {
        let given = operand.to_string_lossy();
        let path = match given.strip_prefix("json:") {
            Some(_) => return Err("Unknown protocol 'json'".into()),
            None => parse_name(operand, &given)?.path,
        };
        match cowl::remote_uri(&path) {
            Some(_) => Err("Protocol driver 'nbd' does not support creating new images".into()),
            None => Ok(path),
        }
    }

    /// A local file that another option named.
    pub(crate) fn local(path: PathBuf, format: Option<&str>) -> Self {
        let given = path.to_string_lossy().into_owned();
        let format = format.map(str::to_owned);
        let backing = BackingChoice::FromImage;
        Self { given, path, format, backing, tuning: BTreeMap::new() }
    }

    /// The file name as text, as reports show it.
    pub(crate) fn display(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    fn with_format(mut self, format: Option<&str>) -> Result<Self, String> {
        if let Some(format) = format {
            known_driver(format)?;
            if self.format.as_deref() == Some("qcow2") && format == "raw" {
                return Err("The name says 'qcow2' and the format option says 'raw'".into());
            }
            self.format = Some(format.into());
        }
        Ok(self)
    }
}

/// The failure to open an image, as qemu-img words it.
pub(crate) fn could_not_open(given: &str, reason: &str) -> Failure {
    Failure::new(Kind::Open, format!("Could not open '{given}': {reason}")).about(given)
}

fn parse_name(operand: &OsStr, given: &str) -> Result<ImageName, String> {
    if let Some(json) = given.strip_prefix("json:") {
        return from_keys(given, from_json(json)?, NESTING_MAX);
    }
    if let Some(uri) = nbd_name::uri(given) {
        return Ok(named(given, uri?.into()));
    }
    let bytes = operand.as_bytes();
    let path = match bytes.iter().position(|byte| b":/".contains(byte)) {
        Some(at) if bytes[at] == b':' => match &bytes[..at] {
            b"file" => OsStr::from_bytes(&bytes[at + 1..]),
            protocol => {
                let protocol = String::from_utf8_lossy(protocol);
                return Err(format!("Unknown protocol '{protocol}'"));
            }
        },
        _ => operand,
    };
    plain(given, path.to_owned())
}

fn plain(given: &str, path: OsString) -> Result<ImageName, String> {
    if path.is_empty() {
        return Err("The 'file' block driver requires a file name".into());
    }
    Ok(named(given, cowl::local_path(path.into())))
}

fn named(given: &str, path: PathBuf) -> ImageName {
    let backing = BackingChoice::FromImage;
    ImageName { given: given.into(), path, format: None, backing, tuning: BTreeMap::new() }
}

fn from_list(text: &str) -> Result<Keys, String> {
    let list = OptionList::parse(text, Some("file"));
    Ok(list
        .iter()
        .filter(|(key, _)| !key.is_empty())
        .map(|(key, value)| (key.into(), Some(value.into())))
        .collect())
}

fn from_json(text: &str) -> Result<Keys, String> {
    let value: Value = serde_json::from_str(&with_double_quotes(text))
        .map_err(|error| format!("Could not parse the JSON options: JSON parse error, {error}"))?;
    if !value.is_object() {
        return Err("Invalid JSON object given".into());
    }
    let mut keys = Keys::new();
    flatten("", value, &mut keys);
    Ok(keys)
}

/// JSON for people at a shell may use single quotes.
fn with_double_quotes(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some('\''), '"') => result.push_str("\\\""),
            (Some(_), '\\') => match characters.next() {
                Some('\'') => result.push('\''),
                Some(escaped) => result.extend(['\\', escaped]),
                None => result.push('\\'),
            },
            (None, '"' | '\'') => {
                quote = Some(character);
                result.push('"');
            }
            (Some(open), _) if open == character => {
                quote = None;
                result.push('"');
            }
            _ => result.push(character),
        }
    }
    result
}

fn flatten(prefix: &str, value: Value, keys: &mut Keys) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let key = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
                flatten(&key, value, keys);
            }
        }
        Value::Null => drop(keys.insert(prefix.into(), None)),
        Value::Bool(on) => {
            drop(keys.insert(prefix.into(), Some(if on { "on" } else { "off" }.into())));
        }
        Value::String(text) => drop(keys.insert(prefix.into(), Some(text))),
        other => drop(keys.insert(prefix.into(), Some(other.to_string()))),
    }
}

fn from_keys(given: &str, mut keys: Keys, nesting_left: usize) -> Result<ImageName, String> {
    let format = keys.remove("driver").flatten();
    let backing = take_backing(given, &mut keys, nesting_left)?;
    let file = take_prefix(&mut keys, "file.");
    if let Some(reference) = keys.remove("file").flatten() {
        return Err(format!("Cannot find device='{reference}' nor node-name='{reference}'"));
    }
    if let Some(format) = &format {
        known_driver(format)?;
    }
    if file.is_empty() {
        return Err(match format {
            Some(_) => "A block device must be specified for \"file\"".into(),
            None => "Must specify either driver or file".into(),
        });
    }
    for key in keys.keys() {
        if !is_harmless(key, format.as_deref()) {
            let format = format.as_deref().unwrap_or("raw");
            return Err(format!("Block format '{format}' does not support the option '{key}'"));
        }
    }
    let image = match file.get("driver").and_then(Option::as_deref) {
        Some("nbd") => {
            let mut keys = file;
            keys.remove("driver");
            named(given, nbd_name::from_keys(&keys)?.into())
        }
        _ => plain(given, file_name(file)?.into())?,
    };
    let tuning = keys.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
    Ok(ImageName { format, backing, tuning, ..image })
}

fn take_backing(
    given: &str,
    keys: &mut Keys,
    nesting_left: usize,
) -> Result<BackingChoice, String> {
    let below = take_prefix(keys, "backing.");
    match keys.remove("backing") {
        Some(None) => return Ok(BackingChoice::Nothing),
        Some(Some(empty)) if empty.is_empty() => return Ok(BackingChoice::Nothing),
        Some(Some(reference)) => {
            return Err(format!("Cannot find device='{reference}' nor node-name='{reference}'"));
        }
        None => {}
    }
    if below.is_empty() {
        return Ok(BackingChoice::FromImage);
    }
    if nesting_left == 0 {
        return Err(format!("'backing' is nested more than {NESTING_MAX} deep"));
    }
    let below = from_keys(given, below, nesting_left - 1)?;
    Ok(BackingChoice::Image(Box::new(below)))
}

fn take_prefix(keys: &mut Keys, prefix: &str) -> Keys {
    let (below, rest) =
        std::mem::take(keys).into_iter().partition::<Keys, _>(|(key, _)| key.starts_with(prefix));
    *keys = rest;
    below.into_iter().map(|(key, value)| (key[prefix.len()..].to_owned(), value)).collect()
}

fn file_name(mut file: Keys) -> Result<String, String> {
    match file.remove("driver").flatten().as_deref() {
        None | Some("file" | "host_device") => {}
        Some(other) => {
            return Err(format!(
                "Driver '{other}' is not available below an image, only 'file' is"
            ));
        }
    }
    let name = file.remove("filename").flatten().unwrap_or_default();
    match file.keys().find(|key| !is_harmless(key, Some("file"))) {
        Some(key) => Err(format!("Block protocol 'file' doesn't support the option '{key}'")),
        None if name.is_empty() => Err("The 'file' block driver requires a file name".into()),
        None => Ok(name),
    }
}

fn known_driver(name: &str) -> Result<(), String> {
    match name {
        "raw" | "qcow2" => Ok(()),
        _ => Err(format!("Unknown driver '{name}'")),
    }
}

/// Options that tune how an image is accessed but not what it contains.
fn is_harmless(key: &str, driver: Option<&str>) -> bool {
    const ANY: [&str; 9] = [
        "node-name",
        "read-only",
        "auto-read-only",
        "force-share",
        "discard",
        "detect-zeroes",
        "cache.direct",
        "cache.no-flush",
        "cache.writeback",
    ];
    const FILE: [&str; 4] = ["aio", "aio-max-batch", "locking", "pr-manager"];
    const QCOW2: [&str; 14] = [
        "lazy-refcounts",
        "pass-discard-request",
        "pass-discard-snapshot",
        "pass-discard-other",
        "discard-no-unref",
        "overlap-check",
        "overlap-check.template",
        "cache-size",
        "l2-cache-size",
        "l2-cache-entry-size",
        "refcount-cache-size",
        "cache-clean-interval",
        "encrypt.format",
        "encrypt.key-secret",
    ];
    ANY.contains(&key)
        || (driver == Some("file") && FILE.contains(&key))
        || (driver == Some("qcow2") && QCOW2.contains(&key))
}

#[cfg(test)]
mod tests {
    use super::{BackingChoice, ImageName};
    use std::ffi::OsStr;

    fn name(operand: &str, format: Option<&str>, image_opts: bool) -> Result<ImageName, String> {
        ImageName::parse(OsStr::new(operand), format, image_opts).map_err(|failure| failure.message)
    }

    /// `path format` of a name that must parse.
    fn parsed(operand: &str, image_opts: bool) -> String {
        let name = name(operand, None, image_opts).unwrap();
        format!("{} {}", name.display(), name.format.as_deref().unwrap_or("-"))
    }

    #[test]
    fn new_images_are_local_files() {
        let path = |text: &str| ImageName::new_file(OsStr::new(text));
        for (text, name) in [("a", "a"), ("file:a", "a"), ("./a:b", "./a:b"), ("file:a:b", "a:b")] {
            assert_eq!(path(text), Ok(name.into()));
        }
        assert!(path("nbd:a:1").is_err_and(|reason| reason.contains("'nbd' does not support")));
        assert_eq!(path("file:nbd://a"), Ok("./nbd://a".into()));
        assert_eq!(path("json:{}"), Err("Unknown protocol 'json'".into()));
    }

    #[test]
    fn plain_names_are_local_files() {
        assert_eq!(parsed("a.img", false), "a.img -");
        assert_eq!(parsed("file:a.img", false), "a.img -");
        assert_eq!(parsed("./foo:bar", false), "./foo:bar -");
        assert_eq!(parsed("dir/foo:bar", false), "dir/foo:bar -");
    }

    #[test]
    fn lists_and_json_name_the_same_things() {
        for (operand, image_opts) in [
            ("driver=qcow2,file.driver=file,file.filename=a", true),
            ("json:{'driver':'qcow2','file':{'driver':'file','filename':'a'}}", false),
            (r#"json:{"driver":"qcow2","file.filename":"a"}"#, false),
            ("json:{'driver':'qcow2','file.filename':'a','read-only':true}", false),
        ] {
            assert_eq!(parsed(operand, image_opts), "a qcow2", "{operand}");
        }
        assert_eq!(parsed("file.filename=a,,b", true), "a,b -");
        assert_eq!(parsed(r#"json:{'file.filename':'a"b\'c'}"#, false), "a\"b'c -");
    }

    #[test]
    fn a_backing_file_may_be_chosen_or_left_out() {
        let below = |operand| name(operand, None, true).unwrap().backing;
        assert_eq!(below("file.filename=a"), BackingChoice::FromImage);
        assert_eq!(below("file.filename=a,backing="), BackingChoice::Nothing);
        let chosen = below("file.filename=a,backing.driver=raw,backing.file.filename=b");
        let BackingChoice::Image(chosen) = chosen else { panic!("{chosen:?}") };
        assert_eq!((chosen.display().as_str(), chosen.format.as_deref()), ("b", Some("raw")));
        let json = name("json:{'file.filename':'a','backing':null}", None, false).unwrap();
        assert_eq!(json.backing, BackingChoice::Nothing);
    }

    #[test]
    fn refusals_are_worded_as_qemu_img_words_them() {
        for (operand, image_opts, reason) in [
            ("", false, "The 'file' block driver requires a file name"),
            ("foo:bar", false, "Unknown protocol 'foo'"),
            ("json:[]", false, "Invalid JSON object given"),
            ("json:{}", false, "Must specify either driver or file"),
            ("", true, "Must specify either driver or file"),
            ("a.raw", true, "Cannot find device='a.raw' nor node-name='a.raw'"),
            ("driver=qcow2", true, "A block device must be specified for \"file\""),
            ("driver=nope,file.filename=a", true, "Unknown driver 'nope'"),
            (
                "driver=qcow2,file.filename=a,bogus=1",
                true,
                "Block format 'qcow2' does not support the option 'bogus'",
            ),
        ] {
            let message = format!("Could not open '{operand}': {reason}");
            assert_eq!(name(operand, None, image_opts).unwrap_err(), message);
        }
        assert_eq!(
            name("a", Some("nope"), false).unwrap_err(),
            "Could not open 'a': Unknown driver 'nope'"
        );
    }

    #[test]
    fn what_would_change_the_content_is_never_ignored() {
        assert!(name("driver=raw,offset=512,file.filename=a", None, true).is_err());
        assert!(name("driver=qcow2,file.driver=ssh,file.host=x", None, true).is_err());
        assert!(name("driver=raw,file.driver=nbd,file.host=x,file.x=y", None, true).is_err());
        assert!(name("driver=qcow2,file.filename=a,data-file.filename=b", None, true).is_err());
    }
}
