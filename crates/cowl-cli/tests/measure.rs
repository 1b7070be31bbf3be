//! `measure` against qemu-img: a grid of options for empty disks, and every fixture as a source.

mod common;

use common::{Bench, expect_none, readable};
use cowl_testkit::Feature;

#[test]
fn empty_disks_of_every_geometry_are_measured_alike() {
    let Some(bench) = Bench::new() else { return };
    let mut differences = Vec::new();
    for size in ["0", "1", "513", "1M", "100000001", "1G", "100G", "3T"] {
        for cluster_size in ["512", "4k", "16k", "64k", "2M"] {
            for more in [
                "refcount_bits=1",
                "refcount_bits=16",
                "refcount_bits=64",
                "extended_l2=on",
                "compat=0.10",
            ] {
                let options = format!("cluster_size={cluster_size},{more}");
                let arguments =
                    ["measure", "--output=json", "-O", "qcow2", "-o", &options, "--size", size];
                differences.extend(bench.run(&arguments).difference());
            }
        }
    }
    expect_none(differences);
}

#[test]
fn other_options_count_as_they_should() {
    let Some(bench) = Bench::new() else { return };
    let mut differences = Vec::new();
    for options in [
        "preallocation=off",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
        "preallocation=other",
        "backing_file=x",
        "data_file=x,data_file_raw=on",
        "lazy_refcounts=on",
        "compression_type=zstd",
        "size=5G",
        "encrypt.format=aes",
        "compat=0.9",
        "refcount_bits=3",
        "refcount_bits=128",
        "cluster_size=3k",
        "cluster_size=4M",
        "compat=0.10,refcount_bits=8",
        "extended_l2=on,cluster_size=4k",
        "nope=1",
        "cluster_size=x",
    ] {
        let empty = ["measure", "-O", "qcow2", "-o", options, "--size", "1G"];
        differences.extend(bench.run(&empty).difference());
        let image = ["measure", "-O", "qcow2", "-o", options, "zeros"];
        differences.extend(bench.run(&image).difference());
    }
    for size in ["8191P", "1E", "129G"] {
        let arguments = ["measure", "-O", "qcow2", "-o", "cluster_size=512", "--size", size];
        differences.extend(bench.run(&arguments).difference());
    }
    expect_none(differences);
}

#[test]
fn images_are_measured_alike() {
    let Some(bench) = Bench::new() else { return };
    bench.for_each(readable, |fixture| {
        let name = &fixture.name;
        [
            vec!["measure", "-O", "qcow2", name],
            vec!["measure", "--output=json", "-O", "qcow2", name],
            vec!["measure", "-O", "raw", name],
            vec!["measure", "-O", "qcow2", "-o", "cluster_size=4k,compat=0.10", name],
            vec!["measure", "-O", "qcow2", "-o", "backing_file=x,cluster_size=2M", name],
        ]
        .iter()
        .find_map(|arguments| bench.run(arguments).difference())
    });
}

#[test]
fn snapshots_are_measured_as_they_were() {
    let Some(bench) = Bench::new() else { return };
    bench.for_each(
        // qemu-img gives a snapshot the size that the disk has now; we give it its own.
        |fixture| fixture.has(Feature::Snapshots) && fixture.name != "snapshot-of-other-size",
        |fixture| {
            let snapshots = ["1", "first", "small", "snapshot.id=1", "snapshot.name=first", "nope"];
            snapshots.iter().find_map(|snapshot| {
                let arguments = ["measure", "-O", "qcow2", "-l", snapshot, &fixture.name];
                bench.run(&arguments).difference()
            })
        },
    );
    let raw = ["measure", "-O", "qcow2", "-l", "1", "raw-sparse"];
    assert_eq!(bench.run(&raw).difference(), None);
}

#[test]
fn sizes_are_read_alike() {
    let Some(bench) = Bench::new() else { return };
    let sizes = [
        "1.5k",
        "1.5",
        "0.5k",
        "1e2k",
        ".5k",
        "5.k",
        "1 k",
        "1kB",
        "1K",
        "7P",
        "7E",
        "0x",
        "0xfg",
        "010",
        "08",
        "99999999999999999999",
        "18446744073709551615",
        "9223372036854775808",
        "1.9999999999k",
        "0.1k",
        "inf",
        "nan",
        "1.5e",
        "1.5e3k",
        "0x1p3",
        "0x1.8k",
        "-0",
        "-0k",
        "--1",
        "",
        " ",
        "+",
        "-",
        "1b",
        "1.5b",
        "1.0b",
        "1B",
        "0.9999b",
        "1.00000000000000000001k",
        "15.9E",
        "7.9999999999999999999E",
        "1k ",
        "0x10b",
        "0xkk",
        "00x10",
        "1..5k",
        "1.k",
        "+ 1",
        "-k",
        ".k",
        "1,5k",
        "2.5M",
        "0.000001k",
        "99999999999999999999k",
        "0.3E",
        "1.7E",
        "0.7T",
        "123456789.987654321M",
        "0x7fffffffffff",
        "-1k",
        "1.\u{e9}",
        "\t12",
        "12\n",
    ];
    let ask = |size: &&str| bench.run(&["measure", "--output=json", "--size", size]).difference();
    expect_none(sizes.iter().filter_map(ask).collect());
}
