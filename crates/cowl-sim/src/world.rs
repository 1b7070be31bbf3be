//! The simulated host: files, the I/Os in flight on them, and what of all this is durable.
//!
//! An I/O is issued, lands in parts in any order, and completes; parts that have landed are what
//! later reads see. A barrier makes durable, when it returns, what had completed when it was
//! issued. The rest is at the mercy of the next power cut: see `cut.rs`.
//!
//! Assumed: a sector is never torn, an I/O never lands at another place, and a barrier that
//! returned keeps its promise.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use cowl_storage::{IoBuffer, Operation, Purpose};

use crate::effect::Effect;
use crate::fault::{Fault, FaultKind, FaultPlan};
use crate::random::{Random, mix};

/// A piece of work that the engine handed to the embedder.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// A file and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimFile {
    /// Its name, for messages.
    pub name: String,
    /// Its content.
    pub bytes: Vec<u8>,
    /// Whether it refuses changes.
    pub read_only: bool,
}

/// How the host behaves.
#[derive(Clone, Debug)]
pub struct WorldOptions {
    /// Decides every order and every coin.
    pub seed: u64,
    /// Everything completes at once and is durable: for preparing and for looking.
    pub calm: bool,
    /// How often `try_read` and `try_write` answer, in percent; 0 is a driver that never does.
    pub inline_percent: u64,
    /// How often a step lets one part of a change land, instead of ending it, in percent.
    pub partial_percent: u64,
    /// The alignment that the host tells. As the file driver does, it takes any request, but serves
    /// only aligned ones inline.
    pub io_alignment: u32,
    /// The block size that the host tells.
    pub block_size: u32,
    /// Whether discards zero.
    pub can_discard: bool,
    /// Whether holes are told from data.
    pub knows_holes: bool,
    /// Whether lengths that completed writes gave a file survive every power cut.
    pub keep_lengths: bool,
    /// What fails.
    pub faults: Vec<Fault>,
    /// Whether the log keeps its lines, and not only their digest.
    pub keep_log: bool,
}

impl WorldOptions {
    /// A host without chance and without faults.
    #[must_use]
    pub fn calm() -> Self {
        Self {
            seed: 0,
            calm: true,
            inline_percent: 100,
            partial_percent: 0,
            io_alignment: 1,
            block_size: 4096,
            can_discard: true,
            knows_holes: true,
            keep_lengths: false,
            faults: Vec::new(),
            keep_log: false,
        }
    }
}

/// A simulated host. Clones are the same host.
#[derive(Clone)]
pub struct SimWorld {
    shared: Arc<Mutex<Host>>,
    options: Arc<WorldOptions>,
}

pub(crate) struct Host {
    pub(crate) files: Vec<FileState>,
    calm: bool,
    partial_percent: u64,
    ios: BTreeMap<u64, Io>,
    /// Those of `ios` that have not ended.
    running: Vec<u64>,
    jobs: Vec<Job>,
    next: u64,
    pub(crate) random: Random,
    faults: FaultPlan,
    log: Vec<String>,
    keep_log: bool,
    digest: u64,
    misuse: Vec<String>,
}

pub(crate) struct FileState {
    pub(crate) name: String,
    pub(crate) read_only: bool,
    /// What reads see.
    pub(crate) content: Vec<u8>,
    /// What survives any power cut.
    pub(crate) durable: Vec<u8>,
    /// What landed since, oldest first.
    pub(crate) landed: Vec<Landed>,
    pub(crate) changes: BTreeMap<u64, Change>,
    barrier_failed: Option<i32>,
}

pub(crate) struct Landed {
    pub(crate) change: u64,
    pub(crate) effect: Effect,
}

#[derive(Clone, Copy)]
pub(crate) struct Change {
    pub(crate) purpose: Purpose,
    completed: bool,
    pub(crate) durable: bool,
}

