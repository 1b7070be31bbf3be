//! `io` against qemu-io: the same commands on two copies of an image. The text must be the same but
//! for the figures of a clock, and so must be the bytes of a raw image afterwards.

mod common;

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Bench, expect_none};
use cowl_testkit::{Answers, Output, Tool, run};

/// Text without what a clock decides.
fn without_times(text: &str) -> String {
    let line = |line: &str| {
        if let Some((front, _)) = line.split_once(" ops; ") {
            return format!("{front} ops; ...");
        }
        let fields: Vec<&str> = line.split(',').collect();
        match fields.as_slice() {
            [bytes, "1", time, _, _] if time.contains(':') => format!("{bytes},1,..."),
            _ => line.to_owned(),
        }
    };
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// What both say to the same arguments, each in a folder of its own.
fn ask(bench: &Bench, folders: &[PathBuf; 2], arguments: &[&str], input: &str) -> Answers {
    let run = |mut command: Command, folder: &Path| {
        command.args(arguments).current_dir(folder).env("LC_ALL", "C");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a program");
        // A program that stops reading early is no failure of the test.
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).ok();
        let output = child.wait_with_output().expect("an end");
        let text = |bytes: &[u8]| without_times(&String::from_utf8_lossy(bytes));
        let code = output.status.code().unwrap_or_else(|| -output.status.signal().unwrap_or(0));
        Output { stdout: text(&output.stdout), stderr: text(&output.stderr), code }
    };
    Answers {
        command: format!("qemu-io {}", arguments.join(" ")),
        theirs: run(Command::new(Tool::Io.name()), &folders[0]),
        ours: run(bench.both.our(Tool::Io), &folders[1]),
    }
}

/// Two folders with the same images, made by `make`.
fn folders(bench: &Bench, name: &str, make: impl Fn(&Path)) -> [PathBuf; 2] {
    ["theirs", "ours"].map(|side| {
        let folder = bench.path().join(format!("{name}-{side}"));
        std::fs::create_dir(&folder).expect("a folder");
        make(&folder);
        folder
    })
}

fn raw_images(folder: &Path) {
    let mut bytes: Vec<u8> = (0..1_048_576u32).map(|at| (at / 251).to_le_bytes()[0]).collect();
    std::fs::write(folder.join("a.raw"), &bytes).expect("a file");
    bytes.truncate(1000);
    std::fs::write(folder.join("pat"), &bytes).expect("a file");
    std::fs::write(folder.join("odd.raw"), &bytes).expect("a file");
    std::fs::write(folder.join("empty"), b"").expect("a file");
}

/// Runs `commands` on `image` of fresh folders and compares what is said and what is there then.
fn difference(bench: &Bench, name: &str, image: &str, commands: &[&str]) -> Option<String> {
    let folders = folders(bench, name, raw_images);
    let mut arguments = vec!["-f", "raw"];
    arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
    arguments.push(image);
    let answers = ask(bench, &folders, &arguments, "");
    let [theirs, ours] = folders.map(|folder| std::fs::read(folder.join(image)).expect("a file"));
    let other_bytes = || format!("{}: the images differ", answers.command);
    answers.difference().or_else(|| (theirs != ours).then(other_bytes))
}

fn check_raw(name: &str, image: &str, scripts: &[&[&str]]) {
    let Some(bench) = Bench::new() else { return };
    let each = scripts.iter().enumerate();
    let ask = |(at, commands): (usize, &&[&str])| {
        difference(&bench, &format!("{name}{at}"), image, commands)
    };
    expect_none(each.filter_map(ask).collect());
}

