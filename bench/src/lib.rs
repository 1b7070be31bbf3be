//! Microbenchmarks of the engine: bodies that the benches time and whose instructions are counted.
//!
//! A [`Body`] is one kind of request on one kind of image. All of them go through the public API
//! and a `MemoryStorage`, with futures on the calling thread: no kernel, no other thread and no
//! runtime is measured. The storage's own work is, and `floor/*` says how much of it there is.
//!
//! Not measured: depth, threads, and whatever a host does; that is what `bench-compare/` is for.
#![forbid(unsafe_code)]

mod body;
mod disk;

pub mod cache;
pub mod floor;
pub mod flush;
pub mod image;
pub mod lookup;
pub mod write;

pub use body::{Body, Subject, measured_operation};

/// Every group of bodies, in the order of the tables.
pub const GROUPS: &[&[Body]] =
    &[floor::BODIES, lookup::BODIES, cache::BODIES, write::BODIES, flush::BODIES, image::BODIES];

/// The body of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Body> {
    GROUPS.iter().copied().flatten().find(|body| body.name == name)
}

#[cfg(test)]
mod tests {
    use super::{GROUPS, measured_operation};

    #[test]
    fn every_body_does_its_work() {
        for body in GROUPS.iter().copied().flatten() {
            let subject = (body.set_up)();
            let operations = body.operations.min(20);
            for number in 0..operations {
                subject.prepare(number);
                measured_operation(subject.as_ref(), number);
            }
            subject.check(operations);
        }
    }
}
