//! `bench` against qemu-img: the same words and exit codes, but for the seconds.

mod common;

use std::process::Command;

use common::{Bench, expect_none};
use cowl_testkit::Output;

const LINES: &[&str] = &[
    "-f raw a.raw -c 100",
    "-f raw -c 10 -d 1 -s 512 -S 4096 -o 1k a.raw",
    "-f raw -w -c 10 a.raw",
    "-f raw -w -c 100 --flush-interval=10 a.raw",
    "-f raw -w -c 100 --flush-interval=10 --no-drain -d 4 a.raw",
    "-f raw -w -c 100 --flush-interval=10 -d 4 a.raw",
    "-f raw -w --flush-interval=0 --no-drain -c 1 a.raw",
    "-f raw -c 100 --flush-interval=10 a.raw",
    "-f raw -c 100 --no-drain a.raw",
    "-f raw -w -c 10 --pattern=65 a.raw",
    "-f raw -c 10 --pattern=256 a.raw",
    "-f raw -c 10 --pattern=x a.raw",
    "-f raw -c 10 --pattern=1k a.raw",
    "-f raw -c 0 a.raw",
    "-f raw -c x a.raw",
    "-f raw -c -1 a.raw",
    "-f raw -c 1k a.raw",
    "-f raw -c 5G a.raw",
    "-f raw -c 0x10 a.raw",
    "-f raw -d 0 -c 2 a.raw",
    "-f raw -d x a.raw",
    "-f raw -s 0 -c 2 a.raw",
    "-f raw -s x a.raw",
    "-f raw -s 4G a.raw",
    "-f raw -s 2M -c 2 a.raw",
    "-f raw -s 1k -c 2 a.raw",
    "-f raw -S x a.raw",
    "-f raw -S 4G a.raw",
    "-f raw -S 0 -c 3 a.raw",
    "-f raw -o 2M -c 3 a.raw",
    "-f raw -o 1020k -c 3 -s 8k a.raw",
    "-f raw -o x a.raw",
    "-f raw -o 8E a.raw",
    "-f raw -q -c 3 a.raw",
    "-f raw -n -c 3 a.raw",
    "-f raw -i foo a.raw",
    "-f raw -i native -c 3 a.raw",
    "-f raw -i native -t none -c 3 a.raw",
    "-f raw -i io_uring -c 3 a.raw",
    "-f raw -i threads -c 300 a.raw",
    "-f raw -t foo a.raw",
    "-f raw -t unsafe -w -c 10 a.raw",
    "-f raw -t writethrough -w -c 10 a.raw",
    "-f raw -t directsync -w -c 10 a.raw",
    "-f raw -U -c 3 a.raw",
    "-f raw -U -w -c 3 a.raw",
    "-f raw --flush-interval=x a.raw",
    "-f raw --flush-interval=1k a.raw",
    "a b",
    "nowhere",
    "-f nope a.raw",
    "-f qcow2 a.raw",
    "-x",
    "--object secret,id=a,data=x",
    "--image-opts driver=raw,file.filename=a.raw -c 3",
    "-c 3 a.raw",
    "-c 3 -w a.raw",
    "--s",
    "--f",
    "--p",
    "--n",
    "--c",
    "--o a.raw",
    "--b",
    "--d",
    "-f raw -c 100 -d 200 a.raw",
    "-f raw -c 3 -S 512 -o 1048064 -s 4k a.raw",
    "-f raw -c 3 -s 512 -o 511 empty",
    "-w --pattern=5 -f raw -c 3 -s 100 a.raw",
    "-c 100 b.qcow2",
    "-c 100 -s 64k -d 8 -t none b.qcow2",
];

fn without_seconds(text: &str) -> String {
    let line = |line: &str| match line.strip_prefix("Run completed in ") {
        Some(_) => "Run completed in ... seconds.".to_owned(),
        None => line.to_owned(),
    };
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_words_are_those_of_qemu_img() {
    let Some(bench) = Bench::new() else { return };
    std::fs::write(bench.path().join("a.raw"), vec![0; 1 << 20]).unwrap();
    std::fs::write(bench.path().join("empty"), b"").unwrap();
    let create = ["create", "-f", "qcow2", "b.qcow2", "4M"];
    let _ = cowl_testkit::run(cowl_testkit::Tool::Img, bench.path(), &create);
    let ask = |line: &&str| {
        let words: Vec<&str> = std::iter::once("bench").chain(line.split(' ')).collect();
        let mut answers = bench.both.run(bench.path(), &words);
        for output in [&mut answers.theirs, &mut answers.ours] {
            output.stdout = without_seconds(&output.stdout);
        }
        answers.difference()
    };
    expect_none(LINES.iter().filter_map(ask).collect());
}

fn bench(words: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("a.raw"), vec![0; 1 << 20]).expect("a file");
    let mut command = Command::new(env!("CARGO_BIN_EXE_cowl"));
    Output::of(command.args(["bench", "-f", "raw"]).args(words).arg("a.raw").current_dir(&folder))
}