#[test]
fn reads_say_the_same() {
    check_raw(
        "read",
        "a.raw",
        &[
            &["read 0 64k", "read 1 1", "read 0 0", "read 3 5000", "r 0 512", "read -p 0 16"],
            &[
                "read -v 0 20",
                "read -v 1000000 40",
                "read -C 0 32",
                "read -Cv 0 17",
                "read -qv 0 16",
            ],
            &["write -P 0x41 0 64k", "read -P 0x42 0 64k", "read -P 0x41 0 64k", "length"],
            &["read -P 1 -s 512 -l 512 0 4k", "read -P 1 -s 512 0 4k", "read -P 1 -l 512 0 4k"],
            &["read -P 1 -l 8k 0 4k", "read -P 1 -s 4k -l 512 0 4k", "read -P 1 -s 8k 0 4k"],
            &["read -s 1k 0 4k", "read -l 1k 0 4k", "read -s x -P 1 0 4k"],
            &["read 1M 512", "read 1M 0", "read 2M 0", "read 5G 1", "read 0 2147483136"],
            &["readv 0 512 512", "readv -v 0 10 10", "readv -P 1 0 512 512", "readv 2M 512"],
            &["readv -Cq 0 1k", "readv -C 0 1k", "readv 0 512 x", "readv x 512", "readv 0 2G 2G"],
            &["readv 0 1G 1G 1G", "readv", "readv 0", "readv -q 0"],
            &["read -b 0 16", "read -b 0 512", "read -b 1 512", "read -r 0 16", "read -a 0 16"],
        ],
    );
}

#[test]
fn writes_say_and_do_the_same() {
    check_raw(
        "write",
        "a.raw",
        &[
            &["write 0 64k", "write -P 7 512 1", "w -P 0xff 1000k 24k", "write 0 0", "write 0 1M"],
            &["write -z 4k 64k", "write -z -u 100k 64k", "write -zn 0 8k", "write -z 1 5000"],
            &[
                "write -s pat 0 4k",
                "write -s pat 10000 100",
                "write -s empty 0 1",
                "write -s pat 0 0",
            ],
            &[
                "write -s nowhere 0 4k",
                "write -s . 0 4k",
                "write -z -P 1 0 1",
                "write -s a -P 1 0 1",
            ],
            &["write -u 0 512", "write -n 0 512", "write -b -z 0 512", "write -c -z 0 64k"],
            &[
                "write -c 0 64k",
                "write -c 0 100",
                "write -b 0 512",
                "write -f 0 512",
                "write -cf 0 1",
            ],
            &["write 1M 512", "write 0 2M", "write 0 4G", "write -z 0 4G", "write -zn 0 4G"],
            &["write -q 0 512", "write -C 0 512", "write -qC 0 5k", "write -r 9 9"],
            &["writev 0 512 1k 512", "writev -P 3 0 100", "writev -f 0 1k", "writev 0 0"],
            &["writev -z 0 1k", "writev 0", "writev -q 0", "writev 0 2G 2G", "writev 1M 1"],
            &["discard 0 64k", "discard 512k 512k", "discard -C 0 4k", "discard -q 0 4k"],
            &["discard 0 0", "discard 2M 1", "discard 0 4G", "discard 1 1", "d 64k 64k", "map"],
            &["flush", "f", "flush 1"],
            &["truncate 2M", "length", "truncate 512k", "map", "truncate 1000", "length", "info"],
            &["truncate -m off 2M", "truncate -m falloc 3M", "truncate -m full 4M", "t 5M", "map"],
            &[
                "truncate -m foo 1M",
                "truncate -m metadata 4M",
                "truncate -m falloc 1k",
                "truncate 1 2",
            ],
            &["truncate x", "truncate -m", "truncate", "truncate 8E", "truncate -1"],
        ],
    );
}

#[test]
fn a_disk_that_ends_inside_a_sector_is_handled_alike() {
    check_raw(
        "odd",
        "odd.raw",
        &[
            &["length", "map", "read -v 990 34", "read 0 1024", "read 1000 24", "read 1024 1"],
            &["write -P 1 0 1024", "length"],
            &["discard 0 1024", "alloc 0 1024", "info"],
            &["write -P 1 1010 5", "read -v 990 34"],
        ],
    );
}

