//! What an image may make us open: nothing, unless the caller says so, and then only plain files.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cowl::{
    Backing, ByteCount, Disk, Error, FileOptions, FileStorage, Format, OpenOptions, Refusal,
    Sharing, check, inspect,
};
use cowl_qcow2::{BuilderFiles, CreateOptions, Preallocation, create};
use cowl_storage::MemoryStorage;
use pollster::block_on;
use rustix::fs::{CWD, FileType, Mode, mknodat};

const SIZE: u64 = 1 << 20;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// An image that names `backing` and its format.
    fn image(&self, name: &str, backing: Option<&str>, format: Option<&str>) -> PathBuf {
        let bytes = |text: &str| text.as_bytes().to_vec();
        let options = CreateOptions {
            backing: backing.map(bytes),
            backing_format: format.map(bytes),
            ..CreateOptions::new(ByteCount::new(SIZE))
        };
        self.create(name, &options)
    }

    fn create(&self, name: &str, options: &CreateOptions) -> PathBuf {
        let path = self.path(name);
        let file = Arc::new(FileStorage::open(&path, FileOptions::create()).unwrap());
        let files = BuilderFiles { image: file, data: None };
        block_on(create(files, options, Preallocation::Off)).unwrap();
        path
    }

    /// An image with an external data file of this name, which is not made.
    fn image_with_data_file(&self, name: &str, data_file: &str) -> PathBuf {
        let image = Arc::new(MemoryStorage::new());
        let files =
            BuilderFiles { image: Arc::clone(&image), data: Some(Arc::new(MemoryStorage::new())) };
        let options = CreateOptions {
            data_file: Some(data_file.as_bytes().to_vec()),
            ..CreateOptions::new(ByteCount::new(SIZE))
        };
        block_on(create(files, &options, Preallocation::Off)).unwrap();
        let path = self.path(name);
        fs::write(&path, image.to_vec()).unwrap();
        path
    }

    fn raw(&self, name: &str, byte: u8) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, vec![byte; usize::try_from(SIZE).unwrap()]).unwrap();
        path
    }
}

fn first_byte(path: &Path, options: &OpenOptions) -> Result<u8, Error> {
    let mut byte = [0xee];
    Disk::open(path, options)?.read_at(&mut byte, 0)?;
    Ok(byte[0])
}

/// Why it was refused, wherever in the chain that was.
fn refusal(result: Result<u8, Error>) -> Refusal {
    let mut error = result.expect_err("it was opened");
    loop {
        error = match error {
            Error::Refused { refusal, .. } => return refusal,
            Error::Below { source, .. } => *source,
            other => panic!("another error: {other}"),
        };
    }
}

#[test]
fn strangers_images_open_nothing() {
    let folder = Folder::new();
    folder.raw("base", 1);
    let image = folder.image("image", Some("base"), Some("raw"));
    assert_eq!(first_byte(&image, &OpenOptions::local()).unwrap(), 1);
    let refused = refusal(first_byte(&image, &OpenOptions::untrusted()));
    assert!(matches!(refused, Refusal::Following { role: "backing file", .. }));
    let image = folder.image_with_data_file("data", folder.path("base").to_str().unwrap());
    let refused = refusal(first_byte(&image, &OpenOptions::untrusted()));
    assert!(matches!(refused, Refusal::Following { role: "external data file", .. }));
    // Looking at it is no reason to open what it names.
    for image in [folder.path("image"), folder.path("data")] {
        inspect(&image, None, Sharing::NoWriters).unwrap();
        assert!(check(&image, None, Sharing::NoWriters, None, &()).unwrap().is_clean());
    }
}

#[test]
fn names_that_are_no_plain_files_are_refused_in_both_roles() {
    let folder = Folder::new();
    for name in [
        r#"json:{"driver":"file","filename":"/etc/passwd"}"#,
        "nbd://localhost/export",
        "nbd:unix:/run/socket",
        "ssh://host/file",
        "https://host/file",
        "fd:3",
        "host_device:/dev/sda",
        "file:",
    ] {
        let image = folder.image("image", Some(name), Some("raw"));
        let refused = refusal(first_byte(&image, &OpenOptions::local()));
        assert!(matches!(refused, Refusal::NotLocal { .. }), "{name}: {refused:?}");
        let image = folder.image_with_data_file("data", name);
        let refused = refusal(first_byte(&image, &OpenOptions::local()));
        assert!(matches!(refused, Refusal::NotLocal { .. }), "{name}: {refused:?}");
    }
}

#[test]
fn devices_pipes_and_sockets_are_refused_also_behind_links() {
    let folder = Folder::new();
    let pipe = folder.path("pipe");
    // Not by a program: until it runs, it would hold copies of the locks of the tests beside this.
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let socket = folder.path("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    symlink("/dev/zero", folder.path("link")).unwrap();
    for name in ["/dev/zero", "/dev/null", "pipe", "socket", "link"] {
        let image = folder.image("image", Some(name), Some("raw"));
        let refused = refusal(first_byte(&image, &OpenOptions::local()));
        assert!(matches!(refused, Refusal::NotRegular { .. }), "{name}: {refused:?}");
        let data_file = folder.path(name);
        let image = folder.image_with_data_file("data", data_file.to_str().unwrap());
        let refused = refusal(first_byte(&image, &OpenOptions::local()));
        assert!(matches!(refused, Refusal::NotRegular { .. }), "{name}: {refused:?}");
    }
}

#[test]
fn a_backing_file_is_never_probed() {
    let folder = Folder::new();
    folder.raw("secret", 9);
    // A guest wrote a qcow2 header into its raw disk.
    let planted = folder.image("planted", Some("secret"), Some("raw"));
    let image = folder.image("image", Some("planted"), None);
    let refused = refusal(first_byte(&image, &OpenOptions::local()));
    assert!(matches!(refused, Refusal::BackingFormatMissing { .. }));
    let image = folder.image("image", Some("planted"), Some("raw"));
    assert_eq!(first_byte(&image, &OpenOptions::local()).unwrap(), b'Q');
    let image = folder.image("image", Some("planted"), Some("vmdk"));
    let refused = refusal(first_byte(&image, &OpenOptions::local()));
    assert!(matches!(refused, Refusal::BackingFormatUnknown { .. }));
    // Whose file it is, says how it is read.
    let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::local() };
    assert_eq!(first_byte(&planted, &options).unwrap(), b'Q');
}

