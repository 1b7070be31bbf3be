//! `mount`: the file system in an image, or the image as a plain file, in the tree of files.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::background::{is_background, run_in_background};
use crate::commands::Verb;
use crate::disk;
use crate::failure::{Failure, Stop};
use crate::getopt::{Opt, Parser, Takes};
use crate::image_name::ImageName;
use crate::mount::{self, Plan, View};
use crate::option::{self, Common, Flag};
use crate::session::Session;

/// Partition tables have no more, and loop devices show no more.
const PARTITION_MAX: u32 = 128;

const OPTIONS: &[Opt<Flag>] = &[
    option::HELP,
    option::FORMAT,
    option::IMAGE_OPTS,
    option::short(
        Flag::ReadOnly,
        'r',
        &["read-only"],
        Takes::Nothing,
        "Open the image and mount its file system read-only.",
    ),
    option::long(
        Flag::Partition,
        &["partition"],
        Takes::Value("NUMBER"),
        "Mount this partition of the disk. Without it the whole disk is one file system.",
    ),
    option::short(
        Flag::FileSystem,
        't',
        &["types"],
        Takes::Value("FSTYPE"),
        "The type of the file system. Without it mount finds out.",
    ),
    option::short(
        Flag::Options,
        'o',
        &["options"],
        Takes::Value("OPTIONS"),
        "Options for mount. May be repeated.",
    ),
    option::long(
        Flag::FuseOnly,
        &["fuse-only"],
        Takes::Nothing,
        "Show the disk as a plain file: in DIR, under the name of the image, or over DIR when that \
         is a file. Needs no root where fusermount3 is installed.",
    ),
    option::long(
        Flag::Foreground,
        &["foreground"],
        Takes::Nothing,
        "Stay, until it is unmounted or a signal ends the command.",
    ),
    option::short(
        Flag::Unmount,
        'u',
        &["unmount"],
        Takes::Nothing,
        "Unmount what an earlier mount mounted at DIR, and wait until the image is closed.",
    ),
    option::FORCE_SHARE,
    option::UNTRUSTED,
    option::ERRORS,
];

