//! What is measured: groups of rows that one piece of work fills.

use crate::fixtures::Fixtures;

/// A program or library that does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Contender {
    Raw,
    Qemu,
    Imago,
    Qcow2Rs,
    Cowl,
}

impl Contender {
    pub(crate) const ALL: [Self; 5] =
        [Self::Raw, Self::Qemu, Self::Imago, Self::Qcow2Rs, Self::Cowl];

    pub(crate) fn of_name(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|contender| contender.name() == name);
        known.ok_or_else(|| format!("no contender is called {name}"))
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qemu => "qemu",
            Self::Imago => "imago",
            Self::Qcow2Rs => "qcow2-rs",
            Self::Cowl => "cowl",
        }
    }
}

/// What numbers mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Operations in a second; more is better.
    PerSecond,
    /// Seconds; less is better.
    Seconds,
    /// Microseconds of processor time for one operation; less is better.
    CpuMicroseconds,
    /// Mebibytes; less is better.
    Mebibytes,
}

impl Unit {
    pub(crate) fn more_is_better(self) -> bool {
        self == Self::PerSecond
    }
}

/// What cowl has to reach.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bar {
    /// cowl's median divided by this contender's ...
    pub(crate) reference: Contender,
    /// ... is at least this, or at most where less is better.
    pub(crate) ratio: f64,
}

impl Bar {
    /// Whether a row of `unit` with this ratio reaches it.
    pub(crate) fn is_met_by(self, ratio: f64, unit: Unit) -> bool {
        if unit.more_is_better() { self.ratio <= ratio } else { ratio <= self.ratio }
    }

    /// The last columns of a table: the bar, and whether `ratio` reaches it.
    pub(crate) fn text(self, ratio: Option<f64>, unit: Unit) -> String {
        let sign = if unit.more_is_better() { ">=" } else { "<=" };
        let met = match ratio.map(|ratio| self.is_met_by(ratio, unit)) {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "?",
        };
        let ratio = ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        let text = format!("{sign} {} x {}", self.ratio, self.reference.name());
        format!("{ratio:>8}  {text:18} {met}")
    }
}

/// One line of the table.
pub(crate) struct Row {
    pub(crate) key: &'static str,
    pub(crate) title: String,
    pub(crate) unit: Unit,
    /// All have to be met.
    pub(crate) bars: Vec<Bar>,
}

/// One number for each row of the group, or why this contender has none.
pub(crate) type Sample = Result<Vec<f64>, String>;

/// Does the work once.
pub(crate) type Work = Box<dyn Fn(&Fixtures) -> Sample>;

/// Something around the samples of a group.
pub(crate) type Step = Box<dyn Fn(&Fixtures) -> Result<(), String>>;

/// How many times as often groups are sampled in which cowl's bar is a few hundredths from what it
/// does, or whose samples differ by more than that.
pub(crate) const CLOSE: usize = 3;

/// Rows that one piece of work fills.
pub(crate) struct Group {
    pub(crate) rows: Vec<Row>,
    pub(crate) work: Vec<(Contender, Work)>,
    /// Work that takes minutes is repeated less often.
    pub(crate) repeat_max: usize,
    /// See [`CLOSE`].
    pub(crate) repeat_times: usize,
    /// Runs once before the first sample.
    pub(crate) prepare: Step,
    /// Runs once after the last sample: did everybody do the same work?
    pub(crate) verify: Step,
    /// What else there is to say after the last sample.
    pub(crate) note: Box<dyn Fn() -> Option<String>>,
}

impl Group {
    pub(crate) fn new(rows: Vec<Row>) -> Self {
        Self {
            rows,
            work: Vec::new(),
            repeat_max: usize::MAX,
            repeat_times: 1,
            prepare: Box::new(|_| Ok(())),
            verify: Box::new(|_| Ok(())),
            note: Box::new(|| None),
        }
    }

    pub(crate) fn add(
        &mut self,
        contender: Contender,
        work: impl Fn(&Fixtures) -> Sample + 'static,
    ) {
        self.work.push((contender, Box::new(work)));
    }

    /// Leaves out all contenders but these.
    pub(crate) fn keep_only(&mut self, contenders: &[Contender]) {
        for (contender, work) in &mut self.work {
            if !contenders.contains(contender) {
                *work = Box::new(|_| Err("not asked for".to_owned()));
            }
        }
    }

    /// Says why `contender` does not take part.
    pub(crate) fn leave_out(&mut self, contender: Contender, reason: &'static str) {
        self.add(contender, move |_| Err(reason.to_owned()));
    }
}