#[test]
fn requests_in_flight_say_the_same() {
    check_raw(
        "aio",
        "a.raw",
        &[
            &["aio_write 0 64k", "aio_flush", "aio_read -P 0xcd 0 64k", "aio_flush", "length"],
            &["aio_read -P 2 0 64k", "aio_flush", "aio_read -v 0 16", "aio_flush", "length"],
            &["aio_read -C 0 16", "aio_flush", "aio_read -q 0 16", "aio_flush"],
            &["aio_write -z 0 64k", "aio_flush", "aio_write -zu 64k 64k", "aio_flush"],
            &["aio_write -u 0 4k", "aio_write -f 0 4k", "aio_flush", "aio_write -z 0 4k 4k"],
            &["aio_write", "aio_read", "aio_read 0 x", "aio_read x 512", "aio_write -n 0 512"],
            &["aio_read 2M 512", "aio_flush", "aio_write 2M 512", "aio_flush", "length"],
            &["aio_read -i 0 512", "aio_write -i 0 512", "aio_flush", "aio_flush x"],
            &["aio_write -P 1 0 64k"],
            &["aio_write 0 1k 2k 3k", "aio_flush", "aio_read 0 1k 2k", "quit", "length"],
        ],
    );
}

#[test]
fn many_requests_in_flight_all_arrive() {
    let Some(bench) = Bench::new() else { return };
    let image = bench.path().join("many.raw");
    std::fs::write(&image, vec![0; 4 << 20]).unwrap();
    let commands: Vec<String> = (0..256)
        .map(|at| format!("aio_write -P {} {} 16k", 1 + at % 255, at * 16384))
        .chain(["aio_flush".into()])
        .chain((0..256).map(|at| format!("aio_read -P {} {} 16k", 1 + at % 255, at * 16384)))
        .collect();
    let mut command = bench.both.our(Tool::Io);
    command.args(["-f", "raw", "-n"]).args(commands.iter().flat_map(|line| ["-c", line]));
    let output = Output::of(command.arg(&image));
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    assert_eq!(output.stdout.matches("wrote 16384/16384").count(), 256);
    assert_eq!(output.stdout.matches("read 16384/16384").count(), 256);
    assert!(!output.stdout.contains("failed"));
}

#[test]
fn questions_are_answered_alike() {
    check_raw(
        "ask",
        "a.raw",
        &[
            &[
                "map",
                "alloc 0",
                "alloc 0 1M",
                "alloc 0 2M",
                "alloc 2M 1",
                "alloc 60k 64k",
                "a 1M 0",
            ],
            &["alloc x", "alloc 0 x", "alloc 0 1", "alloc", "alloc 1 2 3", "alloc -1", "map x"],
            &["length", "l", "info", "i", "length x", "info x", "sleep 1", "sleep 0"],
            &["sleep", "sleep x", "sleep -1", "sleep 1 2", "sleep 0x1"],
        ],
    );
}

#[test]
fn numbers_and_letters_are_read_alike() {
    check_raw(
        "number",
        "a.raw",
        &[
            &["read 0 0x10", "read 0x100 0X10", "read 010 010", "read +5 +5", "read 0 1b"],
            &["read 1s 1", "read 0 1K", "read 0 \"\"", "read 1.5k 1", "read 0 .5k", "read 0 1.5"],
            &["read 8E 1", "read 0 8E", "read 0 16E", "read 0 1kk", "read 0 2G", "read 0 -1"],
            &["write -P +5 0 1", "write -P 1k 0 1", "write -P 255 0 1", "write -P 0x100 0 1"],
            &["write -P 010 0 1", "write -P 08 0 1", "write -P 1.0 0 1", "read -P x 0 1"],
            &["read -P 0x 0 1", "read -P '' 0 1", "read -P 9f 0 1", "read -P -1 0 1"],
            &["read -x 0 1", "length", "read -P", "read -P 1", "read 0", "read -- 0 512"],
            &["read 0 512 -q", "read -q -- 0 512 -v", "read --foo 0 1", "read -P1 -q 0 512"],
            &["read -qP 0 0 512", "write -", "read - 512", "read 0 1 2"],
            &["  read  0   512  ", "", "   ", "nope", "length;length", "read '0' 512", "#", "h"],
            &["length -x", "flush -x", "info -x", "map -x", "alloc -x", "quit -x", "length"],
        ],
    );
}