/// What an I/O shall do.
pub(crate) struct Request {
    pub(crate) file: usize,
    pub(crate) operation: Operation,
    pub(crate) purpose: Option<Purpose>,
    pub(crate) at: u64,
    pub(crate) length: u64,
    /// Of reads and writes.
    pub(crate) buffers: Vec<IoBuffer>,
    /// Of changes.
    pub(crate) effects: Vec<Effect>,
}

/// How it ended: a count or an errno.
pub(crate) struct Outcome {
    pub(crate) result: Result<u64, i32>,
    pub(crate) buffers: Vec<IoBuffer>,
}

struct Io {
    request: Request,
    fault: Option<Fault>,
    /// The changes that a barrier makes durable.
    covers: Vec<u64>,
    done: Option<Result<u64, i32>>,
    waker: Option<Waker>,
    /// Its future was dropped.
    orphan: bool,
}

impl SimWorld {
    /// A host with these files, whose content is durable.
    #[must_use]
    pub fn new(options: WorldOptions, files: Vec<SimFile>) -> Self {
        let files = files.into_iter().map(|file| FileState::new(file, options.calm)).collect();
        let host = Host {
            files,
            calm: options.calm,
            partial_percent: options.partial_percent,
            ios: BTreeMap::new(),
            running: Vec::new(),
            jobs: Vec::new(),
            next: 0,
            random: Random::of(options.seed, "host"),
            faults: FaultPlan::new(&options.faults),
            log: Vec::new(),
            keep_log: options.keep_log,
            digest: 0,
            misuse: Vec::new(),
        };
        Self { shared: Arc::new(Mutex::new(host)), options: Arc::new(options) }
    }

    pub(crate) fn host(&self) -> MutexGuard<'_, Host> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn options(&self) -> &WorldOptions {
        &self.options
    }

    /// Whether an I/O or a job is under way.
    #[must_use]
    pub fn can_step(&self) -> bool {
        let host = self.host();
        !host.running.is_empty() || !host.jobs.is_empty()
    }

    /// Ends one I/O or job, or lets a part of a change land.
    pub fn step(&self) {
        // The job wakes a task and may submit more: not under the lock.
        let job = self.host().step();
        if let Some(job) = job {
            job();
        }
    }

    /// Whether I/O of a dropped future is still under way.
    #[must_use]
    pub fn has_orphans(&self) -> bool {
        self.host().ios.values().any(|io| io.orphan)
    }

    /// How many I/Os were issued.
    #[must_use]
    pub fn io_count(&self) -> u64 {
        self.host().next
    }

    /// How many of them were made to fail.
    #[must_use]
    pub fn faults_injected(&self) -> u64 {
        self.host().faults.injected
    }

    /// Whether nothing failed but changes for which there was no space, and which did nothing.
    pub(crate) fn was_only_full(&self) -> bool {
        let host = self.host();
        host.faults.injected == host.faults.out_of_space
    }

    /// A number that two runs share only when their logs are the same.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.host().digest
    }

    /// The lines of the log, where they are kept.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.host().log.clone()
    }

    /// Rules of `Storage` that its user broke.
    #[must_use]
    pub fn misuse(&self) -> Vec<String> {
        self.host().misuse.clone()
    }

    /// The files as reads see them.
    #[must_use]
    pub fn files(&self) -> Vec<SimFile> {
        let host = self.host();
        let copy = |file: &FileState| SimFile {
            name: file.name.clone(),
            bytes: file.content.clone(),
            read_only: file.read_only,
        };
        host.files.iter().map(copy).collect()
    }

    /// Adds a line to the log.
    pub fn note(&self, line: &str) {
        self.host().note(line);
    }

    pub(crate) fn submit_job(&self, job: Job) {
        if self.options.calm {
            job();
        } else {
            self.host().jobs.push(job);
        }
    }
}

