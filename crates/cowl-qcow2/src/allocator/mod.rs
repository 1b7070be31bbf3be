//! Which host clusters are free, and who gets which.

mod arena;
mod growth;
mod quarantine;
mod refcounts;
mod roles;
mod space;

pub(crate) use arena::{Arenas, ClusterUse, Granted};
pub(crate) use quarantine::{Quarantine, Reference};
pub(crate) use roles::RoleMap;
pub(crate) use space::Space;
