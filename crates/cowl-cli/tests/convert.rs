//! `convert` against qemu-img: contents both ways, what is said, and what is left after a failure.

mod common;

use std::path::Path;

use common::{Bench, expect_none, readable};
use cowl_testkit::{Answers, Feature, Tool, run};

/// Both copies of the same sources, each in a file of its own; what differs between them.
fn difference(bench: &Bench, options: &[&str], sources: &[&str], format: &str) -> Option<String> {
    let [theirs, ours] = ["theirs", "ours"].map(|side| bench.path().join(side));
    for copy in [&theirs, &ours] {
        std::fs::remove_file(copy).ok();
    }
    let arguments = |target: &Path| {
        let mut arguments: Vec<String> = vec!["convert".into(), "-O".into(), format.into()];
        arguments.extend(options.iter().chain(sources).map(|word| (*word).to_owned()));
        arguments.push(target.display().to_string());
        arguments
    };
    let answers = Answers {
        command: format!("qemu-img convert -O {format} {options:?} {sources:?}"),
        theirs: run(Tool::Img, &bench.set.directory, &arguments(&theirs)),
        ours: bench.both.run_ours(&bench.set.directory, &arguments(&ours)),
    };
    if let Some(difference) = answers.difference() {
        return Some(difference);
    }
    if answers.ours.code != 0 {
        return None;
    }
    let compare = ["compare", "-f", format, "-F", format, "theirs", "ours"];
    let compared = run(Tool::Img, bench.path(), &compare);
    let same = compared.stdout == "Images are identical.\n";
    let checked = run(Tool::Img, bench.path(), &["check", "-f", format, "ours"]);
    let fine = same && [0, 63].contains(&checked.code);
    (!fine).then(|| {
        let Answers { command, .. } = &answers;
        format!("{command}: {}{}{}", compared.stdout, compared.stderr, checked.stderr)
    })
}

#[test]
fn every_image_becomes_the_same_raw_file() {
    let Some(bench) = Bench::new() else { return };
    bench.for_each(readable, |fixture| difference(&bench, &[], &[&fixture.name], "raw"));
}

#[test]
fn every_image_becomes_the_same_disk_in_qcow2() {
    let Some(bench) = Bench::new() else { return };
    bench.for_each(readable, |fixture| difference(&bench, &[], &[&fixture.name], "qcow2"));
}

#[test]
fn targets_of_every_kind_hold_the_same_disk() {
    let Some(bench) = Bench::new() else { return };
    let kinds: &[&[&str]] = &[
        &["-c"],
        &["-c", "-o", "compression_type=zstd"],
        &["-c", "-o", "cluster_size=512"],
        &["-c", "-o", "cluster_size=2M,compression_type=zstd"],
        &["-o", "compat=0.10"],
        &["-c", "-o", "compat=0.10"],
        &["-o", "extended_l2=on"],
        &["-o", "refcount_bits=1,cluster_size=4k"],
        &["-o", "preallocation=metadata"],
        &["-o", "preallocation=full"],
        &["-S", "0"],
        &["-S", "64k"],
        &["-m", "1"],
        &["-m", "4", "-W"],
        &["-t", "none", "-T", "none"],
        &["-C"],
        &["-r", "100M"],
        &["-o", "size=16M"],
    ];
    let mut differences = Vec::new();
    for source in ["zeros", "over-over-qcow2", "zlib-65536", "raw-odd"] {
        for kind in kinds {
            differences.extend(difference(&bench, kind, &[source], "qcow2"));
        }
    }
    expect_none(differences);
}

#[test]
fn several_sources_are_joined() {
    let Some(bench) = Bench::new() else { return };
    let sources = ["raw-odd", "zeros", "odd-513", "zlib-mixed", "size-0", "raw-sparse"];
    for format in ["raw", "qcow2"] {
        assert_eq!(difference(&bench, &[], &sources, format), None);
    }
}

#[test]
fn snapshots_can_be_copied() {
    let Some(bench) = Bench::new() else { return };
    bench.for_each(
        // qemu-img gives a snapshot the size that the disk has now; we give it its own.
        |fixture| fixture.has(Feature::Snapshots) && fixture.name != "snapshot-of-other-size",
        |fixture| {
            ["1", "first", "snapshot.id=2", "nope"]
                .iter()
                .find_map(|snapshot| difference(&bench, &["-l", snapshot], &[&fixture.name], "raw"))
        },
    );
}

#[test]
fn a_copy_over_a_backing_file_holds_only_what_differs() {
    let Some(bench) = Bench::new() else { return };
    let base = bench.set.directory.join("zeros");
    let base = base.to_str().unwrap();
    let options = ["-B", base, "-F", "qcow2"];
    assert_eq!(difference(&bench, &options, &["over-qcow2"], "qcow2"), None);
    let map = |name| run(Tool::Img, bench.path(), &["map", "--output=json", name]).stdout;
    let depths = |name| map(name).matches("\"depth\": 0").count();
    assert_eq!(depths("theirs"), depths("ours"));
}

