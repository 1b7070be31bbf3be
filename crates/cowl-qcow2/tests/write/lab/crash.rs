//! Every state that a crash may leave: after each I/O a killed process, before each barrier a power
//! cut that kept any part of what was not durable.

use std::sync::Arc;

use cowl_format::{GuestOffset, Header, IncompatibleFeatures};
use cowl_qcow2::{CheckReport, check, read_header};
use cowl_storage::{Access, MemoryStorage};
use pollster::block_on;

use super::guest::{Guest, content_of, open};
use super::storage::{Change, Event, Kind};
use crate::subject::Noise;

/// Pending changes up to which every subset is tried.
const EXHAUSTIVE_MAX: usize = 10;

/// Subsets that are tried of more.
const SAMPLES: u64 = 200;

/// What a crash may cost.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Clusters that may leak.
    pub(crate) leaks_max: u64,
}

/// The files at one moment.
type Files = Vec<MemoryStorage>;

/// Judges all states of the log of `guest`; returns how many there were.
pub(crate) fn judge_crashes(guest: &Guest, limits: Limits, name: &str) -> usize {
    let log = guest.lab.log();
    let mut count = 0;
    let killed = start_of(guest);
    let durable = start_of(guest);
    // By file: up to where the log is in `durable`.
    let mut pending: Vec<(usize, Change)> = Vec::new();
    for cut in 0..=log.len() {
        let judge = Judge { guest, limits, cut, name };
        judge.state(&killed, cut % 4 == 0, &|| "killed".to_owned());
        count += 1;
        let is_last = cut == log.len();
        if is_last || matches!(log[cut], Event::Barrier { .. }) {
            let mut changes: Vec<Change> =
                pending.iter().map(|(_, change)| change.clone()).collect();
            // What was under way may be in the file as well.
            changes.extend(log[cut..].iter().filter_map(|event| match event {
                Event::Change(change) if change.issued < cut => Some(change.clone()),
                _ => None,
            }));
            count += judge.power_cuts(&durable, &changes);
        }
        match log.get(cut) {
            Some(Event::Change(change)) => {
                change.kind.apply(&killed[change.file]);
                pending.push((cut, change.clone()));
            }
            Some(Event::Barrier { file, issued }) => {
                let (now, later): (Vec<_>, Vec<_>) = pending
                    .into_iter()
                    .partition(|(at, change)| change.file == *file && at < issued);
                now.iter().for_each(|(_, change)| change.kind.apply(&durable[change.file]));
                pending = later;
            }
            Some(Event::Mark) | None => {}
        }
    }
    count
}

/// Judges the files as they are now.
pub(crate) fn judge_now(guest: &Guest, limits: Limits, name: &str) {
    let judge = Judge { guest, limits, cut: guest.lab.position(), name };
    judge.state(&guest.contents(), true, &|| "at the end".to_owned());
}

fn start_of(guest: &Guest) -> Files {
    guest.start.iter().map(|bytes| MemoryStorage::from_vec(bytes.clone())).collect()
}

struct Judge<'a> {
    guest: &'a Guest,
    limits: Limits,
    cut: usize,
    name: &'a str,
}

