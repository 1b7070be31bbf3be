//! Metadata contexts: what BLOCK_STATUS can tell about a range.

use crate::protocol::limits::BITMAP_COUNT_MAX;
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
    /// `qemu:dirty-bitmap:NAME`: what was changed since somebody began to look. The number is that
    /// of the bitmap among those of the export.
    Bitmap(u8),
}

/// What the names of bitmaps begin with.
const BITMAP_PREFIX: &str = "qemu:dirty-bitmap:";

impl Context {
    /// The number by which replies name it.
    #[must_use]
    pub const fn id(self) -> u32 {
        match self {
            Self::Allocation => 0,
            Self::Depth => 1,
            Self::Bitmap(index) => 2 + index as u32,
        }
    }

    /// The context of that number.
    const fn of(id: u8) -> Self {
        match id {
            0 => Self::Allocation,
            1 => Self::Depth,
            _ => Self::Bitmap(id - 2),
        }
    }

    /// Its name: namespace, colon, leaf. `bitmaps` are the names of the export's.
    #[must_use]
    pub fn name(self, bitmaps: &[String]) -> String {
        match self {
            Self::Allocation => "base:allocation".to_owned(),
            Self::Depth => "qemu:allocation-depth".to_owned(),
            Self::Bitmap(index) => {
                let name = bitmaps.get(usize::from(index)).map_or("", String::as_str);
                format!("{BITMAP_PREFIX}{name}")
            }
        }
    }

    /// What the context says about an extent; bitmaps know nothing of extents.
    #[must_use]
    pub fn flags(self, extent: &Extent) -> u32 {
        match self {
            Self::Bitmap(_) => 0,
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
pub struct Contexts(u16);

impl Contexts {
    /// None.
    pub const NONE: Self = Self(0);

    /// All of an export with so many bitmaps.
    fn all(bitmaps: &[String]) -> Self {
        assert!(bitmaps.len() <= BITMAP_COUNT_MAX);
        let count = 2 + bitmaps.len();
        (0..16).filter(|&id| usize::from(id) < count).fold(Self::NONE, Self::with)
    }

    /// What queries of LIST_META_CONTEXT ask for: all without a query, else by full name or by
    /// namespace.
    #[must_use]
    pub fn listed(queries: &[&[u8]], bitmaps: &[String]) -> Self {
        Self::all(bitmaps).those(|context| {
            let name = context.name(bitmaps);
            let is_meant = |query: &&[u8]| {
                name.as_bytes() == *query || is_namespace_of(query, name.as_bytes())
            };
            queries.is_empty() || queries.iter().any(is_meant)
        })
    }

    /// What queries of SET_META_CONTEXT select: full names only.
    #[must_use]
    pub fn selected(queries: &[&[u8]], bitmaps: &[String]) -> Self {
        Self::all(bitmaps).those(|context| {
            let name = context.name(bitmaps);
            queries.contains(&name.as_bytes())
        })
    }

    /// Those of a set of ids; `None` when one of them is not in `self`.
    pub fn with_ids(self, ids: impl IntoIterator<Item = u32>) -> Option<Self> {
        let mut contexts = Self::NONE;
        for id in ids {
            let id = u8::try_from(id).ok().filter(|&id| id < 16 && self.0 & (1 << id) != 0)?;
            contexts = contexts.with(id);
        }
        Some(contexts)
    }

    const fn with(self, id: u8) -> Self {
        Self(self.0 | 1 << id)
    }

    fn those(self, is_wanted: impl Fn(Context) -> bool) -> Self {
        let ids = self.iter().filter(|context| is_wanted(*context)).map(Context::id);
        self.with_ids(ids).expect("they are its own")
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many there are.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// The contexts by their ids.
    pub fn iter(self) -> impl Iterator<Item = Context> {
        (0..16).filter(move |id| self.0 & (1 << id) != 0).map(Context::of)
    }
}

/// `base:` means everything in the namespace `base`, and `qemu:dirty-bitmap:` all bitmaps.
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
        let bitmaps = ["a".to_owned(), "b:c".to_owned()];
        let listed = |queries: &[&[u8]]| -> Vec<_> {
            let contexts = Contexts::listed(queries, &bitmaps);
            contexts.iter().map(|context| context.name(&bitmaps)).collect()
        };
        let all = [
            "base:allocation",
            "qemu:allocation-depth",
            "qemu:dirty-bitmap:a",
            "qemu:dirty-bitmap:b:c",
        ];
        assert_eq!(listed(&[]), all);
        assert_eq!(listed(&[b"base:"]), all[..1]);
        assert_eq!(listed(&[b"qemu:"]), all[1..]);
        assert_eq!(listed(&[b"qemu:dirty-bitmap:"]), all[2..]);
        assert_eq!(listed(&[b"qemu:dirty-bitmap:b:c"]), all[3..]);
        assert_eq!(listed(&[b"x:"]), [""; 0]);
        assert_eq!(Contexts::selected(&[b"base:"], &bitmaps), Contexts::NONE);
        let one = Contexts::selected(&[b"qemu:dirty-bitmap:b:c"], &bitmaps);
        assert_eq!(one.iter().map(Context::id).collect::<Vec<_>>(), [3]);
        assert_eq!(Contexts::selected(&[b"qemu:dirty-bitmap:x"], &bitmaps), Contexts::NONE);
        assert_eq!(one.with_ids([3]), Some(one));
        assert_eq!(one.with_ids([2]), None);
        assert_eq!(one.with_ids([u32::MAX]), None);
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
        let selected = Contexts::selected(&[b"base:allocation"], &[]);
        assert_eq!(selected.with_ids([0, 0]), Some(selected));
        assert_eq!(selected.with_ids([1]), None);
    }
}
