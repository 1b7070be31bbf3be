//! The NBD server, seen by real clients and by a client that misbehaves.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on has failed, and a skip is printed"
)]

mod bare_client;
mod qemu_nbd;
mod serving;

mod abuse;
mod client;
mod copying;
mod inherited;
mod protocol;
mod status;
mod stopping;
mod stress;
mod tls;
