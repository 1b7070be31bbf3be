//! `serve` and `qemu-nbd` with real clients: what they do, how they end, what they refuse.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod activation;
mod all_ways;
mod clients;
mod control;
mod daemon;
mod ending;
mod log;
mod qemu_nbd;
mod rules;
mod sharing;
mod surprises;
mod tls;
