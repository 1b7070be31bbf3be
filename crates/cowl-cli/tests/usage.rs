//! Wrong command lines and names, said to both programs: same words, same exit code.

mod common;

use std::process::Command;

use common::{Bench, expect_none};
use cowl_testkit::Output;

/// Splits at spaces; `''` is an empty argument.
fn words(line: &str) -> Vec<&str> {
    line.split(' ').map(|word| if word == "''" { "" } else { word }).collect()
}

#[test]
fn wrong_command_lines_are_answered_in_the_same_words() {
    let Some(bench) = Bench::new() else { return };
    let lines = [
        // Before the command.
        "--foo",
        "-x",
        "-T",
        "nope",
        "--he=x",
        // Letters, long names, abbreviations, missing and surplus values.
        "info",
        "info -x",
        "info --foo",
        "info --foo=1 x",
        "info -f",
        "info --format",
        "info --output",
        "info --output=foo zeros",
        "info a b",
        "info --o=json zeros",
        "info --for zeros",
        "info -q zeros",
        "info --image-opts=1 zeros",
        "info --force-share=x zeros",
        "info -bx zeros",
        "info -- -f",
        "map",
        "map -x",
        "map --start-offset x zeros",
        "map --start-offset -1 zeros",
        "map -s 10E zeros",
        "map --start-offset= zeros",
        "map --max-length q zeros",
        "map --max-length 8E zeros",
        "map --output=xml zeros",
        "map a b",
        "check",
        "check -r foo zeros",
        "check -r zeros",
        "check -T foo zeros",
        "check raw-hole",
        "check --output json raw-hole",
        "check -T foo",
        "check --re",
        "check --foo",
        "measure",
        "measure --size x",
        "measure --size 1G zeros",
        "measure --size 1G -f raw",
        "measure --size 1G -l x",
        "measure --size 1G -O nope",
        "measure --size 1G -o x=1",
        "measure --size -1",
        "measure --size 8E",
        "measure --size 1G -O qcow2 -o help",
        "measure --size 1G --image-opts",
        "measure a b",
        "measure -l snapshot.idd=1 zeros",
        "measure --s 1G",
        "measure --o x",
        "measure -o ,x --size 1G",
        "compare",
        "compare a",
        "compare a b c",
        "compare -T x a b",
        "compare -f nope zeros zeros",
        "compare zeros -F nope zeros",
        "compare --f",
        "compare -x",
        "compare --a",
        "compare --left",
        "convert",
        "convert zeros",
        "convert -x",
        "convert --b",
        "convert --s",
        "convert --t",
        "convert --o",
        "convert -m 0 zeros b",
        "convert -m 17 zeros b",
        "convert -m x zeros b",
        "convert -S x zeros b",
        "convert -S 1000 zeros b",
        "convert -r x zeros b",
        "convert -T x zeros b",
        "convert --target-is-zero zeros b",
        "convert --target-image-opts zeros b",
        "convert -O raw --target-image-opts -n zeros driver=raw",
        "convert -c -C zeros b",
        "convert -C -S 4k zeros b",
        "convert --skip-broken-bitmaps zeros b",
        "convert -n -o x=1 zeros b",
        "convert -o ,x -O qcow2 zeros b",
        "convert -o x, -O qcow2 zeros b",
        "convert -l x zeros zeros b",
        "convert --compress",
        "convert --no-create",
        "convert --quie=x",
        "convert -f nope zeros b",
        "dd",
        "dd if=zeros",
        "dd of=b",
        "dd foo",
        "dd foo=1",
        "dd bs=0 if=zeros of=b",
        "dd bs=x if=zeros of=b",
        "dd bs=-1 if=zeros of=b",
        "dd bs=3G if=zeros of=b",
        "dd count=x if=zeros of=b",
        "dd count=-1 if=zeros of=b",
        "dd skip=x if=zeros of=b",
        "dd seek=1 if=zeros of=b",
        "dd -n if=a of=b",
        "dd -f raw --image-opts if=x of=y",
        "dd if= of=b",
        "create",
        "create -f",
        "create -f qcow2",
        "create -n",
        "create -f qcow2 x 1 2",
        "create -f qcow2 x abc",
        "create -f qcow2 x 1Q",
        "create -f qcow2 x -1",
        "create -f qcow2 x 16E",
        "create -f qcow2 x 1.5",
        "create -f qcow2 x ''",
        "create -o ,x y",
        "create --b",
        "create --o",
        // Objects.
        "info --object x zeros",
        "info --object secret,data=b zeros",
        "info --object secret,id=a zeros",
        "info --object secret,id=a,data=x,foo=1 zeros",
        "info --object secret,id=9,data=x zeros",
        "info --object secret,id=a,data=x,file=y zeros",
        "info --object '' zeros",
        "info --object secret,id=s,data=x --object secret,id=s,data=y zeros",
        "dd --object x",
        "info --object secret,id=a,format=foo,data=x zeros",
        "info --object secret,id=a,data=x zeros",
        // Names.
        "info nowhere",
        "info ''",
        "map ''",
        "check ''",
        "compare '' zeros",
        "measure ''",
        "info foo:bar",
        "info ./foo:bar",
        "info zeros/x",
        "info -f nope zeros",
        "info -f qcow2 raw-hole",
        "info -f raw --image-opts driver=raw,file.filename=zeros",
        "info --image-opts zeros",
        "info --image-opts ''",
        "info --image-opts =",
        "info --image-opts driver=qcow2",
        "info --image-opts driver=qcow2,file=zeros",
        "info --image-opts filename=zeros",
        "info --image-opts file.filename=zeros,driver=nope",
        "info --image-opts driver=qcow2,file.filename=zeros,bogus=1",
        "info --image-opts driver=qcow2,file.filename=nowhere",
        "info json:[]",
        "info json:{}",
        "info json:{'driver':'qcow2','file.filename':'nowhere'}",
        "info json:{'file':'zeros'}",
        "info -f qcow2 json:{'driver':'raw','file':{'driver':'file','filename':'raw-hole'}}",
        "info file:nowhere",
        "info file:",
        "info .",
        "map .",
        "check .",
        "compare . zeros",
        "measure .",
        "info /dev/null",
        "info --output=json /dev/null",
    ];
    let mut differences = Vec::new();
    for line in lines {
        differences.extend(bench.run(&words(line)).difference());
    }
    expect_none(differences);
    assert!(!bench.set.directory.join("b").exists(), "a refused command made a file");
}

