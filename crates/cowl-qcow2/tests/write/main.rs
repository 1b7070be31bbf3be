//! The write engine against a plain model: every operation on images of every geometry.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test fails by panic")]

mod barriers;
mod chains;
mod concurrent;
mod crashes;
mod differential;
mod dropped;
mod faults;
mod futures;
mod huge;
mod lab;
mod resize;
mod reuse;
mod rows;
mod snapshots;
mod subject;
