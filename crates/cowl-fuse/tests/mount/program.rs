//! Whether the host has what a test needs. What is missing skips the test, loudly; a missing
//! program fails it with `COWL_REQUIRE_ORACLE=1`.

use std::process::Command;

use cowl_testkit::Output;

/// The right to be the only test that runs.
///
/// A program that one test starts begins as a copy of the process, with the open files of all tests
/// and the connections of their servers. Closing those files asks the servers; one that is just
/// ending does not answer, and does not end either while the copy has its connection.
pub(crate) type Alone = std::sync::MutexGuard<'static, ()>;

static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Whether this process can mount, and has qemu-img for images.
pub(crate) fn can_mount() -> Option<Alone> {
    let alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !cowl_testkit::is_available() {
        return None;
    }
    let device = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    if let Err(error) = device {
        eprintln!("SKIPPED: /dev/fuse: {error}");
        return None;
    }
    (is_root() || are_installed(&["fusermount3"])).then_some(alone)
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether file systems on loop devices can be mounted, too.
pub(crate) fn can_loop(programs: &[&str]) -> Option<Alone> {
    let alone = can_mount()?;
    if !is_root() {
        eprintln!("SKIPPED: only root attaches loop devices");
        return None;
    }
    if let Err(error) = std::fs::File::open("/dev/loop-control") {
        eprintln!("SKIPPED: /dev/loop-control: {error}");
        return None;
    }
    (are_installed(&["losetup", "mount"]) && are_installed(programs)).then_some(alone)
}

/// Whether `programs` can be run.
pub(crate) fn are_installed(programs: &[&str]) -> bool {
    let is_there = |program: &&str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|folder| folder.join(program).is_file())
    };
    let Some(missing) = programs.iter().find(|program| !is_there(program)) else { return true };
    let required = std::env::var_os("COWL_REQUIRE_ORACLE").is_some_and(|value| value == "1");
    assert!(!required, "COWL_REQUIRE_ORACLE=1 but {missing} is missing");
    eprintln!("SKIPPED: {missing} is not installed");
    false
}

/// Runs `program`, which has to end well; what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = try_run(program, arguments);
    assert_eq!(output.code, 0, "{program} {arguments:?}: {output:?}");
    output.stdout
}

/// Runs `program` to its end.
pub(crate) fn try_run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    Output::of(command.args(arguments).env("PATH", format!("{path}:/usr/sbin:/sbin")))
}
