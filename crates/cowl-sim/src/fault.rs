//! I/O that fails on purpose: which, and how.

use cowl_storage::{Operation, Purpose};

use crate::Random;

/// EIO.
pub const EIO: i32 = 5;
/// ENOSPC.
pub const ENOSPC: i32 = 28;

/// How a selected I/O fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Nothing is done.
    Nothing,
    /// All is done, and an error is reported all the same.
    All,
    /// Some sectors are done, others are not: a short write.
    Part,
}

/// One I/O that fails: the `nth` of those with this operation and purpose, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Only this operation.
    pub operation: Option<Operation>,
    /// Only this purpose.
    pub purpose: Option<Purpose>,
    /// How many of them pass before.
    pub nth: u64,
    /// How it fails.
    pub kind: FaultKind,
    /// With which error.
    pub errno: i32,
}

/// Faults and how far they have counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct FaultPlan {
    rules: Vec<(Fault, u64)>,
    pub(crate) injected: u64,
    /// Of these, changes that did nothing because there was no space.
    pub(crate) out_of_space: u64,
}

impl FaultPlan {
    pub(crate) fn new(faults: &[Fault]) -> Self {
        Self { rules: faults.iter().map(|fault| (*fault, 0)).collect(), ..Self::default() }
    }

    /// Counts an I/O; the fault that hits it, if one does.
    pub(crate) fn decide(
        &mut self,
        operation: Operation,
        purpose: Option<Purpose>,
    ) -> Option<Fault> {
        let mut hit = None;
        for (fault, seen) in &mut self.rules {
            let selected = fault.operation.is_none_or(|wanted| wanted == operation)
                && fault.purpose.is_none_or(|wanted| Some(wanted) == purpose);
            if selected {
                if *seen == fault.nth {
                    hit = Some(*fault);
                }
                *seen += 1;
            }
        }
        self.injected += u64::from(hit.is_some());
        let is_change = !matches!(operation, Operation::Read | Operation::Barrier);
        let is_full = |fault: Fault| fault.errno == ENOSPC && fault.kind == FaultKind::Nothing;
        self.out_of_space += u64::from(is_change && hit.is_some_and(is_full));
        hit
    }
}

const PURPOSES: &[Purpose] = &[
    Purpose::HeaderUpdate,
    Purpose::L1Table,
    Purpose::L2Table,
    Purpose::RefcountTable,
    Purpose::RefcountBlock,
    Purpose::GuestData,
    Purpose::CompressedData,
    Purpose::BackingData,
    Purpose::FileLength,
];

const OPERATIONS: &[Operation] = &[
    Operation::Read,
    Operation::Write,
    Operation::Zero,
    Operation::Discard,
    Operation::SetLength,
    Operation::Allocate,
];

/// Draws a fault: by purpose, by operation, or any I/O at all.
pub(crate) fn draw(random: &mut Random) -> Fault {
    let kind = random.pick(&[FaultKind::Nothing, FaultKind::All, FaultKind::Part]);
    let errno = random.pick(&[EIO, ENOSPC]);
    let nth_max = random.pick(&[3, 20, 100]);
    let nth = random.below(nth_max);
    let (operation, purpose) = match random.weighted(&[5, 3, 1, 1]) {
        0 => (None, Some(random.pick(PURPOSES))),
        1 => (Some(random.pick(OPERATIONS)), None),
        2 => (Some(Operation::Barrier), None),
        _ => (None, None),
    };
    Fault { operation, purpose, nth, kind, errno }
}