#[test]
fn zeros_for_want_of_a_layer_below_hide_the_backing_file_of_the_target() {
    let Some(bench) = Bench::new() else { return };
    // What the sources' own backing file has, and more behind it.
    let mut longer = std::fs::read(bench.set.directory.join("raw-sparse")).unwrap();
    longer.resize(16 << 20, 9);
    let (longer_name, ours) = (bench.path().join("longer"), bench.path().join("ours"));
    std::fs::write(&longer_name, longer).unwrap();
    let (longer_name, ours) = (longer_name.to_str().unwrap(), ours.to_str().unwrap());
    for more in [&[][..], &["-c"], &["-S", "0"], &["-o", "compat=v2"], &["-o", "extended_l2=on"]] {
        for source in ["zeros", "raw-hole", "over-raw-shorter-subclusters"] {
            let start = ["convert", "-O", "qcow2", "-B", longer_name, "-F", "raw"];
            let arguments = [&start, more, &[source, ours]].concat();
            let copied = bench.both.run_ours(&bench.set.directory, &arguments);
            assert_eq!(copied.code, 0, "{copied:?}");
            let compared = run(Tool::Img, &bench.set.directory, &["compare", source, ours]);
            assert_eq!(compared.stdout, "Images are identical.\n", "{more:?} {source}");
        }
    }
}

#[test]
fn an_existing_target_is_written_into() {
    let Some(bench) = Bench::new() else { return };
    for (format, options) in [("raw", &["-n"][..]), ("qcow2", &["-n"]), ("raw", &["-n", "-S", "0"])]
    {
        for name in ["theirs", "ours"] {
            let make = ["create", "-q", "-f", format, name, "6M"];
            assert_eq!(run(Tool::Img, bench.path(), &make).code, 0);
            let pattern = ["-f", format, "-c", "write -q -P 7 0 6M", name];
            assert_eq!(run(Tool::Io, bench.path(), &pattern).code, 0);
        }
        let convert = |target: &Path| {
            let mut arguments = vec!["convert", "-O", format];
            arguments.extend(options);
            let target = target.to_str().unwrap().to_owned();
            arguments.extend(["zeros", &target]);
            arguments.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()
        };
        let theirs = convert(&bench.path().join("theirs"));
        assert_eq!(run(Tool::Img, &bench.set.directory, &theirs).code, 0);
        let ours = bench.both.run_ours(&bench.set.directory, &convert(&bench.path().join("ours")));
        assert_eq!(ours.code, 0, "{}", ours.stderr);
        let compare = ["compare", "-f", format, "-F", format, "theirs", "ours"];
        assert_eq!(run(Tool::Img, bench.path(), &compare).stdout, "Images are identical.\n");
    }
}

#[test]
fn failures_are_told_in_the_same_words_and_leave_nothing() {
    let Some(bench) = Bench::new() else { return };
    let lines = [
        "convert nowhere b",
        "convert -f nope zeros b",
        "convert zeros b -O nope",
        "convert -n zeros nowhere",
        "convert -n -O qcow2 zeros nowhere",
        "convert -B raw-hole -O qcow2 zeros b",
        "convert -F raw zeros b",
        "convert -B raw-hole -F raw zeros b",
        "convert -f qcow2 -F raw -O qcow2 zeros b",
        "convert -o backing_file=raw-hole -O qcow2 zeros b",
        "convert -B raw-hole -F raw -O qcow2 zeros zeros b",
        "convert -B raw-hole -O qcow2 zeros zeros b",
        "convert -o backing_file=raw-hole,backing_fmt=raw -O qcow2 zeros zeros b",
        "convert -n -B raw-hole -F raw -O qcow2 zeros zeros b",
        "convert -c -O raw zeros b",
        "convert -c zeros b",
        "convert -l x raw-hole b",
        "convert -l x zeros b",
        "convert -o compression_type=foo -O qcow2 zeros b",
        "convert -o compat=9 -O qcow2 zeros b",
        "convert -o cluster_size=3 -O qcow2 zeros b",
        "convert -o preallocation=nope -O qcow2 zeros b",
        "convert -O qcow2 -c -o preallocation=full zeros b",
        "convert -O qcow2 -c -o encryption=on zeros b",
        "convert -o nope=x -O qcow2 zeros b",
        "convert -o cluster_size=x -O qcow2 zeros b",
        "convert -o nope=x zeros b",
        "convert zeros nowhere/b",
        "convert zeros .",
        "convert zeros nope:b",
        "convert zeros json:{}",
        "convert -O qcow2 zeros .",
        "convert over-missing b",
        "convert --image-opts driver=qcow2,file.filename=nowhere b",
        "convert -f qcow2 --image-opts driver=qcow2,file.filename=zeros b",
    ];
    let mut differences = Vec::new();
    for line in lines {
        let arguments: Vec<&str> = line.split(' ').collect();
        let theirs = run(Tool::Img, &bench.set.directory, &arguments);
        std::fs::remove_file(bench.set.directory.join("b")).ok();
        let ours = bench.both.run_ours(&bench.set.directory, &arguments);
        let left = std::fs::remove_file(bench.set.directory.join("b")).is_ok();
        if left {
            differences.push(format!("{line}: a failed copy left a file"));
        }
        differences.extend(Answers { command: line.into(), theirs, ours }.difference());
    }
    expect_none(differences);
    let names = std::fs::read_dir(&bench.set.directory).unwrap().flatten();
    let known = |name: &str| {
        name.ends_with(".data") || bench.set.fixtures.iter().any(|fixture| fixture.name == name)
    };
    let strange: Vec<_> = names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !known(name))
        .collect();
    assert!(strange.is_empty(), "left behind: {strange:?}");
}

