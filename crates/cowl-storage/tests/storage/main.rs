//! The drivers and layers of `cowl-storage`, seen from outside.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
mod locking;
mod qemu;
mod steps;

mod around;
mod block_device;
mod file;
mod layers;
mod lock;
mod many;
mod memory;
mod uring;
