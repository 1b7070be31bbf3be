//! Long random sessions through `cowl io`, through qemu-io, and on a plain model: the same guest
//! bytes after every session, and both checkers find nothing.
//!
//! The images take turns: what one program wrote in a session, the other one continues in the next.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panic")]

mod common;

use std::path::Path;
use std::process::Command;

use common::Bench;
use cowl_testkit::{Random, Tool, run};

/// A geometry: options of `qemu-img create`, and the bytes that a discard takes whole.
struct Geometry {
    options: &'static str,
    cluster: u64,
    size: u64,
    backing: Option<&'static str>,
    has_snapshot: bool,
}

const fn plain(options: &'static str, cluster: u64, size: u64) -> Geometry {
    Geometry { options, cluster, size, backing: None, has_snapshot: false }
}

const GEOMETRIES: &[Geometry] = &[
    plain("cluster_size=512,refcount_bits=64", 512, 1_000_448),
    plain("cluster_size=4096,refcount_bits=1", 4096, 3_000_320),
    plain("cluster_size=65536", 65_536, 9_000_448),
    plain("cluster_size=2M,refcount_bits=8", 2 << 20, 40 << 20),
    plain("cluster_size=65536,extended_l2=on", 65_536, 9_000_448),
    plain("cluster_size=8192,compression_type=zstd", 8192, 3_000_320),
    plain("cluster_size=4096,lazy_refcounts=on", 4096, 3_000_320),
    plain("compat=0.10,cluster_size=4096", 4096, 3_000_320),
    plain("cluster_size=16384,data_file=D.data", 16_384, 3_000_320),
    plain("cluster_size=16384,data_file=D.data,data_file_raw=on", 16_384, 3_000_320),
    Geometry {
        backing: Some("base.raw"),
        ..plain("cluster_size=4096,refcount_bits=16", 4096, 3_000_320)
    },
    Geometry { backing: Some("base.qcow2"), ..plain("cluster_size=32768", 32_768, 3_000_320) },
    Geometry {
        backing: Some("base.raw"),
        ..plain("cluster_size=16384,extended_l2=on", 16_384, 3_000_320)
    },
    Geometry { has_snapshot: true, ..plain("cluster_size=4096", 4096, 3_000_320) },
    Geometry {
        has_snapshot: true,
        ..plain("cluster_size=65536,extended_l2=on", 65_536, 9_000_448)
    },
];

/// One random command or two, also done to the model.
fn step(geometry: &Geometry, model: &mut [u8], random: &mut Random) -> String {
    let size = model.len() as u64;
    let cluster = geometry.cluster;
    let at = random.below(size);
    let scale = [512, 4096, cluster, 5 * cluster][usize::try_from(random.below(4)).unwrap()];
    let length = 1 + random.below(scale);
    let (at, length) = match random.below(3) {
        0 => (at, length),
        1 => (at / 512 * 512, length.next_multiple_of(512)),
        _ => (at / cluster * cluster, length.next_multiple_of(cluster)),
    };
    let length = length.min(size - at);
    let value = u8::try_from(1 + random.below(255)).unwrap();
    let mut fill = |at: u64, length: u64, value: u8| {
        let start = usize::try_from(at).unwrap();
        model[start..start + usize::try_from(length).unwrap()].fill(value);
    };
    let may_compress = !geometry.options.contains("data_file");
    match random.below(12) {
        0 => {
            fill(at, length, 0);
            format!("write -z {at} {length}")
        }
        1 => {
            fill(at, length, 0);
            format!("write -z -u {at} {length}")
        }
        2 | 3 => {
            // Both give up whole clusters only, and the last one counts as whole.
            let at = at / cluster * cluster;
            let length = length.next_multiple_of(cluster).min(size - at);
            fill(at, length, 0);
            format!("discard {at} {length}")
        }
        4 | 5 if may_compress => {
            let at = at / cluster * cluster;
            let length = cluster.min(size - at);
            fill(at, length, value);
            // QEMU compresses into clusters without a place of their own only.
            format!("discard {at} {length}\nwrite -c -P {value} {at} {length}")
        }
        6 => "flush".to_owned(),
        7 => format!("read {at} {length}"),
        _ => {
            fill(at, length, value);
            format!("write -P {value} {at} {length}")
        }
    }
}

fn must(tool: Tool, folder: &Path, arguments: &[&str]) {
    let output = run(tool, folder, arguments);
    assert_eq!(output.code, 0, "{arguments:?}: {}", output.stderr);
}

