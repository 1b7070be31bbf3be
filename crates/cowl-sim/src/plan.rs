//! What makes a history: enough to run exactly it again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use crate::{SubjectKind, mix};

/// How much is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Disks of a few tables, and hundreds of requests.
    Full,
    /// A small disk and so few requests that all crash states can be tried.
    Tiny,
}

/// A history, as a `replay:` line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What is tested.
    pub subject: SubjectKind,
    /// Decides the disk, the workload, the faults and every order.
    pub seed: u64,
    /// Another order of the same things; 0 unless a shrinker looked for one.
    pub schedule: u64,
    /// Few requests, and every crash state instead of some.
    pub exhaustive: bool,
    /// The length that a file got from a completed write is never lost: a kinder host, on which
    /// mistakes of another kind show.
    pub keep_lengths: bool,
    /// The disk never changes its size.
    pub fixed_size: bool,
    /// Requests dropped after so many polls, besides those drawn.
    pub drops: BTreeMap<u32, u32>,
    /// Turns that their tasks have before they are dropped.
    pub late: u32,
    /// Requests left out.
    pub without: BTreeSet<u32>,
    /// Faults left out.
    pub without_faults: BTreeSet<u32>,
}

impl Plan {
    /// The whole history of a seed.
    #[must_use]
    pub fn new(subject: SubjectKind, seed: u64) -> Self {
        Self {
            subject,
            seed,
            schedule: 0,
            exhaustive: false,
            keep_lengths: false,
            fixed_size: false,
            drops: BTreeMap::new(),
            late: 0,
            without: BTreeSet::new(),
            without_faults: BTreeSet::new(),
        }
    }

    /// History `number` of a run over `subjects` from `seed` on. One in eight is small, and looked
    /// at from all sides.
    #[must_use]
    pub fn of_number(subjects: &[SubjectKind], seed: u64, number: u64) -> Self {
        let seed = seed.wrapping_add(number);
        let index = usize::try_from(mix(seed) % subjects.len() as u64).expect("few subjects");
        let plan = Self::new(subjects[index], seed);
        if mix(seed) >> 32 & 7 == 0 { plan.exhaustive() } else { plan }
    }

    /// How much it draws.
    #[must_use]
    pub fn extent(&self) -> Extent {
        if self.exhaustive { Extent::Tiny } else { Extent::Full }
    }

    /// The same with few requests and every crash state.
    #[must_use]
    pub fn exhaustive(self) -> Self {
        Self { exhaustive: true, ..self }
    }
}

/// Numbers as `1,4-7`.
fn list(numbers: &BTreeSet<u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    let name = |(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    runs.iter().map(name).collect::<Vec<_>>().join(",")
}

/// More requests than a history has.
const RUN_MAX: u32 = 1_000_000;

fn unlist(text: &str) -> Result<BTreeSet<u32>, String> {
    let mut numbers = BTreeSet::new();
    for run in text.split(',').filter(|run| !run.is_empty()) {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        let number = |text: &str| text.parse::<u32>().map_err(|_| format!("no number: {text}"));
        let (first, last) = (number(first)?, number(last)?);
        if last < first || RUN_MAX < last - first {
            return Err(format!("no numbers of requests: {run}"));
        }
        numbers.extend(first..=last);
    }
    Ok(numbers)
}

/// Whether `word` says the only thing that it can say.
fn is(word: &str, value: &str, only: &str) -> Result<bool, String> {
    if value == only { Ok(true) } else { Err(format!("unknown: {word}")) }
}

/// A request and its polls, as `request:polls`.
fn undrop(text: &str) -> Result<(u32, u32), String> {
    let number = |text: &str| text.parse::<u32>().map_err(|_| format!("no number: {text}"));
    let (request, polls) = text.split_once(':').ok_or_else(|| format!("no polls: {text}"))?;
    Ok((number(request)?, number(polls)?))
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "subject={} seed={}", self.subject.name(), self.seed)?;
        if self.schedule != 0 {
            write!(f, " schedule={}", self.schedule)?;
        }
        if self.exhaustive {
            write!(f, " exhaustive=yes")?;
        }
        if self.keep_lengths {
            write!(f, " lengths=kept")?;
        }
        if self.fixed_size {
            write!(f, " size=fixed")?;
        }
        for (request, polls) in &self.drops {
            write!(f, " drop={request}:{polls}")?;
        }
        if self.late != 0 {
            write!(f, " late={}", self.late)?;
        }
        if !self.without.is_empty() {
            write!(f, " without={}", list(&self.without))?;
        }
        if !self.without_faults.is_empty() {
            write!(f, " without-faults={}", list(&self.without_faults))?;
        }
        Ok(())
    }
}

impl FromStr for Plan {
    type Err = String;

    /// Reads a line; `replay:` before it is skipped. Whatever is not understood is an error: a
    /// history that passes must be the one that was meant.
    fn from_str(line: &str) -> Result<Self, String> {
        let mut plan = Self::new(SubjectKind::Raw, 0);
        let (mut has_subject, mut has_seed) = (false, false);
        let line = line.trim().trim_start_matches("replay:");
        for word in line.split_whitespace() {
            let (key, value) = word.split_once('=').ok_or_else(|| format!("no value: {word}"))?;
            let number = || value.parse::<u64>().map_err(|_| format!("no number: {word}"));
            match key {
                "subject" => {
                    plan.subject = SubjectKind::from_name(value)?;
                    has_subject = true;
                }
                "seed" => {
                    plan.seed = number()?;
                    has_seed = true;
                }
                "schedule" => plan.schedule = number()?,
                "lengths" => plan.keep_lengths = is(word, value, "kept")?,
                "size" => plan.fixed_size = is(word, value, "fixed")?,
                "exhaustive" => plan.exhaustive = is(word, value, "yes")?,
                "drop" => {
                    let (request, polls) = undrop(value)?;
                    plan.drops.insert(request, polls);
                }
                "late" => plan.late = u32::try_from(number()?).map_err(|e| e.to_string())?,
                "without" => plan.without = unlist(value)?,
                "without-faults" => plan.without_faults = unlist(value)?,
                _ => return Err(format!("unknown: {word}")),
            }
        }
        match has_subject && has_seed {
            true => Ok(plan),
            false => Err(format!("a line has a subject and a seed: {line}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Plan;
    use crate::SubjectKind;

    #[test]
    fn a_line_is_the_plan() {
        let mut plan = Plan::new(SubjectKind::Raw, 77).exhaustive();
        plan.schedule = 3;
        plan.drops = [(5, 2)].into();
        plan.late = 4;
        plan.without = [1, 2, 3, 9].into();
        plan.without_faults = [0].into();
        let line = plan.to_string();
        assert_eq!(
            line,
            "subject=raw seed=77 schedule=3 exhaustive=yes drop=5:2 late=4 \
             without=1-3,9 without-faults=0"
        );
        assert_eq!(line.parse(), Ok(plan));
    }

    #[test]
    fn a_line_that_is_not_understood_is_no_plan() {
        for rest in ["lengths=gone", "exhaustive=no", "without=5-1", "without=0-4294967295"] {
            assert!(format!("subject=raw seed=1 {rest}").parse::<Plan>().is_err(), "{rest}");
        }
        for line in ["", "subject=raw", "seed=1", "subject=raw seed=x", "nonsense"] {
            assert!(line.parse::<Plan>().is_err(), "{line}");
        }
    }
}