impl FileState {
    fn new(file: SimFile, calm: bool) -> Self {
        Self {
            name: file.name,
            read_only: file.read_only,
            durable: if calm { Vec::new() } else { file.bytes.clone() },
            content: file.bytes,
            landed: Vec::new(),
            changes: BTreeMap::new(),
            barrier_failed: None,
        }
    }

    /// Moves what is durable, and older than all that is not, to where nothing takes it away.
    fn fold(&mut self) {
        let is_durable = |landed: &Landed| self.changes[&landed.change].durable;
        let count = self.landed.iter().take_while(|landed| is_durable(landed)).count();
        for landed in self.landed.drain(..count) {
            landed.effect.apply(&mut self.durable);
        }
    }

    fn read(&self, at: u64, buffer: &mut [u8]) -> u64 {
        let start = usize::try_from(at).unwrap_or(usize::MAX).min(self.content.len());
        let count = buffer.len().min(self.content.len() - start);
        buffer[..count].copy_from_slice(&self.content[start..start + count]);
        buffer[count..].fill(0);
        count as u64
    }
}

const EBADF: i32 = 9;

impl Host {
    fn note(&mut self, line: &str) {
        self.digest = line.bytes().fold(self.digest, |digest, byte| mix(digest ^ u64::from(byte)));
        if self.keep_log {
            self.log.push(line.to_owned());
        }
    }

    /// Takes on an I/O; its number.
    pub(crate) fn submit(&mut self, mut request: Request) -> u64 {
        let number = self.next;
        self.next += 1;
        let Request { file, operation, purpose, at, length, .. } = request;
        if !self.calm {
            let purpose = purpose.map_or("-", Purpose::name);
            let name = &self.files[file].name;
            let line =
                format!("{number} {name} {} {purpose} {at:#x}+{length:#x}", operation.name());
            self.note(&line);
        }
        let mut fault = self.faults.decide(operation, purpose);
        if let Some(errno) = self.refusal(&request) {
            let kind = FaultKind::Nothing;
            fault = Some(Fault { operation: None, purpose: None, nth: 0, kind, errno });
        }
        let is_change = !request.effects.is_empty();
        match fault.map(|fault| fault.kind) {
            Some(FaultKind::Nothing) => request.effects.clear(),
            Some(FaultKind::Part) => {
                let random = &mut self.random;
                request.effects.retain(|_| random.chance(50));
            }
            Some(FaultKind::All) | None => {}
        }
        let state = &mut self.files[file];
        if is_change && let Some(purpose) = purpose {
            state.changes.insert(number, Change { purpose, completed: false, durable: false });
        }
        let covers = match operation {
            Operation::Barrier => state.completed_not_durable(),
            _ => Vec::new(),
        };
        let io = Io { request, fault, covers, done: None, waker: None, orphan: false };
        self.ios.insert(number, io);
        self.running.push(number);
        if self.calm {
            self.complete(number);
        }
        number
    }

    /// The errno for a request that no driver takes; noted as misuse.
    fn refusal(&mut self, request: &Request) -> Option<i32> {
        let file = &self.files[request.file];
        let name = request.operation.name();
        if file.read_only && !request.effects.is_empty() {
            self.misuse.push(format!("{name} on {}, which is read-only", file.name));
            return Some(EBADF);
        }
        None
    }

    fn step(&mut self) -> Option<Job> {
        let choices = self.running.len() + self.jobs.len();
        if choices == 0 {
            return None;
        }
        let choice = self.random.index(choices);
        let Some(number) = self.running.get(choice).copied() else {
            let job = self.jobs.swap_remove(choice - self.running.len());
            self.note("job");
            return Some(job);
        };
        let parts = self.ios[&number].request.effects.len();
        if 1 < parts && self.random.chance(self.partial_percent) {
            let part = self.random.index(parts);
            self.note(&format!("{number} part {part}"));
            let io = self.ios.get_mut(&number).expect("it is running");
            let effect = io.request.effects.swap_remove(part);
            self.files[io.request.file].land(number, effect);
        } else {
            self.complete(number);
        }
        None
    }

