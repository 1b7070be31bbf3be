//! `create` against qemu-img: what is said, and the image itself, byte by byte.

mod common;

use std::path::Path;

use common::{Bench, expect_none};
use cowl_testkit::{Answers, Output, SideBySide, Tool, run};

/// Runs the command in a folder of its own for each program, so that both make the same name.
fn create(bench: &Bench, name: &str, arguments: &[&str]) -> (Answers, [std::path::PathBuf; 2]) {
    let folders = ["theirs", "ours"].map(|side| bench.path().join(name).join(side));
    for folder in &folders {
        std::fs::create_dir_all(folder).expect("a folder");
        std::fs::write(folder.join("base.raw"), vec![1; 3 << 20]).expect("a file");
        let made =
            ["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "base.qcow2", "2M"];
        assert_eq!(run(Tool::Img, folder, &made).code, 0);
    }
    let answers = Answers {
        command: format!("qemu-img {}", arguments.join(" ")),
        theirs: run(Tool::Img, &folders[0], arguments),
        ours: bench.both.run_ours(&folders[1], arguments),
    };
    (answers, folders)
}

/// What differs in what is said, in the files, or in qemu-img's opinion of ours.
fn difference(bench: &Bench, name: &str, arguments: &[&str]) -> Option<String> {
    let (answers, folders) = create(bench, name, arguments);
    if let Some(difference) = answers.difference() {
        return Some(difference);
    }
    if answers.ours.code != 0 {
        let left = folders[1].join("new").exists();
        return left.then(|| format!("{}: a failed command left an image", answers.command));
    }
    let command = &answers.command;
    let checked = run(Tool::Img, &folders[1], &["check", "new"]);
    if ![0, 63].contains(&checked.code) {
        return Some(format!("{command}: {}{}", checked.stdout, checked.stderr));
    }
    let compared = run(Tool::Img, &folders[1], &["compare", "-U", "new", "../theirs/new"]);
    if compared.code != 0 {
        return Some(format!("{command}: {}{}", compared.stdout, compared.stderr));
    }
    let info = |folder: &Path| {
        let Output { stdout, .. } = run(Tool::Img, folder, &["info", "new"]);
        // Where tables lie among preallocated clusters is ours to choose.
        let is_layout = |line: &str| {
            line.contains("disk size")
                || (command.contains("preallocation") && line.contains("file length"))
        };
        let lines = stdout.lines().filter(|line| !is_layout(line));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let [theirs, ours] = [info(&folders[0]), info(&folders[1])];
    let changed = theirs.iter().zip(&ours).find(|(theirs, ours)| theirs != ours);
    changed.map(|(theirs, ours)| format!("{command}: {theirs} became {ours}"))
}

fn check_all(bench: &Bench, lines: &[&str]) {
    let mut differences = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let mut arguments = vec!["create"];
        arguments.extend(line.split(' ').map(|word| if word == "''" { "" } else { word }));
        differences.extend(difference(bench, &number.to_string(), &arguments));
    }
    expect_none(differences);
}

#[test]
fn images_of_every_geometry_are_made_alike() {
    let Some(bench) = Bench::new() else { return };
    check_all(
        &bench,
        &[
            "-f qcow2 new 1M",
            "-f qcow2 new 1.5k",
            "-f qcow2 new 10b",
            "-f qcow2 new 0",
            "-f qcow2 new 100000",
            "-qf qcow2 new 20G",
            "-f qcow2 -o compat=0.10 new 1G",
            "-f qcow2 -o compat=v3 new 1G",
            "-f qcow2 -o cluster_size=512 new 1G",
            "-f qcow2 -o cluster_size=2M new 1T",
            "-f qcow2 -o cluster_size=4k,refcount_bits=1 new 1G",
            "-f qcow2 -o refcount_bits=64 new 1G",
            "-f qcow2 -o extended_l2=on new 1G",
            "-f qcow2 -o extended_l2=on,cluster_size=16k new 1G",
            "-f qcow2 -o lazy_refcounts new 1G",
            "-f qcow2 -o nolazy_refcounts new 1G",
            "-f qcow2 -o compression_type=zstd new 1G",
            "-f qcow2 -o data_file=data new 1G",
            "-f qcow2 -o data_file=data,data_file_raw=on new 16M",
            "-f qcow2 -o size=2M new",
            "-f qcow2 -o cluster_size=128k -o cluster_size=64k new 1M",
            "-f qcow2 -o preallocation=metadata new 16M",
            "-f qcow2 -o preallocation=falloc new 16M",
            "-f qcow2 -o preallocation=full new 16M",
            "-f qcow2 -o preallocation=metadata,cluster_size=512 new 16M",
            "-f qcow2 -o preallocation=metadata,extended_l2=on new 16M",
            "-f raw new 1M",
            "new 1000",
            "-f raw -o size=1M new",
            "-f raw -o preallocation=falloc new 1M",
            "-f raw -o preallocation=full new 1M",
        ],
    );
}

#[test]
fn overlays_are_made_alike() {
    let Some(bench) = Bench::new() else { return };
    check_all(
        &bench,
        &[
            "-f qcow2 -b base.raw -F raw new",
            "-f qcow2 -b base.qcow2 -F qcow2 new",
            "-f qcow2 -b base.qcow2 -F qcow2 new 5M",
            "-f qcow2 -b base.qcow2 -F qcow2 new 1M",
            "-f qcow2 -o backing_file=base.raw,backing_fmt=raw new",
            "-f qcow2 -b ignored -b base.raw -F raw new",
            "-f qcow2 -b base.raw -F raw -o compat=0.10 new",
            "-f qcow2 -b base.raw -F raw -o extended_l2=on,preallocation=metadata new",
            "-f qcow2 -b base.raw new",
            "-f qcow2 -b base.qcow2 new",
            "-f qcow2 -b base.qcow2 -F nope new",
            "-f qcow2 -b base.qcow2 -F raw new",
            "-f qcow2 -b base.raw -F qcow2 new",
            "-f qcow2 -b nowhere -F raw new",
            "-f qcow2 -b nowhere -F raw new 1M",
            "-f qcow2 -u -b nowhere -F raw new",
            "-f qcow2 -u -b nowhere new 1M",
            "-f qcow2 -b '' new 1M",
            "-f qcow2 -b new -F qcow2 new 1M",
            "-f raw -b base.qcow2 -F qcow2 new",
            "-f raw -F qcow2 new 1M",
        ],
    );
}

#[test]
fn an_overlay_of_nothing_keeps_its_names() {
    let Some(bench) = Bench::new() else { return };
    let arguments = ["create", "-f", "qcow2", "-u", "-b", "a,b/no where", "-F", "raw", "new", "1M"];
    let (answers, folders) = create(&bench, "unsafe", &arguments);
    assert_eq!(answers.difference(), None);
    let info = |folder: &Path| run(Tool::Img, folder, &["info", "new"]).stdout;
    let named = "backing file: a,b/no where\nbacking file format: raw\n";
    assert!(folders.iter().all(|folder| info(folder).contains(named)));
}

#[test]
fn fresh_images_are_laid_out_as_qemu_lays_them_out() {
    let Some(bench) = Bench::new() else { return };
    let mut differences = Vec::new();
    for options in [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=4k,refcount_bits=64",
        "cluster_size=2M",
        "extended_l2=on,lazy_refcounts=on",
        "compression_type=zstd",
        "backing_file=base.raw,backing_fmt=raw",
        "data_file=data",
    ] {
        let arguments = ["create", "-q", "-f", "qcow2", "-o", options, "new", "64M"];
        let (answers, folders) = create(&bench, options, &arguments);
        assert_eq!(answers.difference(), None);
        let [theirs, ours] =
            folders.map(|folder| std::fs::read(folder.join("new")).expect("an image"));
        let at = theirs.iter().zip(&ours).position(|(theirs, ours)| theirs != ours);
        if at.is_some() || theirs.len() != ours.len() {
            let (theirs, ours) = (theirs.len(), ours.len());
            differences.push(format!("{options}: first at {at:x?}, lengths {theirs} and {ours}"));
        }
    }
    expect_none(differences);
}

#[test]
fn impossible_images_are_refused_in_the_same_words() {
    let Some(bench) = Bench::new() else { return };
    check_all(
        &bench,
        &[
            "-f nope new 1M",
            "-f qcow2 new",
            "-f qcow2 -F raw new",
            "-f qcow2 -o nope=1 new 1M",
            "-f qcow2 -o nocow new 1M",
            "-f qcow2 -o cluster_size=3 new 1M",
            "-f qcow2 -o cluster_size=4M new 1M",
            "-f qcow2 -o cluster_size=x new 1M",
            "-f qcow2 -o cluster_size=-1 new 1M",
            "-f qcow2 -o cluster_size=99999999999999999999 new 1M",
            "-f qcow2 -o lazy_refcounts=maybe new 1M",
            "-f qcow2 -o lazy_refcounts=yes,compat=0.10 new 1M",
            "-f qcow2 -o refcount_bits=3 new 1M",
            "-f qcow2 -o refcount_bits=-1 new 1M",
            "-f qcow2 -o refcount_bits=x new 1M",
            "-f qcow2 -o refcount_bits=32,compat=0.10 new 1M",
            "-f qcow2 -o preallocation=x new 1M",
            "-f qcow2 -o compat=1.0 new 1M",
            "-f qcow2 -o extended_l2=on,compat=0.10 new 1M",
            "-f qcow2 -o extended_l2=on,cluster_size=4k new 1M",
            "-f qcow2 -o data_file_raw=on new 1M",
            "-f qcow2 -o data_file=x,compat=0.10 new 1M",
            "-f qcow2 -o data_file=x,data_file_raw=on,backing_file=base.raw,backing_fmt=raw new",
            "-f qcow2 -o compression_type=zstd,compat=0.10 new 1M",
            "-f qcow2 -o compression_type=foo new 1M",
            "-f qcow2 -o preallocation=metadata,backing_file=base.raw,backing_fmt=raw new 1M",
            "-f qcow2 -o size=2M new 1M",
            "-f qcow2 -o cluster_size=512 new 200G",
            "-f qcow2 new 7E",
            "-f raw -o preallocation=metadata new 1M",
            "-f raw -o cluster_size=64k new 1M",
            "-f qcow2 nowhere/new 1M",
            "-f raw nowhere/new 1M",
            "-f raw . 1M",
            "-o = new 1M",
            "-f qcow2 -o a=b,=c new 1M",
        ],
    );
}

#[test]
fn encrypted_images_are_refused() {
    let Some(bench) = Bench::new() else { return };
    let both: &SideBySide = &bench.both;
    let secret = "secret,id=key,data=x";
    for options in ["encryption=on", "encrypt.format=luks,encrypt.key-secret=key"] {
        let arguments =
            ["create", "-q", "-f", "qcow2", "--object", secret, "-o", options, "new", "1M"];
        let refused = both.run_ours(bench.path(), &arguments);
        assert_eq!(refused.code, 1);
        assert!(refused.stderr.contains("not available"), "{}", refused.stderr);
    }
    assert!(!bench.path().join("new").exists());
}

/// What lay in a file before does not show in the image that takes its name.
#[test]
fn an_image_over_an_old_file_is_like_a_fresh_one() {
    let Some(bench) = Bench::new() else { return };
    let old = bench.path().join("old");
    std::fs::write(&old, vec![0xff; 3 << 20]).expect("a file");
    for name in ["old", "fresh"] {
        let output = bench.both.run_ours(bench.path(), &["create", "-f", "qcow2", name, "1M"]);
        assert_eq!(output.code, 0, "{}", output.stderr);
    }
    let fresh = std::fs::read(bench.path().join("fresh")).expect("a file");
    assert!(std::fs::read(&old).expect("a file") == fresh);
    let output = bench.both.run_ours(bench.path(), &["compare", "old", "fresh"]);
    assert_eq!(output.code, 0, "{}", output.stdout);
}
