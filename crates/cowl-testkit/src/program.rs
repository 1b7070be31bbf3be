//! Whether the clients are installed. A missing one skips its tests, loudly;
//! `COWL_REQUIRE_ORACLE=1` makes that a failure.

use std::process::Command;

/// Whether all of `programs` can be run, and qemu-img, which makes the images.
///
/// # Panics
/// When one is missing and `COWL_REQUIRE_ORACLE` is 1.
#[must_use]
#[expect(clippy::print_stderr, reason = "a skipped conversation must be seen")]
pub fn are_installed(programs: &[&str]) -> bool {
    let works = |program: &&str| {
        let found = Command::new(program).env("PATH", "/usr/bin:/bin").arg("--version").output();
        found.is_ok_and(|output| output.status.success())
    };
    if !crate::is_available() {
        return false;
    }
    let Some(missing) = programs.iter().find(|program| !works(program)) else { return true };
    let required = std::env::var_os("COWL_REQUIRE_ORACLE").is_some_and(|value| value == "1");
    assert!(!required, "COWL_REQUIRE_ORACLE=1 but {missing} is missing");
    eprintln!("SKIP: {missing} is not installed; its conversation did not happen");
    false
}
