//! What is measured: a named operation, repeated on one subject.

use std::fmt;

/// One kind of operation.
pub struct Body {
    /// Group and operation: `write/in-place`.
    pub name: &'static str,
    /// What one operation is.
    pub unit: &'static str,
    /// Operations that a subject is good for. Instructions are counted over these and half of them.
    pub operations: u64,
    /// Makes what the operations work on.
    pub set_up: fn() -> Box<dyn Subject>,
}

/// Something that operations numbered from 0 on are done to, each once.
pub trait Subject {
    /// What comes before an operation and does not count.
    fn prepare(&self, _number: u64) {}

    /// The operation.
    fn operate(&self, number: u64);

    /// Panics unless that many operations did what they are for.
    fn check(&self, operations: u64);
}

impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name.rsplit('/').next().unwrap_or(self.name))
    }
}

/// The one function within which instructions are counted: callgrind is told its name.
#[inline(never)]
pub fn measured_operation(subject: &dyn Subject, number: u64) {
    subject.operate(number);
}
