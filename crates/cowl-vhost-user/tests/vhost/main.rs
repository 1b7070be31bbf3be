//! The vhost-user server, seen by a front-end of our own and by a virtual machine.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on has failed, and a skip is printed"
)]

mod disk;
mod dying;
mod front_end;
mod guest;
mod serving;

mod booting;
mod configuration;
mod hostile;
mod recovery;
mod requests;
mod rings;
