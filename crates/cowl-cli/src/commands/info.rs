//! `info`: what an image says about itself.

use std::ffi::OsString;

use cowl_tools::{ImageInfo, InfoError, InfoOptions, NodeInfo, SnapshotInfo};
use serde_json::Value;

use crate::commands::Verb;
use crate::disk;
use crate::failure::{Failure, Kind, Stop};
use crate::getopt::{Opt, Parser, Takes};
use crate::image_name::{ImageName, could_not_open};
use crate::json;
use crate::option::{self, Common, Flag, OutputFormat};
use crate::session::Session;
use crate::text;

const OPTIONS: &[Opt<Flag>] = &[
    option::HELP,
    option::FORMAT,
    option::IMAGE_OPTS,
    option::short(
        Flag::BackingChain,
        'b',
        &["backing-chain"],
        Takes::Nothing,
        "Go on with the backing file, its backing file, and so on.",
    ),
    option::FORCE_SHARE,
    option::OUTPUT,
    option::OBJECT,
    option::UNTRUSTED,
    option::FOLLOW_NBD,
    option::ERRORS,
];

pub(super) const VERB: Verb = Verb {
    name: "info",
    summary: "Show what an image says about itself",
    usage: "[OPTIONS] IMAGE",
    about: "Prints the format, the size of the disk and of the file, the backing file, internal \
            snapshots and bitmaps. Only the image's own tables are read, and no other file is \
            opened \
            unless --backing-chain is given.",
    options: OPTIONS,
    examples: &["disk.qcow2", "--output=json --backing-chain overlay.qcow2"],
    run,
};

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Options {
    common: Common,
    image: ImageName,
    backing_chain: bool,
}

fn parse(arguments: Vec<OsString>) -> Result<Options, Stop> {
    let mut common = Common::default();
    let mut backing_chain = false;
    let mut parser = Parser::new(OPTIONS, arguments);
    while let Some(given) = parser.next()? {
        match given.id {
            Flag::BackingChain => backing_chain = true,
            _ => common.take(&given)?,
        }
    }
    let operands = parser.operands();
    let [operand] = operands.as_slice() else {
        return Err(Failure::usage_with_help("Expecting one image file name").into());
    };
    let format = common.format.as_deref();
    option::exclude_format_with_image_opts(common.image_opts, format)?;
    let image = ImageName::parse(operand, format, common.image_opts)?;
    Ok(Options { common, image, backing_chain })
}

fn run(arguments: Vec<OsString>, session: &Session) -> Result<u8, Stop> {
    let options = parse(arguments)?;
    let chain = inspect(&options)?;
    for warning in chain.iter().flat_map(|info| &info.warnings) {
        session.warn(warning);
    }
    let text = match (options.common.output, options.backing_chain) {
        (OutputFormat::Human, _) => human(&chain),
        (OutputFormat::Json, true) => json::to_text(&chain),
        (OutputFormat::Json, false) => json::to_text(&chain[0]),
    };
    session.output.text(&text);
    Ok(0)
}

fn inspect(options: &Options) -> Result<Vec<ImageInfo>, Failure> {
    let image = &options.image;
    let how = InfoOptions {
        format: disk::format(image),
        sharing: disk::sharing(&options.common),
        follow: disk::follow(&options.common),
    };
    let found = match options.backing_chain {
        true => cowl_tools::info_chain(&image.path, how),
        false => cowl_tools::info(&image.path, how).map(|info| vec![info]),
    };
    found.map_err(|error| match &error {
        InfoError::Open { path, source } if *path == image.path => disk::failure(image, source),
        InfoError::Open { path, source } => {
            could_not_open(&path.to_string_lossy(), &disk::words(source))
        }
        InfoError::Loop { path } => Failure::new(Kind::Open, error.to_string()).about(path),
    })
}

fn human(chain: &[ImageInfo]) -> String {
    chain.iter().map(image).collect::<Vec<_>>().join("\n")
}

