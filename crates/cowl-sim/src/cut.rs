//! Power cuts: what a moment of the host can leave behind.
//!
//! Left is what is durable, and any subset of the parts that are not: sectors and lengths of every
//! change since, landed or still in flight. Parts that landed keep their order; those in flight
//! come last, in any order. A killed process leaves all that was completed instead, which is one of
//! those subsets.

use std::collections::BTreeMap;

use cowl_storage::Purpose;

use crate::effect::Effect;
use crate::random::mix;
use crate::{Random, SimFile, SimWorld};

/// Most parts of which every subset is tried in drawn histories: 2048 states of one moment.
pub const EXHAUSTIVE_PARTS_MAX: usize = 11;

/// The same in histories written by hand.
pub const COMPLETE_PARTS_MAX: usize = 14;

/// A moment, with everything that a power cut may take or leave.
pub struct Cut {
    files: Vec<CutFile>,
    parts: Vec<CutPart>,
}

struct CutFile {
    name: String,
    read_only: bool,
    durable: Vec<u8>,
}

struct CutPart {
    file: usize,
    change: u64,
    purpose: Purpose,
    effect: Effect,
    landed: bool,
    forced: bool,
}

/// What was left.
#[derive(Clone, Debug)]
pub struct CrashState {
    /// The files.
    pub files: Vec<SimFile>,
    /// Which parts survived, in words.
    pub description: String,
}

impl CrashState {
    /// A number that two states share only when their files are the same.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut digest = 0;
        for file in &self.files {
            digest = mix(digest ^ file.bytes.len() as u64);
            for word in file.bytes.chunks(8) {
                let mut bytes = [0; 8];
                bytes[..word.len()].copy_from_slice(word);
                digest = (digest ^ u64::from_le_bytes(bytes)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                digest ^= digest >> 29;
            }
        }
        digest
    }
}

impl Cut {
    /// The moment that `world` is in.
    #[must_use]
    pub fn of(world: &SimWorld) -> Self {
        let keep_lengths = world.options().keep_lengths;
        let host = world.host();
        let mut files = Vec::new();
        let mut parts = Vec::new();
        for (number, file) in host.files.iter().enumerate() {
            files.push(CutFile {
                name: file.name.clone(),
                read_only: file.read_only,
                durable: file.durable.clone(),
            });
            parts.extend(file.landed.iter().map(|landed| CutPart {
                file: number,
                change: landed.change,
                purpose: file.changes[&landed.change].purpose,
                effect: landed.effect.clone(),
                landed: true,
                forced: file.changes[&landed.change].durable
                    || (keep_lengths && matches!(landed.effect, Effect::Extend { .. })),
            }));
        }
        for (file, change, effect) in host.in_flight() {
            let purpose = host.files[file].changes[&change].purpose;
            let effect = effect.clone();
            parts.push(CutPart { file, change, purpose, effect, landed: false, forced: false });
        }
        Self { files, parts }
    }

    fn optional(&self) -> Vec<usize> {
        (0..self.parts.len()).filter(|index| !self.parts[*index].forced).collect()
    }

    /// The changes that may be lost.
    fn changes(&self) -> Vec<u64> {
        let mut changes: Vec<u64> =
            self.parts.iter().filter(|part| !part.forced).map(|part| part.change).collect();
        changes.sort_unstable();
        changes.dedup();
        changes
    }

