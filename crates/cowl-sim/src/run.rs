//! Runs one history: a disk is made, used, cut off and looked at, all from one plan.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use cowl_block::BlockDevice;
use cowl_format::ByteCount;
use cowl_qcow2::Preallocation;
use cowl_storage::Access;

use crate::checkers::{self, Case, Depth};
use crate::cut::{AllStates, COMPLETE_PARTS_MAX, CrashState, Cut, EXHAUSTIVE_PARTS_MAX};
use crate::executor::{Executor, Step, run_calm};
use crate::fault::{self, Fault};
use crate::guest::Guest;
use crate::random::mix;
use crate::report::Moments;
use crate::subject::{Made, Subject};
use crate::workload::{Act, Request, Workload};
use crate::{Model, Plan, Random, Report, SimWorld, SubjectKind, Violation, WorldOptions};

/// How much is looked at in a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Crash states judged at most.
    pub crash_states_max: u64,
    /// In an exhaustive history: parts of a moment of which every subset is tried.
    pub parts_max: usize,
    /// Of these, how many are used further, in percent.
    pub deep_percent: u64,
    /// And how many are shown to qemu-img, in percent.
    pub oracle_percent: u64,
    /// Whether I/O is made to fail.
    pub faults: bool,
    /// Whether the log is kept.
    pub keep_log: bool,
}

impl Effort {
    /// For long runs.
    pub const STANDARD: Self = Self {
        crash_states_max: 150,
        parts_max: 0,
        deep_percent: 15,
        oracle_percent: 1,
        faults: true,
        keep_log: false,
    };

    /// For exhaustive runs.
    pub const EXHAUSTIVE: Self = Self {
        crash_states_max: 20_000,
        parts_max: EXHAUSTIVE_PARTS_MAX,
        deep_percent: 3,
        oracle_percent: 0,
        faults: true,
        keep_log: false,
    };

    /// For histories written by hand: everything, however long it takes.
    pub const COMPLETE: Self =
        Self { crash_states_max: u64::MAX, parts_max: COMPLETE_PARTS_MAX, ..Self::EXHAUSTIVE };

    /// The one that fits a plan.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        match plan.subject {
            SubjectKind::Scenario(_) if plan.exhaustive => Self::COMPLETE,
            _ if plan.exhaustive => Self::EXHAUSTIVE,
            _ => Self::STANDARD,
        }
    }
}

/// The faults of a history.
fn draw_faults(plan: &Plan) -> Vec<(u32, Fault)> {
    let mut random = Random::of(plan.seed, "faults");
    let count = random.pick(&[0, 0, 1, 3]);
    let faults = (0..count).map(|number| (number, fault::draw(&mut random)));
    faults.filter(|(number, _)| !plan.without_faults.contains(number)).collect()
}

/// How late requests are dropped: in most histories as soon as they wait.
fn draw_drop_late(plan: &Plan) -> u32 {
    let mut random = Random::of(plan.seed, "late waits");
    let is_drawn = !matches!(plan.subject, SubjectKind::Scenario(_));
    if is_drawn && random.chance(20) { random.pick(&[1, 3, 10]) } else { plan.late }
}

/// What a plan can leave out: the numbers of requests, and of faults.
#[must_use]
pub fn outline(plan: &Plan) -> (Vec<u32>, Vec<u32>) {
    let numbers = plan.subject.with(plan.seed, plan.extent(), Outline { plan });
    let faults = draw_faults(plan).into_iter().map(|(number, _)| number).collect();
    (numbers, faults)
}

struct Outline<'a> {
    plan: &'a Plan,
}

impl crate::SubjectVisitor for Outline<'_> {
    type Output = Vec<u32>;

    fn visit<S: Subject + 'static>(self, subject: S) -> Vec<u32> {
        let Ok(made) = subject.make() else { return Vec::new() };
        let workload = draw_workload(self.plan, &subject, &made);
        workload.numbers().into_iter().collect()
    }
}

fn draw_workload<S: Subject>(plan: &Plan, subject: &S, made: &Made) -> Workload {
    if let Some(script) = subject.script() {
        return script.without(&plan.without).with_drops(&plan.drops);
    }
    let mut traits = subject.traits();
    traits.resizes &= !plan.fixed_size;
    let size = made.content.len() as u64;
    Workload::draw(plan.seed, &traits, size, plan.extent())
        .without(&plan.without)
        .with_drops(&plan.drops)
}

