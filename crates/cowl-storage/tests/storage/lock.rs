//! Image locks, in both directions against QEMU and among ourselves.

use crate::common::{Scratch, scratch};
use crate::locking::{conflict, open, outcome};
use crate::qemu::{self, Holder};
use cowl_storage::{Existence, FileOptions, FileStorage, LockMode};

const RW: &[&str] = &["-f", "qcow2"];
const RO: &[&str] = &["-r", "-f", "qcow2"];
const SHARED_RO: &[&str] = &["-r", "-U", "-f", "qcow2"];
const RAW_RW: &[&str] = &["-f", "raw"];
const RAW_RO: &[&str] = &["-r", "-f", "raw"];

fn image() -> Scratch {
    let scratch = scratch();
    qemu::create_qcow2(&scratch.path);
    scratch
}

#[track_caller]
fn check_beside_qemu(holder: &[&str], expected: [(LockMode, Option<&str>); 8]) {
    if !qemu::is_installed() {
        return;
    }
    let scratch = image();
    let holder = Holder::open(holder, &scratch.path);
    let found = expected.map(|(mode, _)| (mode, outcome(&scratch.path, mode)));
    drop(holder);
    assert_eq!(found, expected.map(|(mode, message)| (mode, message.map(str::to_owned))));
    // Whatever failed has left no lock behind.
    assert_eq!(outcome(&scratch.path, LockMode::ReadWrite), None);
}

const WRITE: Option<&str> = Some("Failed to get \"write\" lock");
const SHARED_WRITE: Option<&str> = Some("Failed to get shared \"write\" lock");
const SHARED_RESIZE: Option<&str> = Some("Failed to get shared \"resize\" lock");
const RESIZE: Option<&str> = Some("Failed to get \"resize\" lock");

#[test]
fn beside_a_qemu_that_writes_only_shared_readers_get_in() {
    check_beside_qemu(
        RW,
        [
            (LockMode::None, None),
            (LockMode::ReadWrite, WRITE),
            (LockMode::ReadOnly, SHARED_WRITE),
            (LockMode::Info, SHARED_WRITE),
            (LockMode::Create, WRITE),
            (LockMode::ForceShare, None),
            (LockMode::ReadWriteShared, WRITE),
            (LockMode::ReadOnlyShared, SHARED_RESIZE),
        ],
    );
}

#[test]
fn beside_a_qemu_that_reads_all_readers_get_in() {
    check_beside_qemu(
        RO,
        [
            (LockMode::None, None),
            (LockMode::ReadWrite, WRITE),
            (LockMode::ReadOnly, None),
            (LockMode::Info, None),
            (LockMode::Create, WRITE),
            (LockMode::ForceShare, None),
            (LockMode::ReadWriteShared, WRITE),
            (LockMode::ReadOnlyShared, None),
        ],
    );
}

#[test]
fn beside_a_qemu_that_shares_everything_everybody_gets_in() {
    let all = [
        LockMode::None,
        LockMode::ReadWrite,
        LockMode::ReadOnly,
        LockMode::Info,
        LockMode::Create,
        LockMode::ForceShare,
        LockMode::ReadWriteShared,
        LockMode::ReadOnlyShared,
    ];
    check_beside_qemu(SHARED_RO, all.map(|mode| (mode, None)));
    check_beside_qemu(RAW_RO, all.map(|mode| (mode, None)));
}

#[test]
fn beside_a_qemu_that_writes_raw_and_shares_it_only_who_refuses_writers_is_kept_out() {
    check_beside_qemu(
        RAW_RW,
        [
            (LockMode::None, None),
            (LockMode::ReadWrite, SHARED_WRITE),
            (LockMode::ReadOnly, SHARED_WRITE),
            (LockMode::Info, SHARED_WRITE),
            (LockMode::Create, None),
            (LockMode::ForceShare, None),
            (LockMode::ReadWriteShared, None),
            (LockMode::ReadOnlyShared, None),
        ],
    );
}

#[track_caller]
fn check_qemu_beside(held: LockMode, expected: [(&str, &[&str], Option<&str>); 6]) {
    if !qemu::is_installed() {
        return;
    }
    let scratch = image();
    let _held = open(&scratch.path, held).unwrap();
    for (program, arguments, message) in expected {
        let output = qemu::run(program, arguments, &scratch.path);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let what = format!("{program} {arguments:?} beside {held:?}: {said}");
        let Some(message) = message else {
            assert!(output.status.success(), "{what}");
            continue;
        };
        assert!(said.contains(message), "{what}");
        // The hint is the one we give.
        let hint = format!("Is another process using the image [{}]?", scratch.path.display());
        assert!(said.contains(&hint), "{what}");
    }
}

