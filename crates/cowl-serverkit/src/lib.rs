//! What the servers have in common, whatever protocol they speak.
#![forbid(unsafe_code)]

mod pool;
mod socket;
mod stop;
mod turn;

pub use pool::Pool;
pub use socket::bind_unix;
pub use stop::Stop;
pub use turn::is_done_at_once;
