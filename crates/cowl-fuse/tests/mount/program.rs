//! Whether the host has what a test needs. What is missing skips the test, loudly; a missing
//! program fails it with `COWL_REQUIRE_ORACLE=1`.

use std::process::Command;

use cowl_testkit::Output;

/// Whether this process can mount, and has qemu-img for images.
pub(crate) fn can_mount() -> bool {
    if !cowl_testkit::is_available() {
        return false;
    }
    let device = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    if let Err(error) = device {
        eprintln!("SKIPPED: /dev/fuse: {error}");
        return false;
    }
    is_root() || are_installed(&["fusermount3"])
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether file systems on loop devices can be mounted, too.
pub(crate) fn can_loop(programs: &[&str]) -> bool {
    if !can_mount() {
        return false;
    }
    if !is_root() {
        eprintln!("SKIPPED: only root attaches loop devices");
        return false;
    }
    if let Err(error) = std::fs::File::open("/dev/loop-control") {
        eprintln!("SKIPPED: /dev/loop-control: {error}");
        return false;
    }
    are_installed(&["losetup", "mount"]) && are_installed(programs)
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
