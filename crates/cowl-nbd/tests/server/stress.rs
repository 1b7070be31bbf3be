//! fio's nbd engine: several connections at once, every byte verified.

use crate::serving::{Serving, client};
use cowl_testkit::are_installed;

const MIB: u64 = 1 << 20;

fn fio(serving: &Serving, arguments: &[&str]) {
    let uri = format!("--uri={}", serving.uri(""));
    let mut all = vec!["--name=job", "--ioengine=nbd", "--thread", "--output-format=terse", &uri];
    all.extend(arguments);
    client(serving.path(), "fio", &all);
}

#[test]
fn four_connections_write_and_each_verifies_its_part() {
    if !are_installed(&["fio"]) {
        return;
    }
    let serving = Serving::new_image(256 * MIB);
    let verify = ["--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--iodepth=16"];
    let apart = ["--numjobs=4", "--size=24m", "--offset_increment=64m"];
    let mixed = ["--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=1"];
    fio(&serving, &[&verify[..], &apart, &mixed].concat());
    fio(&serving, &[&verify[..], &apart, &["--rw=randwrite", "--bs=4k", "--fsync=32"]].concat());
    serving.finish();
}

#[test]
fn trims_among_verified_writes_take_nothing_else() {
    if !are_installed(&["fio"]) {
        return;
    }
    let serving = Serving::new_image(128 * MIB);
    fio(&serving, &["--rw=trim", "--bs=1m", "--size=64m", "--iodepth=4"]);
    let verify = ["--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--iodepth=16"];
    fio(&serving, &[&verify[..], &["--rw=write", "--bs=64k", "--size=64m"]].concat());
    fio(&serving, &["--rw=randtrim", "--bs=64k", "--size=32m", "--offset=64m"]);
    serving.finish();
}