#[test]
fn a_broken_source_fails_the_copy_and_is_salvaged_on_demand() {
    let Some(bench) = Bench::new() else { return };
    let target = bench.path().join("copy");
    let target = target.to_str().unwrap();
    for source in ["l2-misaligned", "v2-zero-flag", "l1-misaligned"] {
        let failed = bench.both.run_ours(&bench.set.directory, &["convert", source, target]);
        assert_eq!(failed.code, 1, "{source}");
        assert!(failed.stderr.contains("error while reading"), "{}", failed.stderr);
        assert!(!Path::new(target).exists(), "{source}: a failed copy left a file");
    }
}

#[test]
fn digests_are_those_of_the_raw_content() {
    let Some(bench) = Bench::new() else { return };
    let arguments = ["convert", "-O", "raw", "zeros", bench.path().join("a").to_str().unwrap()]
        .map(str::to_owned);
    assert_eq!(run(Tool::Img, &bench.set.directory, &arguments).code, 0);
    let expected = cowl_testkit::Output::of(
        std::process::Command::new("sha256sum").arg("a").current_dir(bench.path()),
    );
    let target = bench.path().join("b");
    let ours =
        ["convert", "-c", "-O", "qcow2", "--verify", "--digest", "zeros", target.to_str().unwrap()];
    let ours = bench.both.run_ours(&bench.set.directory, &ours);
    assert_eq!(ours.code, 0, "{}", ours.stderr);
    assert_eq!(ours.stdout.split(' ').next(), expected.stdout.split(' ').next());
}

#[test]
fn progress_has_the_form_that_scripts_read() {
    let Some(bench) = Bench::new() else { return };
    let target = bench.path().join("copy");
    let target = target.to_str().unwrap();
    let human = bench.both.run_ours(&bench.set.directory, &["convert", "-p", "zlib-65536", target]);
    assert!(human.stdout.starts_with("    (0.00/100%)\r"), "{:?}", human.stdout);
    assert!(human.stdout.ends_with("    (100.00/100%)\r\n"), "{:?}", human.stdout);
    let quiet = ["convert", "-pq", "zlib-65536", target];
    assert_eq!(bench.both.run_ours(&bench.set.directory, &quiet).stdout, "");
    let lines = ["convert", "--progress=jsonl", "zlib-65536", target];
    let lines = bench.both.run_ours(&bench.set.directory, &lines);
    assert_eq!(lines.stdout, "");
    for line in lines.stderr.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(line["operation"], "convert");
    }
}

#[test]
fn bitmaps_are_refused_for_now() {
    let Some(bench) = Bench::new() else { return };
    let arguments = ["convert", "--bitmaps", "-O", "qcow2", "bitmaps", "/tmp/never"];
    let refused = bench.both.run_ours(&bench.set.directory, &arguments);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("not available"), "{}", refused.stderr);
}

#[test]
fn a_signal_shows_at_once_how_far_a_slow_copy_is() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let Some(bench) = Bench::new() else { return };
    let target = bench.path().join("copy");
    let mut child = Command::new(env!("CARGO_BIN_EXE_cowl"))
        .args(["convert", "-r", "1k", "-O", "raw", "clusters-65536", target.to_str().unwrap()])
        .current_dir(&bench.set.directory)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    // The handler is there once the copy has begun, which the first bytes of the target show.
    let begun = || std::fs::read_dir(bench.path()).unwrap().count() > 1;
    while !begun() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let kill = Command::new("kill").args(["-USR1", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(line.starts_with("    (") && line.ends_with("/100%)\n"), "{line:?}");
}