/// Runs a plan. A panic of the engine is a violation like any other.
#[must_use]
pub fn run(plan: &Plan, effort: Effort) -> Report {
    let ran = catch_unwind(AssertUnwindSafe(|| {
        plan.subject.with(plan.seed, plan.extent(), Run { plan, effort })
    }));
    ran.unwrap_or_else(|panic| report_panic(plan, panic.as_ref()))
}

/// A history that ended with a panic of the engine.
pub(crate) fn report_panic(plan: &Plan, panic: &(dyn Any + Send)) -> Report {
    let text = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_default();
    let violations = vec![Violation { checker: "panic", text }];
    Report { violations, ..Report::new(plan) }
}

struct Run<'a> {
    plan: &'a Plan,
    effort: Effort,
}

impl crate::SubjectVisitor for Run<'_> {
    type Output = Report;

    fn visit<S: Subject + 'static>(self, subject: S) -> Report {
        run_subject(subject, self.plan, self.effort)
    }
}

/// Runs a plan on a subject, whatever the plan says of that.
pub(crate) fn run_subject<S: Subject + 'static>(subject: S, plan: &Plan, effort: Effort) -> Report {
    let mut report = Report::new(plan);
    match subject.make() {
        Ok(made) => History::new(subject, made, plan, effort).run(&mut report),
        Err(text) => report.violations.push(Violation { checker: "make", text }),
    }
    report
}

struct History<S: Subject + 'static> {
    guest: Rc<Guest<S>>,
    original: Vec<u8>,
    snapshots: Vec<Vec<u8>>,
    workload: Workload,
    effort: Effort,
    exhaustive: bool,
    schedule: u64,
    random: Random,
    crash_percent: u64,
    crash_states: u64,
    moments: Moments,
    act: u64,
    is_setup: bool,
    last_digest: u64,
    /// States that were judged since the model changed what is legal.
    judged: BTreeSet<u64>,
    judged_epoch: u64,
}