#[test]
fn the_list_of_commands_is_that_of_qemu_io_but_for_what_is_missing() {
    let Some(bench) = Bench::new() else { return };
    let folders = folders(&bench, "help", raw_images);
    let mut answers = ask(&bench, &folders, &["-c", "help"], "");
    let missing = ["break ", "remove_break ", "resume ", "wait_break ", "zone_"];
    let there = |line: &&str| !missing.iter().any(|name| line.starts_with(name));
    answers.theirs.stdout =
        answers.theirs.stdout.split('\n').filter(there).collect::<Vec<_>>().join("\n");
    let lines = ["q", "quit", "a", "map", "length", "nope", "read nope"];
    let more = lines.map(|name| ask(&bench, &folders, &["-c", &format!("help {name}")], ""));
    expect_none([answers].iter().chain(&more).filter_map(Answers::difference).collect());
}

#[test]
fn a_script_on_standard_input_is_answered_alike() {
    let Some(bench) = Bench::new() else { return };
    let folders = folders(&bench, "stdin", raw_images);
    let inputs = [
        "",
        "length\n",
        "length\nread 0 512",
        "length\n\n  \nread 0 512\nnope\nlength\nquit\nlength\n",
        "read \"0 512\" 512\n read 0 '512' \n  read\t0 512\n# comment\n! ls\n",
        "aio_write 0 64k\naio_flush\nread 0 512\n",
        "close\nlength\nopen -o driver=raw a.raw\nlength\n",
    ];
    let with_image = |input| ask(&bench, &folders, &["-f", "raw", "a.raw"], input).difference();
    expect_none(inputs.into_iter().filter_map(with_image).collect());
    let without_image = |input| ask(&bench, &folders, &[], input).difference();
    expect_none(["length\nquit\n", "read 0 1\n"].into_iter().filter_map(without_image).collect());
}

#[test]
fn opening_and_closing_say_the_same() {
    let Some(bench) = Bench::new() else { return };
    let folders = folders(&bench, "open", |folder| {
        raw_images(folder);
        let _ = run(Tool::Img, folder, &["create", "-f", "qcow2", "b.qcow2", "1M"]);
    });
    let scripts: &[&[&str]] = &[
        &["length"],
        &["open a.raw", "length", "open a.raw"],
        &["open -o driver=raw a.raw", "length", "close", "length", "close"],
        &["open -o driver=qcow2,foo=1 b.qcow2", "open -x", "open -t foo a.raw", "open"],
        &["open -d foo a.raw", "open -i foo a.raw", "open a b", "open nowhere"],
        &["open -r -o file.filename=b.qcow2", "length", "map", "info"],
        &["open -o driver=raw,,foo a.raw", "open -r b.qcow2", "length", "write 0 512"],
        &["open -r b.qcow2", "discard 0 512", "truncate 1", "aio_write 0 1", "writev 0 1"],
        &["open -ro driver=raw a.raw", "reopen -w", "write 0 512", "reopen -r", "write 0 512"],
        &["open -ro driver=raw a.raw", "reopen -rw", "reopen -c foo", "reopen x", "reopen -x"],
        &["open -ro driver=raw a.raw", "reopen -o foo=1", "reopen -w -o read-only=on"],
        &["open -ro driver=raw a.raw", "reopen -c writeback -o cache.direct=on", "length"],
        &["open -n -o driver=raw a.raw", "read -v 0 3", "write -P 1 5 6", "read -v 0 16"],
        &["open -U -o driver=raw a.raw", "open -rU -o driver=raw a.raw", "length"],
        &["map", "alloc 0", "read 0 1", "nope", "read", "info", "flush", "aio_flush", "reopen -r"],
    ];
    let ask = |commands: &&[&str]| {
        let words: Vec<&str> = commands.iter().flat_map(|line| ["-c", *line]).collect();
        ask(&bench, &folders, &words, "").difference()
    };
    expect_none(scripts.iter().filter_map(ask).collect());
}

