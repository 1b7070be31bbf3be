//! Runs the real engine on a simulated host, from one seed, and holds what it leaves against what
//! is legal.
//!
//!   plan -> disk, workload, faults -> `executor` polls the guest's tasks and steps the host
//!                                        |                       |
//!                                  `model`: legal values   `world`: files, I/O in flight
//!                                        |                       |
//!                                        +---- `checkers` <- `cut`: what a power cut leaves
//!
//! Everything follows from the [`Plan`]: no thread, no clock, no other chance. A failing history
//! ends with a `replay:` line that runs exactly it again; [`shrink()`] makes it small first.
//!
//! What is assumed of the host is written at the head of `world.rs`.
#![forbid(unsafe_code)]

mod executor;
mod random;

mod cut;
mod effect;
mod fault;
mod sim_storage;
mod world;

mod model;
mod stamp;

mod checkers;
mod geometry;
mod guest;
mod scenario;
mod subject;
mod subjects;
mod workload;

#[cfg(feature = "canary")]
mod canary;
mod demonstration;
mod drops;
mod plan;
mod report;
mod run;
mod shrink;

#[cfg(feature = "canary")]
pub use canary::{CANARY_HISTORIES_MAX, Canary};
pub use cut::{AllStates, COMPLETE_PARTS_MAX, CrashState, Cut, EXHAUSTIVE_PARTS_MAX};
pub use demonstration::demonstrate;
pub use drops::drop_everywhere;
pub use effect::SECTOR;
pub use executor::{DropAfter, Executor, Step, Task, Yield, run_calm};
pub use fault::{EIO, ENOSPC, Fault, FaultKind};
pub use geometry::{Backing, DataFile, Shape};
pub use model::{FlushId, Illegal, Model, ReadId, RequestId, Value};
pub use plan::{Extent, Plan};
pub use random::{Random, mix};
pub use report::{Moments, Report, Totals, Violation};
pub use run::{Effort, outline, run};
pub use scenario::{SCENARIOS, Scenario};
pub use shrink::shrink;
pub use sim_storage::{SimOffload, SimStorage};
pub use stamp::{Texture, fill, matches};
pub use subject::{HostTraits, Made, MetadataReport, Subject, Traits};
pub use subjects::{Qcow2Subject, RawSubject, SubjectKind, SubjectVisitor, ToyFault, ToySubject};
pub use workload::{Act, Operation, Request, Workload};
pub use world::{SimFile, SimWorld, WorldOptions};
