//! The oracle: which bytes a disk may show, while it runs and after a crash.
//!
//! The disk is cut into atoms: runs of bytes within one sector that were always written together.
//! An atom knows every request that may have given it a value. For each request the model knows
//! when it was issued, when it ended and how, and whether a flush covered it:
//!
//!   - After a crash a value is legal unless a durable request was issued after its own had ended.
//!   - A read may see a value unless a request was issued after its own had ended, and had itself
//!     succeeded before the read was issued.
//!
//! A request that failed or was dropped may have happened or not, so it takes no value away; it
//! ends when the host has ended all its I/O. A discard leaves the old value or zeros.
//!
//! Not here: that bytes of one sector which were written by different requests change together.

use std::collections::BTreeMap;

use crate::effect::SECTOR;
use crate::stamp::{self, Texture};

/// A request in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(usize);

/// A flush in the model: when it was issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushId(u64);

/// A read in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadId {
    issued: u64,
}

/// What a request gives the bytes it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// The content that the disk was made with.
    Initial,
    /// Zeros.
    Zero,
    /// Zeros, or what was there.
    Discarded,
    /// Stamps.
    Stamp {
        /// The number in the stamps.
        write: u64,
        /// How they look.
        texture: Texture,
    },
}

#[derive(Clone, Debug)]
struct Request {
    value: Value,
    issued: u64,
    /// `None` while it runs, and while its dropped I/O does.
    ended: Option<u64>,
    succeeded: bool,
    failed: bool,
    durable: bool,
}

#[derive(Clone, Debug)]
struct Atom {
    /// Where in its sector it starts; it reaches to the next one.
    start: u64,
    requests: Vec<RequestId>,
}

/// Bytes that must not be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Illegal {
    /// Where on the disk.
    pub at: u64,
    /// How many bytes.
    pub length: u64,
    /// What is there, and what may be.
    pub text: String,
}

/// The oracle of one disk.
#[derive(Clone, Debug)]
pub struct Model {
    clock: u64,
    /// Changes whenever what is legal after a crash does.
    epoch: u64,
    initial: Vec<u8>,
    requests: Vec<Request>,
    sectors: Vec<Vec<Atom>>,
    /// Sizes that the disk may have after a crash; the last one is its size now.
    sizes: Vec<u64>,
    /// Sizes that failed requests may have given it.
    uncertain_sizes: Vec<u64>,
    /// Whether a size between those is legal, too: the disk is as long as its file is.
    sizes_between: bool,
    /// Whether a change of size is under way.
    resizing: bool,
    reads: BTreeMap<u64, u32>,
}

const INITIAL: RequestId = RequestId(0);

impl Model {
    /// A disk whose content is durable.
    #[must_use]
    pub fn new(initial: Vec<u8>) -> Self {
        let size = initial.len() as u64;
        let made = Request {
            value: Value::Initial,
            issued: 0,
            ended: Some(0),
            succeeded: true,
            failed: false,
            durable: true,
        };
        let mut model = Self {
            clock: 1,
            epoch: 0,
            initial,
            requests: vec![made],
            sectors: Vec::new(),
            sizes: vec![size],
            uncertain_sizes: Vec::new(),
            sizes_between: false,
            resizing: false,
            reads: BTreeMap::new(),
        };
        model.grow_to(size, INITIAL);
        model
    }

    /// The same for a disk that is as long as its file: after a change of size a crash may leave
    /// anything between.
    #[must_use]
    pub fn with_sizes_between(self) -> Self {
        Self { sizes_between: true, ..self }
    }