#[test]
fn a_chain_that_comes_back_is_refused_whatever_the_names() {
    let folder = Folder::new();
    let itself = folder.image("itself", Some("itself"), Some("qcow2"));
    assert_eq!(refusal(first_byte(&itself, &OpenOptions::local())), Refusal::Loop);
    let a = folder.image("a", Some("link"), Some("qcow2"));
    folder.image("b", Some("hard"), Some("qcow2"));
    symlink("b", folder.path("link")).unwrap();
    fs::hard_link(&a, folder.path("hard")).unwrap();
    assert_eq!(refusal(first_byte(&a, &OpenOptions::local())), Refusal::Loop);
}

#[test]
fn a_chain_deeper_than_the_limit_is_refused() {
    let folder = Folder::new();
    folder.raw("0", 5);
    let chain = |depth: usize| {
        for layer in 1..=depth {
            let format = if layer == 1 { "raw" } else { "qcow2" };
            folder.image(&layer.to_string(), Some(&(layer - 1).to_string()), Some(format));
        }
        first_byte(&folder.path(&depth.to_string()), &OpenOptions::local())
    };
    assert_eq!(chain(20).unwrap(), 5);
    assert!(matches!(refusal(chain(210)), Refusal::TooDeep { .. }));
}

#[test]
fn the_operator_may_name_what_the_image_may_not() {
    let folder = Folder::new();
    folder.raw("base", 3);
    let image = folder.image("image", Some("nbd://host/x"), None);
    let backing = Backing::File {
        path: folder.path("base"),
        format: Some(Format::Raw),
        backing: Box::new(Backing::Nothing),
    };
    let options = OpenOptions { backing, ..OpenOptions::untrusted() };
    assert_eq!(first_byte(&image, &options).unwrap(), 3);
    let options = OpenOptions { backing: Backing::Nothing, ..OpenOptions::untrusted() };
    assert_eq!(first_byte(&image, &options).unwrap(), 0);
}

#[test]
fn what_is_below_an_operators_backing_file_is_the_operators_choice_too() {
    let folder = Folder::new();
    folder.raw("secret", 9);
    let middle = folder.image("middle", Some("secret"), Some("raw"));
    let image = folder.image("image", None, None);
    let backing = Backing::File {
        path: middle,
        format: Some(Format::Qcow2),
        backing: Box::new(Backing::FromImage),
    };
    let options = OpenOptions { backing, ..OpenOptions::untrusted() };
    assert!(matches!(refusal(first_byte(&image, &options)), Refusal::Following { .. }));
}

#[test]
fn other_formats_are_not_taken_for_raw_ones() {
    let folder = Folder::new();
    for magic in [&b"KDMV"[..], b"vhdxfile", b"conectix", b"QED\0", b"LUKS\xba\xbe"] {
        let path = folder.path("foreign");
        fs::write(&path, [magic, &[0; 1000]].concat()).unwrap();
        let refused = refusal(first_byte(&path, &OpenOptions::local()));
        assert!(matches!(refused, Refusal::ForeignFormat { .. }), "{magic:?}");
        let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::local() };
        assert_eq!(first_byte(&path, &options).unwrap(), magic[0]);
    }
}

#[test]
fn a_backing_file_that_is_not_there_says_who_wanted_it() {
    let folder = Folder::new();
    let image = folder.image("image", Some("nowhere"), Some("raw"));
    let error = first_byte(&image, &OpenOptions::local()).unwrap_err();
    assert_eq!(error.errno(), 2);
    let text = error.to_string();
    assert!(text.contains("nowhere") && text.contains("image"), "{text}");
}

#[test]
fn a_stranger_is_refused_mappings_past_the_end_of_the_file() {
    let folder = Folder::new();
    let path = folder.create("image", &CreateOptions::new(ByteCount::new(SIZE)));
    let mut bytes = fs::read(&path).unwrap();
    // An L2 table in a cluster of its own, whose first entry leads far away.
    let l1 = usize::try_from(u64::from_be_bytes(bytes[40..48].try_into().unwrap())).unwrap();
    let l2 = bytes.len().next_multiple_of(65_536);
    bytes.resize(l2 + 65_536, 0);
    bytes[l1..l1 + 8].copy_from_slice(&(1 << 63 | l2 as u64).to_be_bytes());
    bytes[l2..l2 + 8].copy_from_slice(&(1_u64 << 63 | 1 << 40).to_be_bytes());
    fs::write(&path, bytes).unwrap();
    assert_eq!(first_byte(&path, &OpenOptions::local()).unwrap(), 0);
    let error = first_byte(&path, &OpenOptions::untrusted()).unwrap_err();
    assert_eq!(error.errno(), 5);
}