const QEMU_IO_RW: (&str, &[&str]) = ("qemu-io", &["-f", "qcow2", "-c", "quit"]);
const QEMU_IO_RO: (&str, &[&str]) = ("qemu-io", &["-r", "-f", "qcow2", "-c", "quit"]);
const QEMU_IO_SHARED: (&str, &[&str]) = ("qemu-io", &["-r", "-U", "-f", "qcow2", "-c", "quit"]);
const QEMU_INFO: (&str, &[&str]) = ("qemu-img", &["info"]);
const QEMU_INFO_SHARED: (&str, &[&str]) = ("qemu-img", &["info", "-U"]);
const QEMU_CHECK: (&str, &[&str]) = ("qemu-img", &["check"]);

fn with(
    outcomes: [Option<&'static str>; 6],
) -> [(&'static str, &'static [&'static str], Option<&'static str>); 6] {
    let programs =
        [QEMU_IO_RW, QEMU_IO_RO, QEMU_IO_SHARED, QEMU_INFO, QEMU_INFO_SHARED, QEMU_CHECK];
    std::array::from_fn(|index| (programs[index].0, programs[index].1, outcomes[index]))
}

#[test]
fn qemu_is_kept_out_of_an_image_that_we_write() {
    let outcomes = [WRITE, SHARED_WRITE, None, SHARED_WRITE, None, SHARED_WRITE];
    check_qemu_beside(LockMode::ReadWrite, with(outcomes));
}

#[test]
fn qemu_reads_an_image_that_we_read() {
    check_qemu_beside(LockMode::ReadOnly, with([WRITE, None, None, None, None, None]));
    check_qemu_beside(LockMode::Info, with([WRITE, None, None, None, None, None]));
}

#[test]
fn qemu_is_kept_out_of_an_image_that_we_create() {
    let outcomes = [RESIZE, SHARED_WRITE, None, SHARED_WRITE, None, SHARED_WRITE];
    check_qemu_beside(LockMode::Create, with(outcomes));
}

#[test]
fn qemu_writes_an_image_that_we_read_without_insisting() {
    check_qemu_beside(LockMode::ForceShare, with([None; 6]));
    check_qemu_beside(LockMode::None, with([None; 6]));
}

#[test]
fn qemu_does_not_create_over_an_image_that_we_write() {
    if !qemu::is_installed() {
        return;
    }
    let scratch = image();
    let _held = open(&scratch.path, LockMode::ReadWrite).unwrap();
    let output = std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&scratch.path)
        .arg("2M")
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains(WRITE.unwrap()));
}

#[test]
fn the_conflict_names_the_process_the_permission_and_the_way_out() {
    if !qemu::is_installed() {
        return;
    }
    let scratch = image();
    let holder = Holder::open(RW, &scratch.path);
    let error = open(&scratch.path, LockMode::ReadWrite).unwrap_err();
    let conflict = conflict(&error);
    assert_eq!(conflict.holders.len(), 1);
    assert_eq!(conflict.holders[0].pid, holder.pid());
    assert_eq!(conflict.holders[0].command, "qemu-io");
    assert!(!conflict.holders[0].is_self);
    let path = scratch.path.display();
    assert_eq!(conflict.qemu_hint(), format!("Is another process using the image [{path}]?"));
    assert_eq!(
        error.to_string(),
        format!(
            "{path}: lock failed: process {} (qemu-io) holds the image and allows no other \
             \"write\"; end it first, or open the image read-only if it only reads",
            holder.pid()
        )
    );
}

#[test]
fn creating_over_an_image_in_use_leaves_its_bytes_alone() {
    if !qemu::is_installed() {
        return;
    }
    let scratch = image();
    let before = std::fs::read(&scratch.path).unwrap();
    let holder = Holder::open(RW, &scratch.path);
    assert_eq!(FileStorage::open(&scratch.path, FileOptions::create()).unwrap_err().errno(), 11);
    drop(holder);
    assert_eq!(std::fs::read(&scratch.path).unwrap(), before);
    FileStorage::open(&scratch.path, FileOptions::create()).unwrap();
    assert_eq!(std::fs::read(&scratch.path).unwrap(), b"");
}

#[test]
fn a_character_device_is_not_locked() {
    let options = FileOptions { existence: Existence::MustExist, ..FileOptions::create() };
    let _first = FileStorage::open("/dev/null", options).unwrap();
    FileStorage::open("/dev/null", options).unwrap();
}
