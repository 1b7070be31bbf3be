//! Every ordering edge of the engine, as data.
//!
//! An edge says: the first has to be durable before the second is written. Whoever waits names the
//! edge it waits for: [`Edge::after`] for what a commit writes, `Layer::barrier_for` where there is
//! a barrier at once. [`ORDER`] is the only list of them, printed into
//! `docs/internals/flush_order.md` by a test.
//!
//! With the feature `canary` one edge can be switched off, to show that the simulator notices.
//!
//! Not here: what is written when, see `commit.rs`; how durability is reached, see `barriers.rs`.

use crate::flush::After;

/// One thing that has to be durable before another is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Edge {
    /// A refcount increment, before any pointer to the cluster.
    RefcountBeforePointer = 1,
    /// A new table, whole, before the entry or header field that names it.
    TableBeforeEntry,
    /// Data and fill of a cluster, before the L2 entry that exposes it, where the guest had other
    /// bytes there before or the host cluster is not known to be zero.
    DataBeforeEntry,
    /// A pointer's removal, before the refcount decrement, the punch and the reuse of the cluster.
    UnlinkBeforeReuse,
    /// The dirty bit, before the first refcount that is delayed.
    DirtyBitBeforeDelay,
    /// Everything else, before the dirty bit is cleared.
    AllBeforeClean,
    /// The mark on a bitmap that will not be kept up, before the first guest write.
    BitmapMarkBeforeWrite,
}

/// An edge in words.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Which edge.
    pub edge: Edge,
    /// What has to be durable.
    pub first: &'static str,
    /// What is written only then.
    pub then: &'static str,
    /// What a power cut in between would show if it were the other way round.
    pub otherwise: &'static str,
    /// Which part of a commit keeps the edge.
    pub kept_by: &'static str,
}

/// All edges.
pub const ORDER: [Rule; 7] = [
    Rule {
        edge: Edge::RefcountBeforePointer,
        first: "refcount increment",
        then: "any pointer to the cluster",
        otherwise: "the cluster gets two owners",
        kept_by: "reserved by an earlier commit, else stage A",
    },
    Rule {
        edge: Edge::TableBeforeEntry,
        first: "new table, whole",
        then: "entry or header field that names it",
        otherwise: "garbage is parsed as metadata",
        kept_by: "stage A; growth has a barrier of its own",
    },
    Rule {
        edge: Edge::DataBeforeEntry,
        first: "data and fill, where the guest had other bytes or the host cluster is not zero",
        then: "L2 entry that exposes the cluster",
        otherwise: "flushed data is lost, or a previous owner's bytes show",
        kept_by: "barrier of stage A",
    },
    Rule {
        edge: Edge::UnlinkBeforeReuse,
        first: "removal of a pointer",
        then: "refcount decrement, punch and reuse of the cluster",
        otherwise: "a live cluster counts as free; new data shows at the old address",
        kept_by: "quarantine",
    },
    Rule {
        edge: Edge::DirtyBitBeforeDelay,
        first: "dirty bit set",
        then: "first delayed refcount",
        otherwise: "stale refcounts are trusted",
        kept_by: "barrier before the first write of an image with lazy refcounts",
    },
    Rule {
        edge: Edge::AllBeforeClean,
        first: "everything above",
        then: "dirty bit cleared",
        otherwise: "stale refcounts are trusted",
        kept_by: "last commit of a close",
    },
    Rule {
        edge: Edge::BitmapMarkBeforeWrite,
        first: "bitmap marked as in use",
        then: "first guest write",
        otherwise: "a stale bitmap is trusted",
        kept_by: "barrier before the first write",
    },
];

impl Edge {
    /// The edge asks for this.
    pub(crate) fn after(self, after: After) -> After {
        if self.holds() { after } else { After::NOTHING }
    }

    /// Whether the edge is kept: always, but for one canary.
    #[must_use]
    pub fn holds(self) -> bool {
        #[cfg(feature = "canary")]
        {
            canary::IGNORED.load(core::sync::atomic::Ordering::Relaxed) != self as u8
        }
        #[cfg(not(feature = "canary"))]
        {
            true
        }
    }
}

#[cfg(feature = "canary")]
mod canary {
    use core::sync::atomic::AtomicU8;

    /// The edge that is ignored, as a number; 0 for none.
    pub(super) static IGNORED: AtomicU8 = AtomicU8::new(0);
}

/// Ignores an edge in this process from now on, or none.
#[cfg(feature = "canary")]
pub fn ignore_edge(edge: Option<Edge>) {
    let number = edge.map_or(0, |edge| edge as u8);
    canary::IGNORED.store(number, core::sync::atomic::Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::Path;

    use super::{Edge, ORDER};

    /// The table of `docs/internals/flush_order.md`.
    fn document() -> String {
        let mut text = String::from(
            "# The order of durable writes\n\n\
             Printed from `crates/cowl-qcow2/src/flush/order.rs` by its test;\n\
             `COWL_WRITE_DOCS=1 cargo test -p cowl-qcow2 order` writes it anew.\n\n\
             The first has to be durable before the second is written.\n\n\
             | edge | first | then | otherwise | kept by |\n\
             |---|---|---|---|---|\n",
        );
        for rule in ORDER {
            let (edge, first, then) = (rule.edge, rule.first, rule.then);
            let (otherwise, kept_by) = (rule.otherwise, rule.kept_by);
            writeln!(text, "| `{edge:?}` | {first} | {then} | {otherwise} | {kept_by} |")
                .expect("writing to memory");
        }
        text
    }

    #[test]
    fn the_document_is_the_table() {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/internals/flush_order.md");
        if std::env::var_os("COWL_WRITE_DOCS").is_some() {
            std::fs::write(&path, document()).expect("the folder is there");
        }
        let found = std::fs::read_to_string(&path).expect("the document is there");
        assert_eq!(found, document());
    }

    #[test]
    fn every_edge_is_in_the_table_once_and_holds() {
        for (number, rule) in (1..).zip(ORDER) {
            assert_eq!(rule.edge as u8, number);
            assert!(rule.edge.holds());
        }
        assert_eq!(ORDER.last().expect("seven").edge, Edge::BitmapMarkBeforeWrite);
    }
}
