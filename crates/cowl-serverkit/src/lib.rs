//! What the servers have in common, whatever protocol they speak.
#![forbid(unsafe_code)]

mod socket;
mod stop;
mod turn;

pub use socket::bind_unix;
pub use stop::Stop;
pub use turn::{is_done_at_once, yield_now};