#[test]
fn the_options_of_the_program_say_the_same() {
    let Some(bench) = Bench::new() else { return };
    let folders = folders(&bench, "options", raw_images);
    let lines = [
        "nowhere",
        "-f raw nowhere -c length",
        "-f qcow2 a.raw",
        "-c length",
        "-f nope a.raw",
        "-f nope",
        "-t foo a.raw",
        "-d foo a.raw",
        "-i foo a.raw",
        "-f raw -n -c length a.raw",
        "-f raw -t directsync -c length a.raw",
        "-f raw -k -c length a.raw",
        "-f raw -n -k -c length a.raw",
        "-f raw -i native -c length a.raw",
        "-f raw -i io_uring -c length a.raw",
        "-f raw -m -c length a.raw",
        "-f raw -d ignore -c length a.raw",
        "--image-opts driver=raw,file.filename=a.raw -c length",
        "--image-opts -f raw driver=raw,file.filename=a.raw -c length",
        "--image-opts driver=raw -c length",
        "--object foo -c length",
        "-U -f raw -c length a.raw",
        "-U -r -f raw -c length a.raw",
        "-c length -f raw a.raw -r",
        "-c length a.raw",
        "-r -c length a.raw",
        "-c quit -c length",
        "--cmd=length --format=raw --read-only a.raw",
        "--cm length --form raw --read --nocache --cache none a.raw",
        "--c length",
    ];
    let ask = |line: &&str| {
        let words: Vec<&str> = line.split(' ').collect();
        let mut answers = ask(&bench, &folders, &words, "");
        // Ours points to the help where qemu-io prints it.
        if answers.theirs.stdout.starts_with("Usage: ") {
            answers.theirs.stdout.clear();
            answers.theirs.stderr.push_str("Try 'qemu-io --help' for more info\n");
        }
        answers.difference()
    };
    expect_none(lines.iter().filter_map(ask).collect());
}

#[test]
fn a_guessed_raw_disk_does_not_become_another_format() {
    let Some(bench) = Bench::new() else { return };
    let folders = folders(&bench, "guess", |folder| {
        raw_images(folder);
        std::fs::write(folder.join("magic"), b"QFI\xfb\0\0\0\x03").unwrap();
    });
    let words = ["-c", "write -s magic 0 8", "-c", "write -P 1 0 512", "-c", "write -s magic 1 8"];
    let answers = ask(&bench, &folders, &[&words[..], &["a.raw"]].concat(), "");
    expect_none(answers.difference().into_iter().collect());
    assert!(answers.ours.stdout.starts_with("write failed: Operation not permitted\n"));
}

#[test]
fn qcow2_images_are_read_and_described_alike() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.set.directory.clone();
    let folders = [folder.clone(), folder];
    let commands = ["length", "info", "map", "alloc 0 1M", "read -v 0 64", "read -v 65530 20"];
    let mut words = vec!["-r"];
    words.extend(commands.iter().flat_map(|line| ["-c", *line]));
    bench.for_each(common::readable, |fixture| {
        let words = [&words[..], &["-f", "qcow2", &fixture.name]].concat();
        let answers = ask(&bench, &folders, &words, "");
        // Raw fixtures are refused, which is compared as well.
        answers.difference()
    });
}

/// Images of qcow2 that are written to: the content must be the same, whatever lies where.
fn check_qcow2(name: &str, options: &str, scripts: &[&[&str]]) {
    let Some(bench) = Bench::new() else { return };
    let mut differences = Vec::new();
    for (at, commands) in scripts.iter().enumerate() {
        let folders = folders(&bench, &format!("{name}{at}"), |folder| {
            std::fs::write(folder.join("pat"), b"cowl").expect("a file");
            let create = ["create", "-f", "qcow2", "-o", options, "b.qcow2", "4M"];
            assert_eq!(run(Tool::Img, folder, &create).code, 0);
        });
        let mut words = vec!["-f", "qcow2"];
        words.extend(commands.iter().flat_map(|line| ["-c", *line]));
        words.push("b.qcow2");
        let answers = ask(&bench, &folders, &words, "");
        differences.extend(answers.difference());
        let images = folders.map(|folder| folder.join("b.qcow2").display().to_string());
        let compared = run(Tool::Img, bench.path(), &["compare", &images[0], &images[1]]);
        let checked = run(Tool::Img, bench.path(), &["check", &images[1]]);
        if compared.code != 0 || checked.code != 0 {
            let said = format!("{}{}", compared.stdout, checked.stdout);
            differences.push(format!("{}: {said}", answers.command));
        }
    }
    expect_none(differences);
}