#[test]
fn verbs_of_a_later_version_are_refused_clearly() {
    let Some(bench) = Bench::new() else { return };
    for verb in ["amend", "bitmap", "commit", "rebase", "resize", "snapshot"] {
        let refused = bench.both.run_ours(bench.path(), &[verb, "-l", "x"]);
        assert_eq!(refused.code, 1);
        let expected = format!("qemu-img: '{verb}' is not available in this version\n");
        assert_eq!((refused.stderr, refused.stdout), (expected, String::new()));
    }
}

#[test]
fn the_name_in_messages_is_the_name_of_the_program() {
    let run =
        |arguments: &[&str]| Output::of(Command::new(env!("CARGO_BIN_EXE_cowl")).args(arguments));
    let path = env!("CARGO_BIN_EXE_cowl");
    let usage = run(&["info"]);
    assert_eq!(
        usage.stderr,
        format!("cowl: Expecting one image file name\nTry '{path} info --help' for more info\n")
    );
    let option = run(&["info", "-x"]);
    assert!(option.stderr.starts_with(&format!("{path} info: invalid option -- 'x'\n")));
}

#[test]
fn help_names_every_command_and_ends_well() {
    let run =
        |arguments: &[&str]| Output::of(Command::new(env!("CARGO_BIN_EXE_cowl")).args(arguments));
    let help = run(&["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
    for verb in [
        "tour", "create", "info", "convert", "check", "compare", "map", "measure", "dd", "io",
        "bench", "mount",
    ] {
        assert!(help.stdout.contains(&format!("\n  {verb} ")), "{verb}");
        for option in ["--help", "-h"] {
            let of_verb = run(&[verb, option]);
            assert_eq!((of_verb.code, of_verb.stderr.as_str()), (0, ""), "{verb}");
            assert!(of_verb.stdout.contains("Usage: cowl "), "{verb}");
            assert!(of_verb.stdout.lines().all(|line| line.chars().count() <= 80), "{verb}");
        }
    }
    for verb in ["snapshot", "rebase", "resize"] {
        assert!(!help.stdout.contains(&format!("\n  {verb} ")), "{verb} does not work");
    }
}

#[test]
fn the_version_has_the_form_that_scripts_take_apart() {
    let Some(bench) = Bench::new() else { return };
    let ours = bench.both.run_ours(bench.path(), &["--version"]);
    assert!(ours.stdout.starts_with("qemu-img version 10.0.2 (cowl "), "{}", ours.stdout);
    let own = Output::of(Command::new(env!("CARGO_BIN_EXE_cowl")).arg("-V"));
    assert_eq!(own.stdout, format!("cowl {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn machines_get_errors_as_one_object() {
    let run =
        |arguments: &[&str]| Output::of(Command::new(env!("CARGO_BIN_EXE_cowl")).args(arguments));
    for (arguments, kind, exit) in [
        (&["info", "--errors=json", "nowhere"][..], "open", 1),
        (&["--errors=json", "info", "nowhere"], "open", 1),
        (&["info", "-x", "--errors=json"], "usage", 1),
        (&["compare", "nowhere", "nowhere", "--errors=json"], "open", 2),
        (&["rebase", "--errors=json"], "not-available", 1),
    ] {
        let output = run(arguments);
        let error: serde_json::Value = serde_json::from_str(&output.stderr).expect("JSON");
        assert_eq!(error["kind"], kind, "{arguments:?}");
        assert_eq!(
            (error["exit"].as_i64(), output.code),
            (Some(exit), i32::try_from(exit).unwrap())
        );
        assert_eq!(output.stderr.lines().count(), 1);
    }
    let output = run(&["info", "--errors=json", "nowhere"]);
    let error: serde_json::Value = serde_json::from_str(&output.stderr).unwrap();
    assert_eq!(error["file"], "nowhere");
}

#[test]
fn output_that_cannot_be_written_fails_the_command() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_cowl"))
        .arg("--help")
        .stdout(full)
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Output::of(Command::new(env!("CARGO_BIN_EXE_cowl")).arg("--help").stdout(writer));
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
}

#[test]
fn images_in_use_are_refused_in_the_same_words() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    let Some(bench) = Bench::new() else { return };
    let image = bench.set.copy(bench.set.named("zeros"), bench.path());
    // Holds the image for writing until its input ends, which it says with its first line.
    let mut holder = Command::new("qemu-io")
        .arg(&image)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = holder.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, b"length\n").unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let lines = [
        "info zeros",
        "map zeros",
        "check zeros",
        "compare zeros zeros",
        "measure zeros",
        "convert zeros copy",
        "dd if=zeros of=copy",
        "info -U zeros",
        "map -U zeros",
        "check -U zeros",
        "compare -U zeros zeros",
    ];
    let ask = |line: &&str| {
        let words: Vec<&str> = line.split(' ').collect();
        bench.both.run(bench.path(), &words).difference()
    };
    let differences = lines.iter().filter_map(ask).collect();
    let hint = Command::new(env!("CARGO_BIN_EXE_cowl")).arg("map").arg(&image).output().unwrap();
    let id = holder.id().to_string();
    drop(input);
    holder.wait().unwrap();
    expect_none(differences);
    let hint = String::from_utf8_lossy(&hint.stderr).into_owned();
    assert!(hint.contains("hint: ") && hint.contains(&id), "{hint}");
}
