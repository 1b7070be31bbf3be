//! `tour`: it runs, shows every command, and leaves nothing behind.

use std::process::Command;

use cowl_testkit::Output;

#[test]
fn the_tour_shows_every_command_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_cowl"));
    let tour = Output::of(command.arg("tour").env("TMPDIR", folder.path()));
    assert_eq!((tour.code, tour.stderr.as_str()), (0, ""));
    for verb in ["info", "convert", "create", "map", "check", "compare"] {
        assert!(tour.stdout.contains(&format!("\n$ cowl {verb} ")), "{verb}");
    }
    assert!(tour.stdout.contains("Images are identical."));
    assert!(tour.stdout.contains("intact"));
    assert!(tour.stdout.contains("images left by power cuts: all open, check"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