impl<S: Subject + 'static> History<S> {
    fn new(subject: S, made: Made, plan: &Plan, effort: Effort) -> Self {
        let schedule = mix(plan.seed) ^ plan.schedule;
        let mut random = Random::of(schedule, "run");
        let host = subject.host();
        let options = WorldOptions {
            seed: schedule,
            calm: false,
            inline_percent: random.pick(&[0, 50, 95]),
            partial_percent: random.pick(&[0, 30]),
            io_alignment: host.io_alignment,
            block_size: host.block_size,
            can_discard: host.can_discard,
            knows_holes: host.knows_holes,
            keep_lengths: plan.keep_lengths,
            faults: if effort.faults { draw_faults(plan) } else { Vec::new() }
                .into_iter()
                .map(|(_, fault)| fault)
                .collect(),
            keep_log: effort.keep_log,
        };
        let workload = draw_workload(plan, &subject, &made);
        let original = made.content.clone();
        let mut model = Model::new(made.content);
        if subject.traits().size_is_file_length {
            model = model.with_sizes_between();
        }
        let guest = Guest {
            subject,
            world: SimWorld::new(options, made.files),
            model: RefCell::new(model),
            violations: RefCell::default(),
            operations: Cell::new(0),
            unsettled: Cell::new(false),
            disturbed: Cell::new(false),
            drops: Cell::new(0),
            drop_late: draw_drop_late(plan),
            resizing: Cell::new(None),
            resized: Cell::new(false),
            leaks_max: Cell::new(0),
            flushed: Cell::new(false),
        };
        Self {
            guest: Rc::new(guest),
            original,
            snapshots: made.snapshots,
            workload,
            effort,
            exhaustive: plan.exhaustive,
            schedule,
            crash_percent: random.pick(&[1, 3, 10]),
            random,
            crash_states: 0,
            moments: Moments::default(),
            act: 0,
            is_setup: false,
            last_digest: 0,
            judged: BTreeSet::new(),
            judged_epoch: 0,
        }
    }

    fn run(mut self, report: &mut Report) {
        self.use_disk();
        let guest = &self.guest;
        for text in guest.world.misuse() {
            guest.report("misuse of Storage", text);
        }
        report.operations = guest.operations.get();
        report.ios = guest.world.io_count();
        report.faults = guest.world.faults_injected();
        report.digest = guest.world.digest();
        report.log = guest.world.log();
        report.crash_states = self.crash_states;
        report.moments = self.moments;
        report.dropped = guest.drops.get();
        report.violations.append(&mut guest.violations.borrow_mut());
    }

    /// The whole life of the disk; ends early at the first violation, or when the image is lost to
    /// a fault.
    fn use_disk(&mut self) -> Option<()> {
        let mut device = self.open()?;
        for act in std::mem::take(&mut self.workload.acts) {
            match act {
                Act::Setup(task) => {
                    self.is_setup = true;
                    self.run_tasks(&device, vec![task])?;
                    self.is_setup = false;
                }
                Act::Tasks(tasks) => self.run_tasks(&device, tasks)?,
                Act::Resize { number, size } => self.resize(&device, number, size)?,
                Act::Reopen { .. } => {
                    self.close(device)?;
                    device = self.open()?;
                }
            }
        }
        self.close(device)?;
        self.cut_here(true)
    }

    fn open(&mut self) -> Option<Rc<S::Device>> {
        let guest = self.guest.clone();
        let opened = self.drive("open", async move {
            guest.subject.open(&guest.world, Access::ReadWrite).await
        })?;
        let device = opened.map_err(|error| self.guest.failed(0, &error)).ok()?;
        // More is legal on a larger disk, also after it has shrunk.
        self.raise_leaks_max(&device);
        Some(Rc::new(device))
    }

    fn raise_leaks_max(&self, device: &S::Device) {
        let guest = &self.guest;
        guest.leaks_max.set(guest.leaks_max.get().max(guest.subject.leaks_max(device)));
    }

    fn close(&mut self, device: Rc<S::Device>) -> Option<()> {
        let device = Rc::try_unwrap(device).ok().expect("all tasks are gone");
        let flush = self.guest.model.borrow_mut().issue_flush();
        let size = device.size();
        let guest = self.guest.clone();
        let closed = self.drive("close", async move { guest.subject.close(device).await })?;
        closed.map_err(|error| self.guest.failed(0, &error)).ok()?;
        self.guest.model.borrow_mut().succeed_flush(flush);
        self.look_at_closed(size)
    }

    /// A cleanly closed image is whole, and without leaks unless something went wrong before.
    fn look_at_closed(&mut self, size: ByteCount) -> Option<()> {
        let guest = &self.guest;
        let world = SimWorld::new(WorldOptions::calm(), guest.world.files());
        let opened = run_calm(guest.subject.open(&world, Access::ReadOnly)).and_then(Result::ok);
        let is_known = !guest.subject.traits().size_is_file_length;
        let found = opened.map(|device| device.size()).filter(|found| is_known && *found != size);
        if let Some(found) = found {
            guest.report("size", format!("{size} before a clean close, {found} after it"));
            return None;
        }
        let leaks_max = if guest.disturbed.get() { guest.leaks_max.get() } else { 0 };
        let state =
            CrashState { files: guest.world.files(), description: "cleanly closed".to_owned() };
        self.judge(&state, leaks_max)
    }

    fn resize(&mut self, device: &Rc<S::Device>, number: u32, size: u64) -> Option<()> {
        let id = self.guest.model.borrow_mut().issue_resize(size);
        self.guest.world.note(&format!("request {number} resize {size}"));
        let (guest, target) = (self.guest.clone(), device.clone());
        let resized = self.drive("resize", async move {
            guest.subject.resize(&target, ByteCount::new(size), Preallocation::Off).await
        })?;
        match resized {
            Ok(()) => {
                self.guest.model.borrow_mut().succeed_resize(id);
                self.raise_leaks_max(device);
            }
            Err(error) => {
                self.guest.failed(number, &error);
                let now = device.size().get();
                self.guest.model.borrow_mut().fail_resize(id, now);
            }
        }
        self.cut_here(false)
    }

    fn run_tasks(&mut self, device: &Rc<S::Device>, tasks: Vec<Vec<Request>>) -> Option<()> {
        let mut executor = self.executor();
        for task in tasks {
            executor.spawn(Box::pin(self.guest.clone().run(device.clone(), task)));
        }
        self.step_all("requests", executor)
    }

    /// Runs one future to its end, with power cuts on the way.
    fn drive<T: 'static>(
        &mut self,
        what: &'static str,
        future: impl Future<Output = T> + 'static,
    ) -> Option<T> {
        let result = Rc::new(RefCell::new(None));
        let target = result.clone();
        let mut executor = self.executor();
        executor.spawn(Box::pin(async move {
            let value = future.await;
            *target.borrow_mut() = Some(value);
        }));
        self.step_all(what, executor)?;
        result.borrow_mut().take()
    }

    fn executor(&mut self) -> Executor {
        self.act += 1;
        let mut random = Random::of(self.schedule ^ mix(self.act), "executor");
        let host_percent = random.pick(&[10, 50, 90]);
        Executor::new(random, host_percent)
    }

    fn step_all(&mut self, what: &'static str, mut executor: Executor) -> Option<()> {
        /// Steps of one act: far more than any needs, so that a livelock ends.
        const STEPS_MAX: u32 = 1_000_000;
        for _ in 0..STEPS_MAX {
            match executor.step(&self.guest.world) {
                Step::Done => return Some(()),
                Step::Polled | Step::Host => {}
                Step::Stuck => {
                    self.guest.report("liveness", format!("{what}: nothing can go on"));
                    return None;
                }
            }
            self.guest.settle();
            self.maybe_cut()?;
            if self.guest.has_failed() {
                return None;
            }
        }
        self.guest.report("liveness", format!("{what}: no end after {STEPS_MAX} steps"));
        None
    }

    fn maybe_cut(&mut self) -> Option<()> {
        if self.is_setup {
            return Some(());
        }
        if self.exhaustive {
            let digest = self.guest.world.digest();
            let is_new = self.last_digest != digest;
            self.last_digest = digest;
            return if is_new { self.cut_here(false) } else { Some(()) };
        }
        let flushed = self.guest.flushed.take();
        let percent = if flushed { 40 } else { self.crash_percent };
        match self.random.chance(percent) {
            true => self.cut_here(false),
            false => Some(()),
        }
    }

    /// Judges what a power cut at this moment can leave behind.
    fn cut_here(&mut self, is_end: bool) -> Option<()> {
        /// Sampled subsets of one moment.
        const SAMPLES: u32 = 4;
        let mut random = Random::of(self.schedule ^ mix(self.random.number()), "cut");
        let cut = Cut::of(&self.guest.world);
        if cut.is_certain() {
            return self.judge_new(cut.nothing_survives(), is_end);
        }
        if self.exhaustive
            && let Some(all) = cut.all_states(self.effort.parts_max)
        {
            return self.judge_all(&all);
        }
        self.moments.sampled += 1;
        let mut states = vec![cut.killed(&mut random), cut.nothing_survives()];
        states.extend((0..SAMPLES).map(|_| cut.sample(&mut random)));
        states.into_iter().try_for_each(|state| self.judge_new(state, is_end))
    }

    fn judge_all(&mut self, all: &AllStates<'_>) -> Option<()> {
        for number in 0..all.count() {
            if self.effort.crash_states_max <= self.crash_states {
                self.moments.sampled += 1;
                return Some(());
            }
            let state = all.state(number);
            if self.is_new(&state) {
                let state = CrashState { description: all.describe(number), ..state };
                self.judge(&state, self.guest.leaks_max.get())?;
            }
        }
        match all.are_torn() {
            true => self.moments.every_sector += 1,
            false => self.moments.every_change += 1,
        }
        Some(())
    }

    fn judge_new(&mut self, state: CrashState, is_end: bool) -> Option<()> {
        let is_enough = self.effort.crash_states_max <= self.crash_states && !is_end;
        if is_enough || !self.is_new(&state) {
            return Some(());
        }
        self.judge(&state, self.guest.leaks_max.get())
    }

    /// Whether this state was not judged before, under the same rules.
    fn is_new(&mut self, state: &CrashState) -> bool {
        let epoch = self.guest.model.borrow().epoch();
        if self.judged_epoch != epoch {
            self.judged.clear();
            self.judged_epoch = epoch;
        }
        self.judged.insert(state.digest())
    }

    fn judge(&mut self, state: &CrashState, leaks_max: u64) -> Option<()> {
        self.crash_states += 1;
        let depth = match self.random.below(100) {
            drawn if drawn < self.effort.oracle_percent => Depth::Oracle,
            drawn if drawn < self.effort.deep_percent => Depth::Deep,
            _ => Depth::Quick,
        };
        let mut random = Random::of(self.random.number(), "judge");
        let model = self.guest.model.borrow();
        let case = Case {
            subject: &self.guest.subject,
            model: &model,
            files: &state.files,
            original: &self.original,
            snapshots: &self.snapshots,
            leaks_max,
        };
        let judged = checkers::check(&case, depth, &mut random);
        drop(model);
        let Err((checker, text)) = judged else { return Some(()) };
        self.guest.report(checker, format!("{text}; crash state: {}", state.description));
        None
    }
}
