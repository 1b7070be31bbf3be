//! The subjects: what can be simulated, by name.

mod bitmap_fixture;
mod fixture;
mod qcow2;
mod raw;
mod snapshot_fixture;
mod toy;

pub use qcow2::Qcow2Subject;
pub use raw::RawSubject;
pub use toy::{ToyFault, ToySubject};

use crate::subject::Subject;
use crate::{Extent, SCENARIOS, Scenario};

/// Which subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubjectKind {
    /// The raw format.
    Raw,
    /// The qcow2 engine.
    Qcow2,
    /// The qcow2 engine in a history written by hand.
    Scenario(Scenario),
    /// A disk with a mistake.
    Toy(ToyFault),
}

/// What is done with a subject, whatever its type.
pub trait SubjectVisitor {
    /// What comes of it.
    type Output;

    /// Does it.
    fn visit<S: Subject + 'static>(self, subject: S) -> Self::Output;
}

impl SubjectKind {
    /// The subjects that must never fail, the more important ones more often.
    pub const REAL: &[Self] = &[Self::Raw, Self::Qcow2, Self::Qcow2, Self::Qcow2];

    /// The name on command lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Scenario(scenario) => scenario.name,
            Self::Toy(fault) => fault.name(),
        }
    }

    /// The subject with this name.
    pub fn from_name(name: &str) -> Result<Self, String> {
        let mut kinds = vec![Self::Raw, Self::Qcow2];
        kinds.extend(ToyFault::ALL.iter().map(|fault| Self::Toy(*fault)));
        kinds.extend(SCENARIOS.iter().map(|scenario| Self::Scenario(*scenario)));
        let found = kinds.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| format!("no such subject: {name}"))
    }

    /// Shows `visitor` the subject of a seed.
    pub fn with<V: SubjectVisitor>(self, seed: u64, extent: Extent, visitor: V) -> V::Output {
        match self {
            Self::Raw => visitor.visit(RawSubject::draw(seed)),
            Self::Qcow2 => visitor.visit(Qcow2Subject::draw(seed, extent)),
            Self::Scenario(scenario) => visitor.visit(Qcow2Subject::of(scenario, seed)),
            Self::Toy(fault) => visitor.visit(ToySubject::new(fault)),
        }
    }
}