const QCOW2_SCRIPTS: &[&[&str]] = &[
    &["write -P 1 0 64k", "write -P 2 100 5000", "read -P 2 100 5000", "map", "alloc 0 1M"],
    &["write 64k 1M", "write -z 128k 64k", "write -zu 192k 64k", "discard 256k 64k", "map"],
    // One at a time: which of two ends first is chance.
    &[
        "aio_write -P 1 0 1M",
        "aio_flush",
        "aio_write -P 2 1M 1M",
        "aio_flush",
        "read -P 2 1M 1M",
        "map",
    ],
    &["truncate 8M", "length", "write -P 3 7M 64k", "map", "flush"],
    &["write -s pat 0 10k", "read -v 0 32", "write -f 1M 1", "alloc 1M 64k"],
];

#[test]
fn qcow2_images_are_written_alike() {
    check_qcow2("qcow2", "cluster_size=64k", QCOW2_SCRIPTS);
}

#[test]
fn qcow2_images_with_subclusters_are_written_alike() {
    check_qcow2("extended", "extended_l2=on,cluster_size=64k", QCOW2_SCRIPTS);
}

#[test]
fn qcow2_clusters_are_compressed_alike() {
    check_qcow2(
        "compressed",
        "cluster_size=64k",
        &[
            &[
                "write -c -P 1 0 64k",
                "read -P 1 0 64k",
                "map",
                "write -P 2 100 100",
                "read -v 90 20",
            ],
            &["write -c 100 512", "write -c 512 512", "write -c 4096k 64k", "length"],
        ],
    );
}

#[test]
fn a_qcow2_image_reopened_for_writing_is_written_to() {
    check_qcow2(
        "reopened",
        "cluster_size=64k",
        &[&[
            "reopen -r",
            "write 0 512",
            "reopen -w",
            "write -P 1 0 512",
            "reopen -c none",
            "read -P 1 0 512",
            "close",
            "length",
        ]],
    );
}

#[test]
fn without_the_name_of_qemu_io_it_is_a_command() {
    let folder = tempfile::tempdir().unwrap();
    raw_images(folder.path());
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cowl"));
        Output::of(command.args(arguments).current_dir(&folder).stdin(Stdio::null()))
    };
    let output =
        run(&["io", "-f", "raw", "-c", "write -P 1 0 1k", "-c", "read -P 1 0 1k", "a.raw"]);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    assert!(output.stdout.starts_with("wrote 1024/1024 bytes at offset 0\n1 KiB, 1 ops; "));
    let output = run(&["io", "-f", "raw", "a.raw"]);
    assert_eq!((output.code, output.stdout.as_str()), (0, "cowl> "));
    let output = run(&["io", "nowhere"]);
    assert!(output.stderr.starts_with("cowl: can't open device nowhere: Could not open"));
    for (arguments, what) in [
        (["io", "-s"], "a temporary snapshot (-s)"),
        (["io", "-C"], "copy-on-read (-C)"),
        (["io", "-T"], "tracing (-T)"),
    ] {
        let output = run(&arguments);
        let expected = format!("cowl: {what} is not available in this version\n");
        assert_eq!((output.code, output.stderr), (1, expected));
    }
}

#[test]
fn a_raised_signal_ends_the_program_as_any_other() {
    let Some(bench) = Bench::new() else { return };
    let folders = folders(&bench, "signal", raw_images);
    let lines = ["sigraise 15", "sigraise 9", "abort", "sigraise 0", "sigraise 99", "sigraise 1k"];
    let ask = |line: &&str| ask(&bench, &folders, &["-c", line], "").difference();
    expect_none(lines.iter().filter_map(ask).collect());
}