    /// A number that changes whenever what is legal after a crash does.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    fn is_size(&self, size: u64) -> bool {
        let sizes = || self.sizes.iter().chain(&self.uncertain_sizes);
        let smallest = sizes().min().is_some_and(|least| *least <= size);
        let largest = sizes().max().is_some_and(|most| size <= *most);
        sizes().any(|legal| *legal == size) || (self.sizes_between && smallest && largest)
    }

    /// Size of the disk now.
    #[must_use]
    pub fn size(&self) -> u64 {
        *self.sizes.last().expect("a disk has a size")
    }

    fn grow_to(&mut self, size: u64, request: RequestId) {
        let count = usize::try_from(size.div_ceil(SECTOR)).expect("simulated disks are small");
        while self.sectors.len() < count {
            self.sectors.push(vec![Atom { start: 0, requests: vec![request] }]);
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A request that gives `at..at + length` a value is issued.
    pub fn issue(&mut self, value: Value, at: u64, length: u64) -> RequestId {
        let issued = self.tick();
        self.epoch += 1;
        let id = RequestId(self.requests.len());
        self.requests.push(Request {
            value,
            issued,
            ended: None,
            succeeded: false,
            failed: false,
            durable: false,
        });
        self.cover(id, at, length);
        id
    }

    /// Makes a request cover some more bytes: a discard of several runs of whole clusters.
    pub fn cover(&mut self, id: RequestId, at: u64, length: u64) {
        let end = at + length;
        let mut next = at;
        while next < end {
            let sector = next / SECTOR;
            let stop = end.min((sector + 1) * SECTOR);
            let atoms = &mut self.sectors[usize::try_from(sector).expect("within the disk")];
            split(atoms, next - sector * SECTOR);
            split(atoms, stop - sector * SECTOR);
            let inside = next - sector * SECTOR..stop - sector * SECTOR;
            for atom in atoms.iter_mut().filter(|atom| inside.contains(&atom.start)) {
                atom.requests.push(id);
            }
            next = stop;
        }
    }

    /// A request succeeded.
    pub fn succeed(&mut self, id: RequestId) {
        let now = self.tick();
        let request = &mut self.requests[id.0];
        request.ended = Some(now);
        request.succeeded = true;
    }

    /// A request succeeded and is durable by itself.
    pub fn succeed_durably(&mut self, id: RequestId) {
        self.succeed(id);
        self.requests[id.0].durable = true;
        self.epoch += 1;
    }

    /// A request failed, or was dropped: it may or may not have happened, or happen yet.
    pub fn fail(&mut self, id: RequestId) {
        self.requests[id.0].failed = true;
    }

    /// No I/O of failed or dropped requests is under way: what they did they have done.
    pub fn settle(&mut self) {
        let now = self.tick();
        for request in self.requests.iter_mut().filter(|request| request.failed) {
            request.ended.get_or_insert(now);
        }
    }

    /// A flush is issued.
    pub fn issue_flush(&mut self) -> FlushId {
        FlushId(self.tick())
    }

    /// A flush succeeded: what had succeeded when it was issued is durable.
    pub fn succeed_flush(&mut self, flush: FlushId) {
        self.tick();
        self.epoch += 1;
        for request in self.requests.iter_mut().filter(|request| request.succeeded) {
            request.durable |= request.ended.is_some_and(|ended| ended < flush.0);
        }
        if !self.resizing {
            self.sizes.drain(..self.sizes.len() - 1);
        }
        self.forget();
    }

    /// A read is issued.
    pub fn issue_read(&mut self) -> ReadId {
        let issued = self.tick();
        *self.reads.entry(issued).or_default() += 1;
        ReadId { issued }
    }

    /// A read ended; with its bytes, or without when it failed or was dropped.
    pub fn end_read(&mut self, read: ReadId, at: u64, bytes: Option<&[u8]>) -> Result<(), Illegal> {
        self.tick();
        self.reads.remove(&read.issued);
        let Some(bytes) = bytes else { return Ok(()) };
        self.check(at, bytes, &|own, other| {
            other.succeeded && ended_before(other, read.issued) && {
                ended_before(own, other.issued)
            }
        })
    }

    /// The size changes, one change at a time, while no request is sent to what only one of the
    /// sizes has: what is cut off reads as zeros if it comes back.
    pub fn issue_resize(&mut self, size: u64) -> RequestId {
        let old = self.size();
        self.resizing = true;
        self.sizes.push(size);
        // Where the disk never was, nothing but zeros can be.
        let known = self.sectors.len() as u64 * SECTOR;
        let id = self.issue(Value::Zero, size.min(known), old.saturating_sub(size.min(old)));
        self.grow_to(size, id);
        if old < size && old < known {
            self.cover(id, old, size.min(known) - old);
        }
        id
    }

    /// A change of size succeeded, and is durable unless the size is the file's.
    pub fn succeed_resize(&mut self, id: RequestId) {
        self.resizing = false;
        if self.sizes_between {
            self.succeed(id);
            // Earlier sizes may come back until a flush; what a failed request did is overwritten.
            self.sizes.splice(0..0, self.uncertain_sizes.drain(..));
        } else {
            self.succeed_durably(id);
            self.uncertain_sizes.clear();
            self.sizes.drain(..self.sizes.len() - 1);
        }
    }

    /// A change of size failed: the disk may have either size, until another change succeeds.
    pub fn fail_resize(&mut self, id: RequestId, size_now: u64) {
        self.fail(id);
        self.resizing = false;
        self.uncertain_sizes.extend(&self.sizes);
        self.sizes.push(size_now);
    }

    /// Whether these bytes may be the whole disk after a crash.
    pub fn check_crash(&self, bytes: &[u8]) -> Result<(), Illegal> {
        let size = bytes.len() as u64;
        if !self.is_size(size) {
            let text = format!("the disk has {size} bytes; legal are {:?}", self.sizes);
            return Err(Illegal { at: 0, length: size, text });
        }
        self.check(0, bytes, &|own, other| other.durable && ended_before(own, other.issued))
    }

    /// Holds bytes against the values of their atoms that no other request has `replaced`.
    fn check(
        &self,
        at: u64,
        bytes: &[u8],
        replaced: &dyn Fn(&Request, &Request) -> bool,
    ) -> Result<(), Illegal> {
        let end = at + bytes.len() as u64;
        let mut next = at;
        while next < end {
            let sector = next / SECTOR;
            let atoms = &self.sectors[usize::try_from(sector).expect("within the disk")];
            let offset = next - sector * SECTOR;
            let index = atoms.partition_point(|atom| atom.start <= offset) - 1;
            let stop = atoms.get(index + 1).map_or(SECTOR, |atom| atom.start);
            let stop = end.min(sector * SECTOR + stop);
            let part = &bytes[to_index(next - at)..to_index(stop - at)];
            self.check_atom(&atoms[index], next, part, replaced)?;
            next = stop;
        }
        Ok(())
    }

    fn check_atom(
        &self,
        atom: &Atom,
        at: u64,
        bytes: &[u8],
        replaced: &dyn Fn(&Request, &Request) -> bool,
    ) -> Result<(), Illegal> {
        let is_legal = |id: &RequestId| {
            let own = &self.requests[id.0];
            !atom
                .requests
                .iter()
                .map(|id| &self.requests[id.0])
                .any(|other| other.value != Value::Discarded && replaced(own, other))
        };
        let mut legal = atom.requests.iter().filter(|id| is_legal(id));
        if legal.any(|id| self.is_value(self.requests[id.0].value, at, bytes)) {
            return Ok(());
        }
        let legal: Vec<RequestId> = atom.requests.iter().copied().filter(is_legal).collect();
        let text = format!("{}; legal are {}", self.recognise(at, bytes), self.describe(&legal));
        Err(Illegal { at, length: bytes.len() as u64, text })
    }

    fn is_value(&self, value: Value, at: u64, bytes: &[u8]) -> bool {
        match value {
            Value::Zero | Value::Discarded => bytes.iter().all(|byte| *byte == 0),
            Value::Stamp { write, texture } => stamp::matches(write, texture, at, bytes),
            Value::Initial => {
                let start = to_index(at).min(self.initial.len());
                let end = (start + bytes.len()).min(self.initial.len());
                let (known, rest) = bytes.split_at(end - start);
                self.initial[start..end] == *known && rest.iter().all(|byte| *byte == 0)
            }
        }
    }

    /// Drops requests that can be legal no more, neither after a crash nor for a read under way.
    fn forget(&mut self) {
        let oldest_read = self.reads.keys().next().copied().unwrap_or(u64::MAX);
        let requests = &self.requests;
        for atom in self.sectors.iter_mut().flatten() {
            let last = atom.requests.iter().map(|id| &requests[id.0]).filter(|request| {
                request.durable
                    && request.value != Value::Discarded
                    && ended_before(request, oldest_read)
            });
            let Some(issued) = last.map(|request| request.issued).max() else { continue };
            atom.requests.retain(|id| !ended_before(&requests[id.0], issued));
        }
    }

    fn describe(&self, ids: &[RequestId]) -> String {
        let names = ids.iter().map(|id| match self.requests[id.0].value {
            Value::Initial => "the initial content".to_owned(),
            Value::Zero => format!("zeros (request {})", id.0),
            Value::Discarded => format!("zeros (discard, request {})", id.0),
            Value::Stamp { write, .. } => format!("write {write}"),
        });
        names.collect::<Vec<_>>().join(", ")
    }

    /// Says whose bytes these are, searching every write and every sector.
    fn recognise(&self, at: u64, bytes: &[u8]) -> String {
        if bytes.iter().all(|byte| *byte == 0) {
            return "found zeros".to_owned();
        }
        let mut others: Vec<u64> = (0..self.sectors.len() as u64).map(|n| n * SECTOR).collect();
        let own = at / SECTOR * SECTOR;
        others.sort_by_key(|sector| sector.abs_diff(own));
        for sector in others {
            let place = sector + (at - own);
            for request in self.requests.iter().rev() {
                let is_zero = matches!(request.value, Value::Zero | Value::Discarded);
                if !is_zero && self.is_value(request.value, place, bytes) {
                    let whose = format!("{:?}", request.value);
                    return match place == at {
                        true => format!("found {whose} of this address"),
                        false => format!("found {whose} of address {place:#x}"),
                    };
                }
            }
        }
        let head: Vec<String> = bytes.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        format!("found bytes of nobody: {}", head.join(" "))
    }
}

fn to_index(offset: u64) -> usize {
    usize::try_from(offset).expect("simulated disks are small")
}

fn ended_before(request: &Request, time: u64) -> bool {
    request.ended.is_some_and(|ended| ended < time)
}

/// Makes an atom start at `offset` of the sector.
fn split(atoms: &mut Vec<Atom>, offset: u64) {
    if offset == SECTOR {
        return;
    }
    match atoms.binary_search_by_key(&offset, |atom| atom.start) {
        Ok(_) => {}
        Err(behind) => {
            let requests = atoms[behind - 1].requests.clone();
            atoms.insert(behind, Atom { start: offset, requests });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Model, RequestId, Value};
    use crate::stamp::{self, Texture};

    fn write(model: &mut Model, number: u64, at: u64, length: u64) -> RequestId {
        model.issue(Value::Stamp { write: number, texture: Texture::Plain }, at, length)
    }

    fn bytes(number: u64, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        stamp::fill(number, Texture::Plain, at, &mut bytes);
        bytes
    }

    #[test]
    fn a_flushed_value_takes_all_older_ones_away() {
        let mut model = Model::new(vec![0; 1024]);
        let first = write(&mut model, 1, 0, 1024);
        model.succeed(first);
        assert!(model.check_crash(&[0; 1024]).is_ok());
        let flush = model.issue_flush();
        model.succeed_flush(flush);
        assert!(model.check_crash(&[0; 1024]).is_err());
        assert!(model.check_crash(&bytes(1, 0, 1024)).is_ok());
        let torn = [bytes(1, 0, 512), bytes(2, 512, 512)].concat();
        write(&mut model, 2, 0, 1024);
        assert!(model.check_crash(&torn).is_ok());
    }

    #[test]
    fn a_flush_covers_only_what_had_succeeded_when_it_was_issued() {
        let mut model = Model::new(vec![0; 512]);
        let late = write(&mut model, 1, 0, 512);
        let flush = model.issue_flush();
        model.succeed(late);
        model.succeed_flush(flush);
        assert!(model.check_crash(&[0; 512]).is_ok());
    }

    #[test]
    fn a_read_sees_what_succeeded_before_it_or_runs_beside_it() {
        let mut model = Model::new(vec![0; 512]);
        let first = write(&mut model, 1, 0, 512);
        let beside = model.issue_read();
        model.succeed(first);
        let behind = model.issue_read();
        assert!(model.end_read(beside, 0, Some(&[0; 512])).is_ok());
        assert!(model.end_read(behind, 0, Some(&[0; 512])).is_err());
    }

    #[test]
    fn a_failed_write_may_have_happened_until_the_next_one_is_durable() {
        let mut model = Model::new(vec![0; 512]);
        let failed = write(&mut model, 1, 0, 512);
        model.fail(failed);
        model.settle();
        let second = write(&mut model, 2, 0, 512);
        model.succeed_durably(second);
        assert!(model.check_crash(&bytes(2, 0, 512)).is_ok());
        assert!(model.check_crash(&bytes(1, 0, 512)).is_err());
    }

    #[test]
    fn a_part_of_a_sector_leaves_the_rest_alone() {
        let mut model = Model::new(vec![0; 512]);
        let part = write(&mut model, 1, 100, 50);
        model.succeed_durably(part);
        let mut disk = vec![0; 512];
        assert!(model.check_crash(&disk).is_err());
        disk[100..150].copy_from_slice(&bytes(1, 100, 50));
        assert!(model.check_crash(&disk).is_ok());
        disk[99] = 1;
        let illegal = model.check_crash(&disk).expect_err("nobody wrote there");
        assert_eq!((illegal.at, illegal.length), (0, 100));
    }

    #[test]
    fn bytes_of_another_address_are_recognised() {
        let mut model = Model::new(vec![0; 2048]);
        let all = write(&mut model, 1, 0, 2048);
        model.succeed(all);
        let mut disk = bytes(1, 0, 2048);
        disk.copy_within(1024..1536, 512);
        let illegal = model.check_crash(&disk).expect_err("a foreign sector");
        assert!(illegal.text.contains("of address 0x400"), "{}", illegal.text);
    }

    #[test]
    fn what_a_shrink_cuts_off_is_gone_when_it_is_flushed() {
        let mut model = Model::new(vec![7; 1024]);
        let cut = model.issue_resize(512);
        model.succeed(cut);
        assert!(model.check_crash(&[7; 512]).is_ok());
        assert!(model.check_crash(&[7; 1024]).is_ok());
        let grown = model.issue_resize(1024);
        model.succeed(grown);
        let flush = model.issue_flush();
        model.succeed_flush(flush);
        assert!(model.check_crash(&[7; 1024]).is_err());
        assert!(model.check_crash(&[&[7; 512][..], &[0; 512]].concat()).is_ok());
    }
}
