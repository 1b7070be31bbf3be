//! Metadata contexts: what BLOCK_STATUS can tell about a range.

use crate::protocol::wire::state;
use cowl_block::{Extent, ExtentKind};

/// A metadata context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// `base:allocation`: holes and zeros.
    Allocation,
    /// `qemu:allocation-depth`: which layer of the chain has a range, counted from 1; 0 for none.
    /// Also 0 past the end of a short backing file, which QEMU counts as that file's.
    Depth,
}

impl Context {
    /// Every context, in the order of their ids.
    pub const ALL: [Self; 2] = [Self::Allocation, Self::Depth];

    /// The number by which replies name it.
    #[must_use]
    pub const fn id(self) -> u32 {
        match self {
            Self::Allocation => 0,
            Self::Depth => 1,
        }
    }

    /// Its name: namespace, colon, leaf.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allocation => "base:allocation",
            Self::Depth => "qemu:allocation-depth",
        }
    }

    /// What the context says about an extent.
    #[must_use]
    pub fn flags(self, extent: &Extent) -> u32 {
        match self {
            Self::Allocation => {
                let zero = if extent.reads_as_zero() { state::ZERO } else { 0 };
                let hole = if has_space(extent) { 0 } else { state::HOLE };
                zero | hole
            }
            Self::Depth => match extent.kind {
                ExtentKind::Unallocated { .. } => 0,
                _ => extent.depth.saturating_add(1),
            },
        }
    }
}

/// Whether the host has space for the extent. QEMU calls zeros with reserved space a hole; here
/// they are none, because writing there cannot run out of space.
fn has_space(extent: &Extent) -> bool {
    match extent.kind {
        ExtentKind::Data { hole, .. } => !hole,
        ExtentKind::Compressed => true,
        ExtentKind::Zero { host } | ExtentKind::Unallocated { host } => host.is_some(),
    }
}

/// A set of contexts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contexts(u8);

impl Contexts {
    /// None.
    pub const NONE: Self = Self(0);

    /// What queries of LIST_META_CONTEXT ask for: all without a query, else by full name or by
    /// namespace.
    #[must_use]
    pub fn listed(queries: &[&[u8]]) -> Self {
        let mut contexts = Self::NONE;
        for context in Context::ALL {
            let name = context.name().as_bytes();
            let is_meant = |query: &&[u8]| name == *query || is_namespace_of(query, name);
            if queries.is_empty() || queries.iter().any(is_meant) {
                contexts.insert(context);
            }
        }
        contexts
    }

    /// What queries of SET_META_CONTEXT select: full names only.
    #[must_use]
    pub fn selected(queries: &[&[u8]]) -> Self {
        let mut contexts = Self::NONE;
        for context in Context::ALL {
            if queries.iter().any(|query| context.name().as_bytes() == *query) {
                contexts.insert(context);
            }
        }
        contexts
    }

    /// Those of a set of ids; `None` when one of them is not in `self`.
    pub fn with_ids(self, ids: impl IntoIterator<Item = u32>) -> Option<Self> {
        let mut contexts = Self::NONE;
        for id in ids {
            contexts.insert(self.iter().find(|context| context.id() == id)?);
        }
        Some(contexts)
    }

    fn insert(&mut self, context: Context) {
        self.0 |= 1 << context.id();
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The contexts by their ids.
    pub fn iter(self) -> impl Iterator<Item = Context> {
        Context::ALL.into_iter().filter(move |context| self.0 & (1 << context.id()) != 0)
    }
}

/// `base:` means everything in the namespace `base`.
fn is_namespace_of(query: &[u8], name: &[u8]) -> bool {
    query.ends_with(b":") && name.starts_with(query)
}

#[cfg(test)]
mod tests {
    use cowl_format::{ByteCount, GuestOffset, HostOffset};

    use super::{Context, Contexts, Extent, ExtentKind};

    fn extent(kind: ExtentKind, depth: u32) -> Extent {
        Extent { start: GuestOffset::ZERO, length: ByteCount::new(1), depth, kind }
    }

    #[test]
    fn a_namespace_lists_its_contexts_and_selects_none() {
        assert_eq!(Contexts::listed(&[b"base:"]), Contexts::selected(&[b"base:allocation"]));
        assert_eq!(Contexts::selected(&[b"base:"]), Contexts::NONE);
        assert_eq!(Contexts::listed(&[]).iter().count(), 2);
        assert_eq!(Contexts::listed(&[b"x:"]), Contexts::NONE);
    }

    #[test]
    fn zeros_with_space_are_no_hole() {
        let space = Some(HostOffset::new(65536));
        let flags = |kind| Context::Allocation.flags(&extent(kind, 0));
        assert_eq!(flags(ExtentKind::Zero { host: space }), 2);
        assert_eq!(flags(ExtentKind::Zero { host: None }), 3);
        assert_eq!(flags(ExtentKind::Unallocated { host: None }), 3);
        assert_eq!(flags(ExtentKind::Data { host: space, hole: false }), 0);
        assert_eq!(flags(ExtentKind::Data { host: space, hole: true }), 3);
        assert_eq!(flags(ExtentKind::Compressed), 0);
    }

    #[test]
    fn depth_counts_layers_from_one_and_nothing_as_zero() {
        let flags = |kind, depth| Context::Depth.flags(&extent(kind, depth));
        assert_eq!(flags(ExtentKind::Compressed, 0), 1);
        assert_eq!(flags(ExtentKind::Zero { host: None }, 2), 3);
        assert_eq!(flags(ExtentKind::Unallocated { host: None }, 2), 0);
    }

    #[test]
    fn ids_outside_the_selected_set_are_refused() {
        let selected = Contexts::selected(&[b"base:allocation"]);
        assert_eq!(selected.with_ids([0, 0]), Some(selected));
        assert_eq!(selected.with_ids([1]), None);
    }
}