fn create(bench: &Bench, geometry: &Geometry, name: &str) {
    let folder = bench.path();
    let options = geometry.options.replace("D.data", &format!("{name}.data"));
    let size = geometry.size.to_string();
    let mut arguments = vec!["create", "-q", "-f", "qcow2", "-o", &options];
    if let Some(backing) = geometry.backing {
        let format = if backing.ends_with("raw") { "raw" } else { "qcow2" };
        arguments.extend(["-b", backing, "-F", format]);
    }
    arguments.extend([name, &size]);
    must(Tool::Img, folder, &arguments);
    if geometry.has_snapshot {
        let script = ["-c", "write -P 77 0 700k", "-c", "write -c -P 78 1M 64k", name];
        must(Tool::Io, folder, &script);
        must(Tool::Img, folder, &["snapshot", "-c", "before", name]);
    }
}

fn content(bench: &Bench, name: &str, more: &[&str]) -> Vec<u8> {
    let out = "content.raw";
    let arguments = [&["convert", "-f", "qcow2", "-O", "raw"], more, &[name, out]].concat();
    must(Tool::Img, bench.path(), &arguments);
    std::fs::read(bench.path().join(out)).unwrap()
}

/// Runs a session on an image; neither program may fail.
fn session(mut program: Command, folder: &Path, commands: &[&str], name: &str) {
    program.args(["-f", "qcow2", "-t", "writeback", "-d", "unmap"]).current_dir(folder);
    for command in commands {
        program.args(["-c", command]);
    }
    let output = program.arg(name).output().unwrap();
    let said = [output.stderr, output.stdout].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{name}: {said}\n{commands:?}");
}

fn both_check(bench: &Bench, name: &str, what: &str) {
    let answers = bench.both.run(bench.path(), &["check", name]);
    for (who, answer) in [("qemu-img", &answers.theirs), ("cowl", &answers.ours)] {
        assert_eq!(answer.code, 0, "{what}: {who} check {name}: {}", answer.stdout);
    }
}

fn compare(bench: &Bench, geometry: &Geometry, seed: u64) {
    let what = format!("{}, {:?}, seed {seed}", geometry.options, geometry.backing);
    let mut random = Random::new(seed);
    create(bench, geometry, "theirs.qcow2");
    create(bench, geometry, "ours.qcow2");
    let mut model = content(bench, "ours.qcow2", &[]);
    let snapshot = geometry.has_snapshot.then(|| model.clone());
    for round in 0..4 {
        let commands: Vec<String> =
            (0..40).map(|_| step(geometry, &mut model, &mut random)).collect();
        let commands: Vec<&str> = commands.iter().flat_map(|lines| lines.lines()).collect();
        let ours = || {
            let mut program = bench.both.our(Tool::Io);
            program.env("LC_ALL", "C");
            program
        };
        // In the last round each continues on the image of the other.
        let (first, second) = match round < 3 || geometry.cluster == 2 << 20 {
            true => ("theirs.qcow2", "ours.qcow2"),
            false => ("ours.qcow2", "theirs.qcow2"),
        };
        session(Command::new(Tool::Io.name()), bench.path(), &commands, first);
        session(ours(), bench.path(), &commands, second);
        for name in [first, second] {
            // QEMU's own image ends up with other bytes than the model there.
            if geometry.cluster == 2 << 20 && name == "theirs.qcow2" {
                continue;
            }
            let found = content(bench, name, &[]);
            let differs = found.iter().zip(&model).position(|(found, wanted)| found != wanted);
            assert_eq!((differs, found.len()), (None, model.len()), "{what}: {name}, {round}");
            both_check(bench, name, &what);
        }
    }
    if let Some(snapshot) = snapshot {
        let found = content(bench, "ours.qcow2", &["-l", "before"]);
        assert!(found == snapshot, "{what}: the snapshot changed");
    }
    for name in ["theirs.qcow2", "ours.qcow2", "theirs.qcow2.data", "ours.qcow2.data"] {
        std::fs::remove_file(bench.path().join(name)).ok();
    }
}

fn bench() -> Option<Bench> {
    let bench = Bench::new()?;
    let base: Vec<u8> = (0..2_500_096_u32)
        .map(|at| if at / 9000 % 3 == 0 { 0 } else { (at / 4096 % 251).to_le_bytes()[0] })
        .collect();
    std::fs::write(bench.path().join("base.raw"), &base).unwrap();
    let convert = ["convert", "-f", "raw", "-O", "qcow2", "base.raw", "base.qcow2"];
    must(Tool::Img, bench.path(), &convert);
    Some(bench)
}

#[test]
fn sessions_on_images_of_every_geometry_end_alike() {
    let Some(bench) = bench() else { return };
    for (seed, geometry) in (1..).zip(GEOMETRIES) {
        for variant in 0..2 {
            compare(&bench, geometry, seed * 100 + variant);
        }
    }
}
