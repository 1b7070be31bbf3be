//! The NBD protocol as values and bytes: no socket, no clock, no device.
//!
//! ```text
//!   bytes ──► Handshake ──► Session ──► Request::decode ──► judge ──► Command
//!   bytes ◄── Handshake                 reply.rs ◄── outcome of the command
//! ```
//!
//! Invariant: any bytes give values, answers or a typed end of the connection, never a panic, and
//! nothing is allocated that `limits.rs` does not bound.

pub mod answer;
pub mod asking;
pub mod command;
pub mod errno;
pub mod handshake;
pub mod limits;
pub mod metadata;
pub mod options;
pub mod reply;
pub mod request;
pub mod status;
pub mod wire;