pub(super) const VERB: Verb = Verb {
    name: "mount",
    summary: "Show the files in an image, or the image as a plain file",
    usage: "[OPTIONS] IMAGE DIR | --unmount DIR",
    about: "The image is served as a file through FUSE, which a loop device makes a disk for the \
            kernel. That takes root; --fuse-only does not. A process in the background serves \
            until DIR is unmounted, by --unmount or umount, and then closes the image; --unmount \
            tells when that failed.",
    options: OPTIONS,
    examples: &[
        "disk.qcow2 /mnt",
        "-r --partition 2 disk.qcow2 /mnt",
        "--fuse-only disk.qcow2 folder",
        "--unmount /mnt",
    ],
    run,
};

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Request {
    Mount(Box<Options>),
    Unmount(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Options {
    common: Common,
    image: ImageName,
    plan: Plan,
}

fn parse(arguments: Vec<OsString>) -> Result<Request, Stop> {
    let mut common = Common::default();
    let (mut read_only, mut foreground, mut fuse_only, mut unmount) = (false, false, false, false);
    let (mut partition, mut file_system) = (None, None);
    let mut mount_options = Vec::new();
    let mut parser = Parser::new(OPTIONS, arguments);
    while let Some(given) = parser.next()? {
        match given.id {
            Flag::ReadOnly => read_only = true,
            Flag::Partition => partition = Some(parse_partition(&given.text())?),
            Flag::FileSystem => file_system = Some(given.text()),
            Flag::Options => mount_options.push(given.text()),
            Flag::FuseOnly => fuse_only = true,
            Flag::Foreground => foreground = true,
            Flag::Unmount => unmount = true,
            _ => common.take(&given)?,
        }
    }
    let operands = parser.operands();
    if unmount {
        let [at] = operands.as_slice() else {
            return Err(Failure::usage_with_help("Expecting one directory name").into());
        };
        return Ok(Request::Unmount(at.into()));
    }
    let [image, at] = operands.as_slice() else {
        return Err(Failure::usage_with_help("Expecting an image file name and a directory").into());
    };
    let is_about_files = partition.is_some() || file_system.is_some() || !mount_options.is_empty();
    if fuse_only && is_about_files {
        let message = "--fuse-only mounts no file system: -t, -o and --partition have no use";
        return Err(Failure::usage(message).into());
    }
    let view = match fuse_only {
        true => View::Disk,
        false => View::Files { partition, file_system, options: mount_options },
    };
    let format = common.format.as_deref();
    option::exclude_format_with_image_opts(common.image_opts, format)?;
    let image = ImageName::parse(image, format, common.image_opts)?;
    let plan = Plan { at: at.into(), read_only, foreground, view };
    Ok(Request::Mount(Box::new(Options { common, image, plan })))
}

fn parse_partition(text: &str) -> Result<u32, Failure> {
    match text.parse() {
        Ok(number) if (1..=PARTITION_MAX).contains(&number) => Ok(number),
        _ => Err(Failure::usage(format!(
            "Invalid partition '{text}': expecting a number from 1 to {PARTITION_MAX}"
        ))),
    }
}

fn run(arguments: Vec<OsString>, session: &Session) -> Result<u8, Stop> {
    let options = match parse(arguments)? {
        Request::Unmount(at) => {
            mount::unmount(&at)?;
            return Ok(0);
        }
        Request::Mount(options) => options,
    };
    let Options { common, image, plan } = *options;
    mount::check(&plan)?;
    if !plan.foreground && !is_background() {
        return Ok(run_in_background(session)?);
    }
    let access = match plan.read_only {
        true => cowl::Access::ReadOnly,
        false => cowl::Access::ReadWrite,
    };
    let open = cowl::OpenOptions {
        access,
        ..disk::options(&image, &common, None, cowl::Caching::PageCache)?
    };
    let served = mount::open(&image.path, &open).map_err(|error| match error {
        mount::OpenError::Image(error) => disk::failure(&image, &error),
        mount::OpenError::Ring(error) => mount::no_ring(&error),
    })?;
    if !plan.read_only && open.format.is_none() && served.format() == cowl::Format::Raw {
        session.warn_of_guess(&image.given);
    }
    mount::serve(served, &image.path, &plan, session)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::{Request, parse};
    use crate::failure::Stop;
    use crate::mount::View;
    use std::ffi::OsString;

    fn parse_words(line: &str) -> Result<Request, Stop> {
        parse(line.split(' ').map(OsString::from).collect())
    }

    fn message(line: &str) -> String {
        let Err(Stop::Failed(failure)) = parse_words(line) else { panic!("{line} is accepted") };
        failure.message
    }

    #[test]
    fn a_wrong_command_line_is_answered_in_words() {
        assert_eq!(message("a"), "Expecting an image file name and a directory");
        assert_eq!(message("a b c"), "Expecting an image file name and a directory");
        assert_eq!(message("--unmount a b"), "Expecting one directory name");
        assert!(message("--fuse-only -t ext4 a b").starts_with("--fuse-only mounts no file"));
        for number in ["0", "129", "x", "-1"] {
            let words = message(&format!("--partition {number} a b"));
            assert!(words.starts_with("Invalid partition"), "{words}");
        }
    }

    #[test]
    fn options_reach_the_plan() {
        let line = "-r -t xfs -o noatime -o nouuid --partition 3 a.qcow2 /mnt";
        let Ok(Request::Mount(options)) = parse_words(line) else { panic!("{line} is refused") };
        assert!(options.plan.read_only && !options.plan.foreground);
        let expected = View::Files {
            partition: Some(3),
            file_system: Some("xfs".into()),
            options: vec!["noatime".into(), "nouuid".into()],
        };
        assert_eq!(options.plan.view, expected);
    }
}
