//! What every crash state is held against.

mod bitmaps;
mod guest_bytes;
mod metadata;
mod qemu_check;
mod raw_view;
mod reopen;
mod snapshots;

use crate::subject::Subject;
use crate::{Model, Random, SimFile, SimWorld, WorldOptions};

/// A state of the files, and what is known about it.
pub(crate) struct Case<'a, S> {
    pub(crate) subject: &'a S,
    pub(crate) model: &'a Model,
    pub(crate) files: &'a [SimFile],
    /// What the guest read when the disk was made.
    pub(crate) original: &'a [u8],
    /// What the guest reads of each internal snapshot.
    pub(crate) snapshots: &'a [Vec<u8>],
    /// Clusters that may be lost.
    pub(crate) leaks_max: u64,
}

impl<S> Case<'_, S> {
    /// The files on a host without chance.
    pub(crate) fn world(&self) -> SimWorld {
        SimWorld::new(WorldOptions::calm(), self.files.to_vec())
    }
}

/// How much is done for a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Bytes and metadata.
    Quick,
    /// Also what changes the state afterwards.
    Deep,
    /// Also what other programs say.
    Oracle,
}

/// Holds a state against everything; the checker that objects, and why.
pub(crate) fn check<S: Subject>(
    case: &Case<'_, S>,
    depth: Depth,
    random: &mut Random,
) -> Result<(), (&'static str, String)> {
    let disk = guest_bytes::check(case).map_err(|text| ("guest bytes", text))?;
    raw_view::check(case, &disk).map_err(|text| ("raw view", text))?;
    bitmaps::check(case, &disk).map_err(|text| ("bitmaps", text))?;
    metadata::check(case).map_err(|text| ("metadata", text))?;
    snapshots::check(case).map_err(|text| ("snapshots", text))?;
    if depth != Depth::Quick {
        reopen::check(case, random).map_err(|text| ("reopen", text))?;
    }
    if depth == Depth::Oracle {
        qemu_check::check(case).map_err(|text| ("qemu-img check", text))?;
    }
    Ok(())
}

pub(crate) use metadata::look;