fn image(info: &ImageInfo) -> String {
    let mut text = format!(
        "image: {}\nfile format: {}\nvirtual size: {} ({} bytes)\ndisk size: {}\n",
        info.filename,
        info.format,
        text::size(info.virtual_size),
        info.virtual_size,
        disk_size(info.actual_size)
    );
    if info.encrypted {
        text.push_str("encrypted: yes\n");
    }
    if let Some(cluster_size) = info.cluster_size {
        text.push_str(&format!("cluster_size: {cluster_size}\n"));
    }
    if info.dirty_flag {
        text.push_str("cleanly shut down: no\n");
    }
    text.push_str(&backing(info));
    if !info.snapshots.is_empty() {
        text.push_str(&snapshots(&info.snapshots));
    }
    text.push_str(&specific(info.format_specific.as_ref().map(data_of), 0));
    for child in &info.children {
        text.push_str(&format!("Child node '/{}':\n{}", child.name, node(&child.info)));
    }
    text
}

fn backing(info: &ImageInfo) -> String {
    let Some(name) = &info.backing_filename else {
        return String::new();
    };
    let actual = match &info.full_backing_filename {
        None => " (cannot determine actual path)".into(),
        Some(full) if full != name => format!(" (actual path: {full})"),
        Some(_) => String::new(),
    };
    let format = info.backing_filename_format.as_ref();
    let format = format.map(|format| format!("backing file format: {format}\n"));
    format!("backing file: {name}{actual}\n{}", format.unwrap_or_default())
}

fn node(info: &NodeInfo) -> String {
    let mut text = format!(
        "    filename: {}\n    protocol type: {}\n    file length: {} ({} bytes)\n    disk size: \
         {}\n",
        info.filename,
        info.format,
        text::size(info.virtual_size),
        info.virtual_size,
        disk_size(info.actual_size)
    );
    text.push_str(&specific(info.format_specific.as_ref().map(data_of), 1));
    text
}

fn disk_size(bytes: Option<u64>) -> String {
    bytes.map_or("unavailable".into(), text::size)
}

fn snapshots(list: &[SnapshotInfo]) -> String {
    let row = |columns: [&str; 6]| {
        let [id, tag, size, date, clock, icount] = columns;
        format!("{id:<7} {tag:<16} {size:>8} {date:>19} {clock:>15} {icount:>10}\n")
    };
    let mut text = String::from("Snapshot list:\n");
    text.push_str(&row(["ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"]));
    for snapshot in list {
        text.push_str(&row([
            &snapshot.id,
            &snapshot.name,
            &text::size(snapshot.vm_state_size),
            &text::local_date(snapshot.date_sec),
            &text::guest_clock(snapshot.vm_clock_sec, snapshot.vm_clock_nsec),
            &snapshot.icount.map_or("--".into(), |count| count.to_string()),
        ]));
    }
    text
}

/// The part below `data` of what only the format has.
fn data_of(specific: &cowl_tools::FormatSpecific) -> Value {
    let mut value = serde_json::to_value(specific).expect("reports are JSON");
    value.get_mut("data").map(Value::take).unwrap_or_default()
}

/// What only the format of an image has, as lines.
pub(crate) fn format_specific(info: &ImageInfo) -> String {
    specific(info.format_specific.as_ref().map(data_of), 0)
}

/// What only the format has: printed from its JSON, so that nothing can be forgotten here.
fn specific(data: Option<Value>, indent: usize) -> String {
    match data {
        Some(Value::Object(object)) if !object.is_empty() => {
            let heading = format!("{}Format specific information:\n", "    ".repeat(indent));
            heading + &tree(&Value::Object(object), indent + 1)
        }
        _ => String::new(),
    }
}

