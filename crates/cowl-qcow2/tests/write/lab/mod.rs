//! A laboratory for the write engine: storage that can be cut off at any moment, the states that it
//! may be found in, and what a guest is allowed to read there.

mod crash;
mod guest;
mod storage;
mod tools;

pub(crate) use crash::{Limits, judge_crashes, judge_now};
pub(crate) use guest::{Guest, Setup, Step, content_of, open, request_of};
pub(crate) use storage::Event;
pub(crate) use tools::{Scratch, has_qemu};
