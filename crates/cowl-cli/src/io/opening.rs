//! The commands about the file: `open`, `close`, `reopen`.

use std::ffi::OsStr;

use super::shell::{Flow, Shell, Trouble};
use super::words::{Word, Words, letter, value};
use crate::getopt::Opt;
use crate::image_name::ImageName;
use crate::option_list::OptionList;
use crate::settings::Settings;

const OPEN: &[Opt<Word>] = &[
    letter('s'),
    letter('C'),
    letter('n'),
    letter('r'),
    letter('k'),
    value(Word::Text('i'), 'i'),
    value(Word::Text('t'), 't'),
    value(Word::Text('d'), 'd'),
    value(Word::Text('o'), 'o'),
    letter('U'),
];

pub(super) fn open(shell: &mut Shell<'_>, words: &[String]) -> Result<Flow, Trouble> {
    let words = Words::parse(words, OPEN)?;
    let settings = settings(&words, shell.untrusted).map_err(Trouble::Message)?;
    let options = words.text('o');
    let name = match (words.operands.as_slice(), options) {
        ([], Some(options)) => ImageName::try_parse(OsStr::new(options), None, true),
        ([file], Some(options)) => ImageName::with_options(file, options),
        ([file], None) => ImageName::try_parse(OsStr::new(file), None, false),
        _ => return Err(Trouble::Usage),
    };
    if shell.device.is_some() {
        return Err(Trouble::Message("file open already, try 'help close'".into()));
    }
    let opened = name.and_then(|name| shell.open(&name, settings));
    opened.map_err(|reason| Trouble::Message(cannot_open(words.operands.first(), &reason)))?;
    Ok(Flow::Continue)
}

/// The message about a disk that could not be opened.
fn cannot_open(file: Option<&String>, reason: &str) -> String {
    match file {
        Some(file) => format!("can't open device {file}: {reason}"),
        None => format!("can't open: {reason}"),
    }
}

fn settings(words: &Words, untrusted: bool) -> Result<Settings, String> {
    if words.has('s') {
        return Err("temporary snapshots (-s) are not available in this version".into());
    }
    if words.has('C') {
        return Err("copy-on-read (-C) is not available in this version".into());
    }
    let mut settings = Settings::new();
    settings.untrusted = untrusted;
    settings.read_only = words.has('r');
    settings.force_share = words.has('U');
    if words.has('n') {
        settings.set_no_cache();
    }
    if words.has('k') {
        settings.set_aio("native")?;
    }
    words.text('i').map_or(Ok(()), |mode| settings.set_aio(mode))?;
    words.text('t').map_or(Ok(()), |mode| settings.set_cache(mode))?;
    words.text('d').map_or(Ok(()), |mode| settings.set_discard(mode))?;
    Ok(settings)
}

pub(super) fn close(shell: &mut Shell<'_>, _: &[String]) -> Result<Flow, Trouble> {
    shell.close_device()?;
    Ok(Flow::Continue)
}

const REOPEN: &[Opt<Word>] =
    &[value(Word::Text('c'), 'c'), value(Word::Text('o'), 'o'), letter('r'), letter('w')];

pub(super) fn reopen(shell: &mut Shell<'_>, words: &[String]) -> Result<Flow, Trouble> {
    let words = Words::parse(words, REOPEN)?;
    if !words.operands.is_empty() {
        return Err(Trouble::Usage);
    }
    let (name, before) = {
        let device = shell.device();
        (device.name.clone(), device.settings.clone())
    };
    let after = changed(&before, &words).map_err(Trouble::Message)?;
    shell.close_device()?;
    if let Err(reason) = shell.attach(&name, after) {
        // As it was, if that still works.
        shell.attach(&name, before).map_err(Trouble::Message)?;
        return Err(Trouble::Message(reason));
    }
    Ok(Flow::Continue)
}

/// The settings that `reopen` asks for.
fn changed(before: &Settings, words: &Words) -> Result<Settings, String> {
    const CHANGEABLE: [&str; 6] = [
        "read-only",
        "cache.direct",
        "cache.writeback",
        "cache.no-flush",
        "discard",
        "force-share",
    ];
    let mut settings = before.clone();
    if words.has('r') && words.has('w') {
        return Err("Only one -r/-w option may be given".into());
    }
    if let Some(mode) = words.text('c') {
        settings.set_cache(mode)?;
    }
    let options = OptionList::parse(words.text('o').unwrap_or_default(), None);
    for (key, value) in options.iter() {
        if !CHANGEABLE.contains(&key) {
            return Err(format!("Cannot change the option '{key}'"));
        }
        if key == "read-only" && (words.has('r') || words.has('w')) {
            return Err("Cannot set both -r/-w and 'read-only'".into());
        }
        if key.starts_with("cache.") && words.text('c').is_some() {
            return Err("Cannot set both -c and the cache options".into());
        }
        settings.tune(&[(key.to_owned(), value.to_owned())].into())?;
    }
    if words.has('r') || words.has('w') {
        settings.read_only = words.has('r');
    }
    Ok(settings)
}