fn tree(value: &Value, indent: usize) -> String {
    let entries: Vec<(String, &Value)> = match value {
        Value::Object(object) => {
            object.iter().map(|(key, value)| (key.replace('-', " "), value)).collect()
        }
        Value::Array(list) => {
            list.iter().enumerate().map(|(at, value)| (format!("[{at}]"), value)).collect()
        }
        Value::String(text) => return text.clone(),
        other => return other.to_string(),
    };
    let mut text = String::new();
    for (key, value) in entries {
        let composite = value.is_object() || value.is_array();
        let separator = if composite { "\n" } else { " " };
        let end = if composite { "" } else { "\n" };
        let below = tree(value, indent + 1);
        text.push_str(&format!("{}{key}:{separator}{below}{end}", "    ".repeat(indent)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{backing, human, parse, snapshots, tree};
    use crate::failure::Stop;
    use cowl_tools::{ChildInfo, FormatSpecific, ImageInfo, NodeInfo, SnapshotInfo};
    use serde_json::json;
    use std::ffi::OsString;

    fn raw_image() -> ImageInfo {
        let file = NodeInfo {
            children: vec![],
            virtual_size: 1 << 20,
            filename: "a.raw".into(),
            format: "file".into(),
            actual_size: Some(4096),
            format_specific: Some(FormatSpecific::File { extent_size_hint: None }),
            dirty_flag: false,
        };
        ImageInfo {
            children: vec![ChildInfo { name: "file".into(), info: file }],
            snapshots: vec![],
            backing_filename_format: None,
            virtual_size: 1 << 20,
            filename: "a.raw".into(),
            cluster_size: None,
            format: "raw".into(),
            actual_size: Some(4096),
            format_specific: None,
            full_backing_filename: None,
            encrypted: false,
            backing_filename: None,
            dirty_flag: false,
            warnings: vec![],
        }
    }

    #[test]
    fn a_raw_image_is_described_in_the_words_of_qemu_img() {
        let expected = "image: a.raw\nfile format: raw\nvirtual size: 1 MiB (1048576 bytes)\n\
                        disk size: 4 KiB\nChild node '/file':\n    filename: a.raw\n    \
                        protocol type: file\n    file length: 1 MiB (1048576 bytes)\n    \
                        disk size: 4 KiB\n";
        assert_eq!(human(&[raw_image()]), expected);
    }

    #[test]
    fn images_of_a_chain_are_separated_by_an_empty_line() {
        let text = human(&[raw_image(), raw_image()]);
        assert_eq!(text.matches("\n\nimage: ").count(), 1);
    }

    #[test]
    fn a_backing_file_elsewhere_shows_its_actual_path() {
        let info = |name: &str, full: Option<&str>| ImageInfo {
            backing_filename: Some(name.into()),
            full_backing_filename: full.map(Into::into),
            backing_filename_format: Some("raw".into()),
            ..raw_image()
        };
        let line = |name, full| backing(&info(name, full)).lines().next().unwrap().to_owned();
        assert_eq!(line("b", Some("b")), "backing file: b");
        assert_eq!(line("b", Some("d/b")), "backing file: b (actual path: d/b)");
        assert_eq!(line("b", None), "backing file: b (cannot determine actual path)");
        assert!(backing(&info("b", None)).ends_with("backing file format: raw\n"));
    }

    #[test]
    fn snapshots_stand_in_columns() {
        let snapshot = SnapshotInfo {
            icount: None,
            vm_clock_nsec: 500_000_000,
            name: "first".into(),
            date_sec: 0,
            date_nsec: 0,
            vm_clock_sec: 61,
            id: "1".into(),
            vm_state_size: 1 << 20,
        };
        let text = snapshots(&[snapshot]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1],
            "ID      TAG               VM_SIZE                DATE        VM_CLOCK     ICOUNT"
        );
        assert!(lines[2].starts_with("1       first               1 MiB 19"), "{}", lines[2]);
        assert!(
            lines[2].ends_with("  0000:01:00.500           ")
                || lines[2].contains("0000:01:01.500")
        );
    }

    #[test]
    fn nested_facts_are_printed_as_a_tree() {
        let value = json!({"refcount-bits": 16, "bitmaps": [{"flags": [], "name": "b"}]});
        let expected = "    refcount bits: 16
    bitmaps:
        [0]:
            flags:
            name: b
";
        assert_eq!(tree(&value, 1), expected);
    }

    #[test]
    fn options_may_stand_anywhere() {
        let arguments = ["-Ub", "a", "--output=json", "-fraw"].map(OsString::from).to_vec();
        let options = parse(arguments).unwrap();
        assert!(options.backing_chain);
        assert!(options.common.force_share);
        assert_eq!(options.image.format.as_deref(), Some("raw"));
    }

    #[test]
    fn exactly_one_image_is_expected() {
        for arguments in [vec![], vec!["a".into(), "b".into()]] {
            let Err(Stop::Failed(failure)) = parse(arguments) else { panic!() };
            assert_eq!(failure.message, "Expecting one image file name");
        }
    }
}