impl Judge<'_> {
    fn power_cuts(&self, durable: &Files, changes: &[Change]) -> usize {
        let mut noise = Noise(self.cut as u64 * 77 + changes.len() as u64);
        let all = changes.len();
        let mut count = 0;
        let subsets = if all <= EXHAUSTIVE_MAX { 1 << all } else { SAMPLES };
        for subset in 0..subsets {
            let kept: Vec<bool> = match all <= EXHAUSTIVE_MAX {
                true => (0..all).map(|bit| subset >> bit & 1 == 1).collect(),
                // Few, half, or most of them.
                false => (0..all).map(|_| noise.next(4) <= subset % 4).collect(),
            };
            let is_torn = subset % 3 == 1;
            let state: Files = durable.iter().map(MemoryStorage::snapshot).collect();
            for (change, _) in changes.iter().zip(&kept).filter(|(_, kept)| **kept) {
                match (&change.kind, is_torn) {
                    (Kind::Write { at, bytes }, true) => {
                        tear(*at, bytes, &mut noise, &state[change.file]);
                    }
                    (kind, _) => kind.apply(&state[change.file]),
                }
            }
            let what = || {
                let kept: Vec<String> =
                    changes.iter().zip(&kept).filter(|(_, kept)| **kept).map(described).collect();
                format!("power cut{}, kept {kept:?}", if is_torn { ", torn" } else { "" })
            };
            self.state(&state, subset % 16 == 3, &what);
            count += 1;
        }
        count
    }

    /// One state: legal metadata, legal content, and good to go on with.
    fn state(&self, files: &Files, goes_on: bool, what: &dyn Fn() -> String) {
        let what = || format!("{}, event {}: {}", self.name, self.cut, what());
        let files: Vec<Arc<MemoryStorage>> =
            files.iter().map(|file| Arc::new(file.snapshot())).collect();
        let header = block_on(read_header(files[0].as_ref())).unwrap();
        let is_dirty = header.incompatible.contains(IncompatibleFeatures::DIRTY);
        let report = report_of(&files[0], &header);
        self.check(&report, is_dirty, &what);
        let base = || self.guest.setup.base.clone().map(MemoryStorage::from_vec);
        let limits = self.guest.setup.limits;
        let image = block_on(open(&files, base(), Access::ReadOnly, limits)).unwrap();
        let before = content_of(&image);
        drop(image);
        self.guest.judge(self.cut, &before, &what);
        // Late refcounts are corrected when the image is opened for writing.
        if goes_on {
            self.go_on(&files, base(), before, &what);
        }
    }

    fn check(&self, report: &CheckReport, is_dirty: bool, what: &dyn Fn() -> String) {
        if is_dirty {
            // Refcounts are late; two references to one cluster are wrong all the same.
            let is_late = |text: &str| {
                text.contains("refcount=0 reference=1") || text.contains("OFLAG_COPIED")
            };
            let bad = |finding: &&cowl_qcow2::Finding| {
                finding.kind != cowl_qcow2::FindingKind::Leak && !is_late(&finding.text)
            };
            assert_eq!(report.findings.iter().find(bad).map(|f| &f.text), None, "{}", what());
            return;
        }
        let is_sound = report.corruptions == 0 && report.check_errors == 0;
        let is_leak = |f: &&cowl_qcow2::Finding| f.kind == cowl_qcow2::FindingKind::Leak;
        let bad: Vec<_> = report.findings.iter().filter(|f| !is_leak(f)).collect();
        assert!(is_sound, "{}: {bad:?}", what());
        assert!(report.leaks <= self.limits.leaks_max, "{}: {} leaks", what(), report.leaks);
    }

    /// A second session writes over a part and leaves the rest alone.
    fn go_on(
        &self,
        files: &[Arc<MemoryStorage>],
        base: Option<MemoryStorage>,
        before: Vec<u8>,
        what: &dyn Fn() -> String,
    ) {
        let limits = self.guest.setup.limits;
        let image = block_on(open(files, base, Access::ReadWrite, limits)).unwrap();
        let mut expected = before;
        let size = expected.len();
        let cluster = usize::try_from(self.guest.setup.options.cluster_size).unwrap();
        for (at, length) in [(size / 2, 3 * cluster), (size - cluster, cluster), (700, 100)] {
            let length = length.min(size - at);
            let guest = GuestOffset::new(at as u64);
            block_on(image.write_from(guest, &vec![0xee; length])).unwrap();
            expected[at..at + length].fill(0xee);
        }
        assert!(content_of(&image) == expected, "{}: lost in the next session", what());
        block_on(image.close()).unwrap();
        let header = block_on(read_header(files[0].as_ref())).unwrap();
        self.check(&report_of(&files[0], &header), false, what);
    }
}

fn report_of(file: &MemoryStorage, header: &Header) -> CheckReport {
    block_on(check(file, header, None, &())).unwrap()
}

/// Some sectors of a write reach the file.
fn tear(at: u64, bytes: &[u8], noise: &mut Noise, file: &MemoryStorage) {
    let mut done = 0;
    while done < bytes.len() {
        let here = at + done as u64;
        let sector_end = usize::try_from((here / 512 + 1) * 512 - at).unwrap();
        let end = sector_end.min(bytes.len());
        if noise.next(2) == 0 {
            Kind::Write { at: here, bytes: bytes[done..end].to_vec() }.apply(file);
        }
        done = end;
    }
}

fn described((change, _): (&Change, &bool)) -> String {
    let what = match &change.kind {
        Kind::Write { at, bytes } => format!("write {at:#x}+{}", bytes.len()),
        Kind::Zero { at, length, .. } => format!("zero {at:#x}+{length}"),
        Kind::Extend { end } => format!("extend {end:#x}"),
        Kind::SetLength { length } => format!("length {length:#x}"),
    };
    format!("{what} {} file {}", change.purpose, change.file)
}