#[test]
fn people_see_rates_and_latencies() {
    let output = bench(&["-c", "1000", "--random", "--seed=7", "--threads=2", "-d", "4"]);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert_eq!(
        lines[0],
        "Sending 1000 random read requests, 4096 bytes each, 4 in parallel on each of 2 threads \
         (anywhere, seed 7)"
    );
    assert!(lines[1].starts_with("Run completed in "));
    assert!(lines[2].starts_with("1000 requests (1000 reads, 0 writes, 0 flushes), "));
    assert!(lines[3].starts_with("Latency in microseconds: p50 "));
    assert_eq!(bench(&["-q", "-c", "10"]).stdout, "");
}

#[test]
fn machines_get_one_object() {
    let words = ["-c", "200", "-d", "1", "--mix=50", "--flush-interval=50", "--output=json"];
    for driver in ["threads", "io_uring"] {
        let output = bench(&[&words[..], &["-i", driver]].concat());
        assert_eq!((output.code, output.stderr.as_str()), (0, ""));
        let report: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
        assert_eq!((report["requests"].as_u64(), report["flushes"].as_u64()), (Some(200), Some(4)));
        let (reads, writes) = (report["reads"].as_u64(), report["writes"].as_u64());
        assert_eq!(reads.unwrap() + writes.unwrap(), 200);
        assert_eq!(report["bytes"], 200 * 4096);
        assert!(report["iops"].as_f64().is_some_and(|rate| 0.0 < rate));
        assert!(report["latency-ns"]["p99.9"].as_u64() <= report["latency-ns"]["max"].as_u64());
    }
}

#[test]
fn a_duration_ends_the_run() {
    let start = std::time::Instant::now();
    let output = bench(&["--duration=1", "-d", "2"]);
    assert_eq!(output.code, 0);
    assert!(1 <= start.elapsed().as_secs());
    assert!(output.stdout.starts_with("Sending read requests, 4096 bytes each, 2 in parallel"));
}

#[test]
fn what_cannot_go_together_is_refused() {
    for (words, message) in [
        (&["--seed=1"][..], "--seed has an effect with --random or --mix only"),
        (&["--mix=5", "-w"], "--mix and --write are mutually exclusive"),
        (&["--random", "-o", "1k"], "--random chooses the places; --offset and --step-size cannot"),
        (&["-i", "threads", "-d", "5000"], "-i threads would need 5000 threads, at most 1024"),
        (&["--mix=101"], "Invalid percentage specified. Must be between 0 and 100."),
        (&["-s", "1G", "-d", "9"], "The buffers would need more than 8 GiB of memory"),
    ] {
        let output = bench(words);
        assert_eq!((output.code, output.stderr), (1, format!("cowl: {message}\n")));
    }
}

#[test]
fn a_qcow2_image_is_written_to() {
    let Some(bench) = Bench::new() else { return };
    let image = bench.path().join("b.qcow2").display().to_string();
    let img = |words: &[&str]| cowl_testkit::run(cowl_testkit::Tool::Img, bench.path(), words);
    assert_eq!(img(&["create", "-f", "qcow2", &image, "64M"]).code, 0);
    for words in [
        &["-w", "-c", "2000", "--pattern=7"][..],
        &["--random", "--mix=30", "-c", "2000", "--flush-interval=100"],
        &["-w", "--threads=2", "-d", "1", "-c", "2000", "-t", "writethrough"],
    ] {
        let words = [&["bench"][..], words, &[&image]].concat();
        let output = bench.both.run_ours(bench.path(), &words);
        assert_eq!((output.code, output.stderr.as_str()), (0, ""));
        assert_eq!(img(&["check", &image]).code, 0);
    }
}