    /// Whether nothing can be lost: every cut leaves the same.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.parts.iter().all(|part| part.forced)
    }

    /// The state with exactly the parts that `survives` says, besides those that must.
    fn build(&self, order: &[usize], survives: &[bool], description: String) -> CrashState {
        let mut bytes: Vec<Vec<u8>> = self.files.iter().map(|file| file.durable.clone()).collect();
        for index in order {
            let part = &self.parts[*index];
            if part.forced || survives[*index] {
                part.effect.apply(&mut bytes[part.file]);
            }
        }
        let files = self.files.iter().zip(bytes).map(|(file, bytes)| SimFile {
            name: file.name.clone(),
            bytes,
            read_only: file.read_only,
        });
        CrashState { files: files.collect(), description }
    }

    fn order(&self, random: &mut Random) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.parts.len()).collect();
        let landed = self.parts.iter().filter(|part| part.landed).count();
        random.shuffle(&mut order[landed..]);
        order
    }

    /// A killed process: all that has landed, and any part of what was in flight.
    #[must_use]
    pub fn killed(&self, random: &mut Random) -> CrashState {
        let order = self.order(random);
        let survives: Vec<bool> =
            self.parts.iter().map(|part| part.landed || random.chance(50)).collect();
        self.build(&order, &survives, "kill -9".to_owned())
    }

    /// Only what is durable.
    #[must_use]
    pub fn nothing_survives(&self) -> CrashState {
        let order: Vec<usize> = (0..self.parts.len()).collect();
        self.build(&order, &vec![false; self.parts.len()], "nothing survives".to_owned())
    }

    /// Some subset, drawn so that ordering mistakes show: by purpose, by age, by change, by sector.
    #[must_use]
    pub fn sample(&self, random: &mut Random) -> CrashState {
        let order = self.order(random);
        let changes = self.changes();
        if changes.is_empty() {
            return self.nothing_survives();
        }
        let (chosen, how) = self.choose_changes(&changes, random);
        let is_torn = random.chance(30);
        let survives: Vec<bool> = self
            .parts
            .iter()
            .map(|part| chosen.contains(&part.change) ^ (is_torn && random.chance(20)))
            .collect();
        let torn = if is_torn { ", torn" } else { "" };
        let description = format!("{how}{torn}: survived {}", self.names(&survives));
        self.build(&order, &survives, description)
    }

    fn choose_changes(&self, changes: &[u64], random: &mut Random) -> (Vec<u64>, String) {
        let one = random.pick(changes);
        let kept = |keep: &dyn Fn(u64) -> bool| -> Vec<u64> {
            changes.iter().copied().filter(|change| keep(*change)).collect()
        };
        let purpose_of = |wanted: u64| {
            let part = self.parts.iter().find(|part| part.change == wanted);
            part.expect("it has a part").purpose
        };
        match random.below(7) {
            0 => (kept(&|change| change <= one), format!("up to {one}")),
            1 => (kept(&|change| change != one), format!("all but {one}")),
            2 => (vec![one], format!("only {one}")),
            3 => {
                let lost = purpose_of(one);
                (kept(&|change| purpose_of(change) != lost), format!("no {lost}"))
            }
            4 => {
                let only = purpose_of(one);
                (kept(&|change| purpose_of(change) == only), format!("only {only}"))
            }
            5 => (kept(&|change| one <= change), format!("from {one}")),
            _ => {
                let percent = random.pick(&[10, 50, 90]);
                let coins: Vec<u64> =
                    changes.iter().copied().filter(|_| random.chance(percent)).collect();
                (coins, format!("{percent} percent"))
            }
        }
    }

    /// Every state, where there are few: those of at most `parts_max` parts. Whole changes are
    /// taken or left when their sectors are too many and the changes are not.
    #[must_use]
    pub fn all_states(&self, parts_max: usize) -> Option<AllStates<'_>> {
        let optional = self.optional();
        let changes = self.changes();
        let by_part = optional.len() <= parts_max;
        let count = if by_part { optional.len() } else { changes.len() };
        if parts_max < count {
            return None;
        }
        let bits = optional.iter().enumerate().map(|(number, index)| match by_part {
            true => (*index, number),
            false => {
                let change = changes.binary_search(&self.parts[*index].change);
                (*index, change.expect("it is one of them"))
            }
        });
        Some(AllStates { cut: self, bits: bits.collect(), by_part, count: 1 << count })
    }

    /// The changes of which something survived, and how much.
    fn names(&self, survives: &[bool]) -> String {
        let mut counts: BTreeMap<u64, (Purpose, u32, u32)> = BTreeMap::new();
        for (part, survived) in self.parts.iter().zip(survives).filter(|(part, _)| !part.forced) {
            let count = counts.entry(part.change).or_insert((part.purpose, 0, 0));
            count.1 += u32::from(*survived);
            count.2 += 1;
        }
        let names: Vec<String> = counts
            .iter()
            .filter(|(_, (_, there, _))| *there != 0)
            .map(|(change, (purpose, there, all))| format!("{change} {purpose} {there}/{all}"))
            .collect();
        if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
    }
}

/// Every state of a moment, by number: there may be many thousands, and most are known already.
pub struct AllStates<'a> {
    cut: &'a Cut,
    /// For each part that may be lost, which bit of a state's number keeps it.
    bits: Vec<(usize, usize)>,
    by_part: bool,
    count: u32,
}

impl AllStates<'_> {
    /// Whether the parts of one change were taken and left one by one.
    #[must_use]
    pub fn are_torn(&self) -> bool {
        self.by_part
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    fn survives(&self, number: u32) -> Vec<bool> {
        let mut survives = vec![false; self.cut.parts.len()];
        for (index, bit) in &self.bits {
            survives[*index] = number >> bit & 1 == 1;
        }
        survives
    }

    /// The state of a number, without a description.
    #[must_use]
    pub fn state(&self, number: u32) -> CrashState {
        let order: Vec<usize> = (0..self.cut.parts.len()).collect();
        self.cut.build(&order, &self.survives(number), String::new())
    }

    /// The description of that state.
    #[must_use]
    pub fn describe(&self, number: u32) -> String {
        let survived = self.cut.names(&self.survives(number));
        format!("subset {number:#b}: survived {survived}")
    }
}