    /// Ends an I/O.
    fn complete(&mut self, number: u64) {
        let mut io = self.ios.remove(&number).expect("it is running");
        self.running.retain(|running| *running != number);
        if !self.calm {
            self.note(&format!("{number} ends"));
        }
        let file = &mut self.files[io.request.file];
        for effect in std::mem::take(&mut io.request.effects) {
            match self.calm {
                true => effect.apply(&mut file.content),
                false => file.land(number, effect),
            }
        }
        if let Some(change) = file.changes.get_mut(&number) {
            change.completed = true;
        }
        io.done = Some(file.finish(&mut io));
        if io.orphan {
            return;
        }
        if let Some(waker) = io.waker.take() {
            waker.wake();
        }
        self.ios.insert(number, io);
    }

    /// The outcome, once it has ended; until then `waker` is woken when it does.
    pub(crate) fn collect(&mut self, number: u64, waker: &Waker) -> Option<Outcome> {
        let io = self.ios.get_mut(&number).expect("collected once");
        let Some(result) = io.done else {
            io.waker = Some(waker.clone());
            return None;
        };
        let io = self.ios.remove(&number).expect("it was there");
        Some(Outcome { result, buffers: io.request.buffers })
    }

    /// Ends `number` now, whatever else is under way.
    pub(crate) fn complete_inline(&mut self, number: u64) -> Outcome {
        if self.ios[&number].done.is_none() {
            self.complete(number);
        }
        let io = self.ios.remove(&number).expect("it was there");
        let result = io.done.expect("it was completed");
        Outcome { result, buffers: io.request.buffers }
    }

    /// The future of `number` was dropped; the I/O goes on.
    pub(crate) fn abandon(&mut self, number: u64) {
        let Some(io) = self.ios.get_mut(&number) else { return };
        if io.done.is_some() {
            self.ios.remove(&number);
            return;
        }
        io.orphan = true;
        io.waker = None;
        self.note(&format!("{number} dropped"));
    }

    /// The numbers of I/O whose futures were dropped.
    pub(crate) fn orphans(&self) -> Vec<u64> {
        self.ios.iter().filter(|(_, io)| io.orphan).map(|(number, _)| *number).collect()
    }

    /// Parts of changes that are issued and have not landed: file, change, part.
    pub(crate) fn in_flight(&self) -> impl Iterator<Item = (usize, u64, &Effect)> {
        self.ios.iter().flat_map(|(number, io)| {
            io.request.effects.iter().map(|effect| (io.request.file, *number, effect))
        })
    }
}

impl FileState {
    fn land(&mut self, change: u64, effect: Effect) {
        effect.apply(&mut self.content);
        self.landed.push(Landed { change, effect });
    }

    fn completed_not_durable(&self) -> Vec<u64> {
        let wanted = |change: &Change| change.completed && !change.durable;
        let numbers = self.changes.iter().filter(|(_, change)| wanted(change));
        numbers.map(|(number, _)| *number).collect()
    }

    /// What an I/O other than a change does when it ends, and the result of any.
    fn finish(&mut self, io: &mut Io) -> Result<u64, i32> {
        let failed = io.fault.map(|fault| fault.errno);
        match io.request.operation {
            Operation::Barrier => {
                self.barrier_failed = self.barrier_failed.or(failed);
                if let Some(errno) = self.barrier_failed {
                    return Err(errno);
                }
                for number in &io.covers {
                    self.changes.get_mut(number).expect("it was completed").durable = true;
                }
                self.fold();
                Ok(0)
            }
            Operation::Read if failed.is_none() => {
                let mut at = io.request.at;
                let mut count = 0;
                for buffer in &mut io.request.buffers {
                    count += self.read(at, buffer);
                    at += buffer.len() as u64;
                }
                Ok(count)
            }
            _ => failed.map_or(Ok(0), Err),
        }
    }
}
