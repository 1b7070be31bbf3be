//! `io`: run commands of qemu-io's language on an image. Called as `qemu-io` the program is this.

use std::ffi::OsString;

use crate::commands::Verb;
use crate::failure::{Failure, Kind, Stop};
use crate::getopt::{Opt, Parser, Takes};
use crate::help;
use crate::image_name::ImageName;
use crate::io::Shell;
use crate::option::{self, Common, Flag};
use crate::session::Session;
use crate::settings::Settings;

const OPTIONS: &[Opt<Flag>] = &[
    option::HELP,
    option::short(Flag::Version, 'V', &["version"], Takes::Nothing, "Show the version."),
    option::short(
        Flag::Command,
        'c',
        &["cmd"],
        Takes::Value("COMMAND"),
        "Run this command. May be repeated; without it commands are read from standard input.",
    ),
    option::FORMAT,
    option::short(
        Flag::ReadOnly,
        'r',
        &["read-only"],
        Takes::Nothing,
        "Open the image read-only. Otherwise it is opened for writing.",
    ),
    option::short(
        Flag::Temporary,
        's',
        &["snapshot"],
        Takes::Nothing,
        "Not available: a temporary snapshot.",
    ),
    option::short(
        Flag::NoCache,
        'n',
        &["nocache"],
        Takes::Nothing,
        "Go around the page cache of the host; short for -t none.",
    ),
    option::short(
        Flag::CopyOnRead,
        'C',
        &["copy-on-read"],
        Takes::Nothing,
        "Not available: copy-on-read.",
    ),
    option::short(
        Flag::Misalign,
        'm',
        &["misalign"],
        Takes::Nothing,
        "No effect: buffers are never aligned for O_DIRECT.",
    ),
    option::short(Flag::NativeAio, 'k', &["native-aio"], Takes::Nothing, "The same as -i native."),
    option::short(
        Flag::Aio,
        'i',
        &["aio"],
        Takes::Value("MODE"),
        "threads, native or io_uring; the driver is the same. native needs -t none.",
    ),
    option::short(
        Flag::SourceCache,
        't',
        &["cache"],
        Takes::Value("MODE"),
        "none, writeback, writethrough (the default), directsync or unsafe.",
    ),
    option::short(
        Flag::Discard,
        'd',
        &["discard"],
        Takes::Value("MODE"),
        "unmap (the default) or ignore.",
    ),
    option::short(Flag::Trace, 'T', &["trace"], Takes::OptionalValue("TRACE"), "Not available."),
    option::FORCE_SHARE,
    option::IMAGE_OPTS,
    option::OBJECT,
    option::UNTRUSTED,
    option::ERRORS,
];

pub(crate) const VERB: Verb = Verb {
    name: "io",
    summary: "Read, write and ask about an image, one command at a time",
    usage: "[OPTIONS] [-c COMMAND]... [IMAGE]",
    about: "The commands are those of qemu-io; '-c help' lists them. Sizes and offsets take k, M, \
            G and so on. Exit code 1 means that a command failed; the others were run all the \
            same.",
    options: OPTIONS,
    examples: &[
        "-c 'write -P 0x41 0 64k' -c 'read -v 0 32' disk.qcow2",
        "-r -c map disk.qcow2",
        "-c 'aio_write 0 1M' -c 'aio_write 1M 1M' -c aio_flush disk.qcow2",
    ],
    run,
};

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Options {
    common: Common,
    commands: Vec<String>,
    settings: Settings,
    image: Option<OsString>,
}

fn parse(arguments: Vec<OsString>, session: &Session) -> Result<Options, Stop> {
    let mut common = Common::default();
    let mut commands = Vec::new();
    let mut settings = Settings::new();
    let mut parser = Parser::new(OPTIONS, arguments);
    while let Some(given) = parser.next()? {
        let text = given.text();
        match given.id {
            Flag::Version => return Err(Stop::Answer(help::version(session))),
            Flag::Command => commands.push(text),
            Flag::ReadOnly => settings.read_only = true,
            Flag::NoCache => settings.set_no_cache(),
            Flag::Misalign => {}
            Flag::NativeAio => settings.set_aio("native").map_err(Failure::usage)?,
            Flag::Aio => settings.set_aio(&text).map_err(Failure::usage)?,
            Flag::SourceCache => settings.set_cache(&text).map_err(Failure::usage)?,
            Flag::Discard => settings.set_discard(&text).map_err(Failure::usage)?,
            Flag::Temporary => {
                return Err(option::not_available("a temporary snapshot (-s)").into());
            }
            Flag::CopyOnRead => return Err(option::not_available("copy-on-read (-C)").into()),
            Flag::Trace => return Err(option::not_available("tracing (-T)").into()),
            _ => common.take(&given)?,
        }
    }
    settings.force_share = common.force_share;
    settings.untrusted = common.untrusted;
    if common.image_opts && common.format.is_some() {
        return Err(Failure::usage("--image-opts and -f are mutually exclusive").into());
    }
    let operands = parser.operands();
    if 1 < operands.len() {
        return Err(Failure::usage_with_help("Expecting one image file name").into());
    }
    Ok(Options { common, commands, settings, image: operands.into_iter().next() })
}

fn run(arguments: Vec<OsString>, session: &Session) -> Result<u8, Stop> {
    let options = parse(arguments, session)?;
    let mut shell = Shell::new(session, options.common.untrusted);
    if let Some(image) = &options.image {
        let (common, given) = (&options.common, image.to_string_lossy());
        let name = ImageName::try_parse(image, common.format.as_deref(), common.image_opts);
        let opened = name.and_then(|name| shell.open(&name, options.settings.clone()));
        opened.map_err(|reason| {
            let device = if common.image_opts { "" } else { &format!(" device {given}") };
            let message = format!("can't open{device}: {reason}");
            Failure::new(Kind::Open, message).about(given.as_ref())
        })?;
    }
    let input = match options.commands.as_slice() {
        [] => shell.run_input(),
        commands => {
            shell.run_lines(commands);
            Ok(())
        }
    };
    let all_well = shell.finish();
    input
        .map_err(|error| Failure::new(Kind::Io, format!("Could not read the commands: {error}")))?;
    Ok(if all_well { 0 } else { 1 })
}

#[cfg(test)]
mod tests {
    use super::parse;
    use crate::failure::Stop;
    use crate::output::Output;
    use crate::session::Session;
    use std::ffi::OsString;

    #[test]
    fn commands_are_kept_in_order_and_contradictions_refused() {
        let output = Output::new(Box::new(std::io::sink()), Box::new(std::io::sink()));
        let session = Session::new(Some("qemu-io".into()), &[], output);
        let parse =
            |words: &[&str]| parse(words.iter().map(OsString::from).collect::<Vec<_>>(), &session);
        let options = parse(&["-c", "length", "a", "-rc", "read 0 1", "--cmd=map"]).unwrap();
        assert_eq!(options.commands, ["length", "read 0 1", "map"]);
        assert!(options.settings.read_only);
        for (words, message) in [
            (&["-t", "x"][..], "Invalid cache option: x"),
            (&["-d", "x"], "Invalid discard option: x"),
            (&["-i", "x"], "Invalid aio option: x"),
            (&["--image-opts", "-f", "raw", "a"], "--image-opts and -f are mutually exclusive"),
            (&["-s", "a"], "a temporary snapshot (-s) is not available in this version"),
        ] {
            let Err(Stop::Failed(failure)) = parse(words) else { panic!("{words:?}") };
            assert_eq!(failure.message, message);
        }
    }
}
