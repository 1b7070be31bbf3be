//! The bodies, timed: every figure is for one operation, as the body's unit says.
//!
//! Each sample gets operations that were never done before, on a fresh subject where the old one
//! has no more room. Set-up, checks and dropping do not count.

use std::rc::Rc;

use cowl_bench::{
    Body, Subject, cache, floor, flush as flushes, image as images, lookup as lookups,
    measured_operation, write as writes,
};
use divan::Bencher;

fn main() {
    divan::main();
}

#[divan::bench(args = floor::BODIES)]
fn a_floor(bencher: Bencher, body: &Body) {
    time(bencher, body);
}

#[divan::bench(args = lookups::BODIES)]
fn lookup(bencher: Bencher, body: &Body) {
    time(bencher, body);
}

#[divan::bench(args = cache::BODIES)]
fn metadata_cache(bencher: Bencher, body: &Body) {
    time(bencher, body);
}

#[divan::bench(args = writes::BODIES)]
fn write(bencher: Bencher, body: &Body) {
    time(bencher, body);
}

// What a flush has to write is prepared before each of them, not before each sample.
#[divan::bench(args = flushes::BODIES, sample_size = 1)]
fn flush(bencher: Bencher, body: &Body) {
    time(bencher, body);
}

#[divan::bench(args = images::BODIES)]
fn image(bencher: Bencher, body: &Body) {
    time(bencher, body);
}

fn time(bencher: Bencher, body: &Body) {
    let mut turns = Turns { body, current: None, retired: Vec::new() };
    bencher.with_inputs(|| turns.next()).bench_local_refs(Turn::take);
    turns.check();
}

/// One operation to do.
struct Turn {
    subject: Rc<dyn Subject>,
    number: u64,
}

impl Turn {
    fn take(&mut self) {
        measured_operation(self.subject.as_ref(), self.number);
    }
}

/// Hands out operations of one body after another.
struct Turns<'a> {
    body: &'a Body,
    /// The subject, and how many operations were handed out on it.
    current: Option<(Rc<dyn Subject>, u64)>,
    /// Those without room, some of whose operations may not be done yet.
    retired: Vec<(Rc<dyn Subject>, u64)>,
}

impl Turns<'_> {
    fn next(&mut self) -> Turn {
        let full = |(_, done): &mut (Rc<dyn Subject>, u64)| *done == self.body.operations;
        if let Some(full) = self.current.take_if(full) {
            self.check_retired();
            self.retired.push(full);
        }
        let new = || (Rc::from((self.body.set_up)()), 0);
        let (subject, done) = self.current.get_or_insert_with(new);
        let turn = Turn { subject: Rc::clone(subject), number: *done };
        *done += 1;
        turn.subject.prepare(turn.number);
        turn
    }

    /// Checks the subjects whose every operation is done, and drops them.
    fn check_retired(&mut self) {
        self.retired.retain(|(subject, done)| {
            let is_done = Rc::strong_count(subject) == 1;
            if is_done {
                subject.check(*done);
            }
            !is_done
        });
    }

    fn check(mut self) {
        self.retired.extend(self.current.take());
        self.check_retired();
        assert!(self.retired.is_empty(), "every operation was done");
    }
}
