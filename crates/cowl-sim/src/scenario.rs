//! Short histories written by hand: each is one way in which an engine is known to have gone wrong.
//!
//! Clusters have the size of a sector, so that a state is a choice of clusters and tables, and
//! every choice can be tried. The seed only decides the order in which things happen.

use cowl_qcow2::Preallocation;

use crate::geometry::{Backing, DataFile, Shape};
use crate::stamp::Texture;
use crate::workload::{Act, Operation, Request, Workload};

/// A history written by hand.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name on command lines.
    pub name: &'static str,
    shape: fn() -> Shape,
    acts: fn() -> Vec<Act>,
}

/// Bytes of a cluster.
const CLUSTER: u64 = 512;

/// Clusters that one L2 table covers.
const L2_ENTRIES: u64 = 64;

/// All of them.
pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "first-write", shape: plain, acts: || vec![tasks(&[&[write(0, 1)]])] },
    Scenario {
        name: "freed-cluster-reused",
        shape: plain,
        acts: || {
            let setup = setup(&[write(0, 2), Operation::Flush]);
            vec![setup, tasks(&[&[zero(0, 1, true), write(10, 2), Operation::Flush]])]
        },
    },
    Scenario {
        name: "discarded-cluster-reused",
        shape: plain,
        acts: || {
            let setup = setup(&[write(0, 3), Operation::Flush]);
            vec![setup, tasks(&[&[discard(1, 1), Operation::Flush, write(10, 2)], &[read(0, 3)]])]
        },
    },
    Scenario {
        name: "neighbour-of-a-zero-cluster",
        shape: plain,
        acts: || {
            let setup = setup(&[write(0, 2), zero(1, 1, false), Operation::Flush]);
            vec![setup, tasks(&[&[bytes(0, CLUSTER + 100)]])]
        },
    },
    Scenario {
        name: "data-file-before-tables",
        shape: || Shape { data_file: DataFile::External, ..overlay() },
        acts: || vec![tasks(&[&[bytes(100, 100), Operation::Flush, bytes(300, 600)]])],
    },
    Scenario {
        name: "part-of-a-preallocated-cluster",
        shape: || Shape { preallocation: Preallocation::Metadata, ..plain() },
        acts: || {
            let parts = [bytes(100, 50), zero(0, 1, false), bytes(200, 50), Operation::Flush];
            vec![tasks(&[&parts])]
        },
    },
    Scenario {
        name: "allocation-beside-a-flush",
        shape: plain,
        acts: || {
            let writer = [write(0, 1), write(4, 1)];
            vec![tasks(&[&writer, &[Operation::Flush, Operation::Flush], &[write(8, 1)]])]
        },
    },
    Scenario {
        name: "shared-clusters-and-tables",
        shape: || Shape { has_snapshot: true, filled_percent: 100, ..plain() },
        acts: || vec![tasks(&[&[bytes(100, 100), Operation::Flush], &[bytes(700, 300)]])],
    },
    Scenario {
        name: "copies-into-a-new-table",
        shape: overlay,
        acts: || {
            let one = [bytes(100, 100), Operation::Flush];
            vec![tasks(&[&one, &[bytes(20 * CLUSTER + 5, 100)], &[Operation::Flush]])]
        },
    },
    Scenario {
        name: "compressed-and-overwritten",
        shape: || Shape { cluster_bits: 12, size: 16 << 12, ..plain() },
        acts: || {
            let texture = Texture::Plain;
            let compressed = Operation::WriteCompressed { at: 0, length: 2 << 12, texture };
            let over = [compressed, Operation::Flush, bytes(100, 100), Operation::Flush];
            vec![tasks(&[&over])]
        },
    },
    Scenario {
        name: "l1-table-grows",
        shape: || Shape { size: 8 * CLUSTER, ..plain() },
        acts: || {
            let size = 70 * L2_ENTRIES * CLUSTER;
            let resize = Act::Resize { number: 90, size };
            let last = size / CLUSTER - 1;
            vec![tasks(&[&[write(0, 1)]]), resize, tasks(&[&[write(last, 1), Operation::Flush]])]
        },
    },
    Scenario {
        name: "size-changes-beside-writes",
        shape: plain,
        acts: || {
            let (length, texture) = (12 * CLUSTER, Texture::Plain);
            let at = (L2_ENTRIES - 4) * CLUSTER;
            let compressed = Operation::WriteCompressed { at, length, texture };
            let setup = setup(&[write(L2_ENTRIES, 8), Operation::Flush]);
            let writer = [compressed, bytes(100, CLUSTER), Operation::Flush];
            vec![setup, tasks(&[&[resize(8), resize(L2_ENTRIES)], &writer])]
        },
    },
    Scenario {
        name: "shrinks-beside-a-write",
        shape: plain,
        acts: || {
            let setup = setup(&[write(20, 1), Operation::Flush]);
            vec![setup, tasks(&[&[resize(8)], &[write(20, 1)]]), tasks(&[&[write(4, 1)]])]
        },
    },
    Scenario {
        name: "grows-with-its-space",
        shape: || Shape { size: 8 * CLUSTER, ..overlay() },
        acts: || {
            let (size, preallocation) = (16 * CLUSTER, Preallocation::Metadata);
            let grow = Operation::Resize { size, preallocation };
            let setup = setup(&[write(0, 6), discard(0, 4), Operation::Flush]);
            let reopen = Act::Reopen { number: 90 };
            vec![setup, reopen, tasks(&[&[grow], &[write(1, 2), Operation::Flush]])]
        },
    },
    Scenario {
        name: "refcount-block-is-added",
        shape: || Shape { refcount_bits: 64, ..plain() },
        acts: || {
            let setup = setup(&[write(0, 50), Operation::Flush]);
            vec![setup, tasks(&[&[write(50, 14), Operation::Flush]])]
        },
    },
    Scenario {
        name: "refcount-table-grows",
        shape: || Shape { refcount_bits: 64, size: 5000 * CLUSTER, ..plain() },
        acts: || {
            let setup = setup(&[write(0, 3780), Operation::Flush]);
            let more = [write(3780, 60), Operation::Flush, write(4500, 3), Operation::Flush];
            vec![setup, tasks(&[&more])]
        },
    },
    Scenario {
        name: "subclusters-over-a-backing-file",
        shape: || Shape { cluster_bits: 14, extended_l2: true, size: 6 << 14, ..overlay() },
        acts: || {
            let zeros = Operation::Zero { at: 1024, length: 512, unmap: true };
            let one = [bytes(100, 100), zeros, Operation::Flush, bytes(1100, 600)];
            vec![tasks(&[&one, &[Operation::Discard { at: 0, length: 1024 }, Operation::Flush]])]
        },
    },
    Scenario {
        name: "delayed-refcounts",
        shape: || Shape { lazy_refcounts: true, ..plain() },
        acts: || {
            let one = [write(0, 2), Operation::Flush, discard(0, 1), Operation::Flush, write(9, 1)];
            vec![tasks(&[&one])]
        },
    },
    Scenario {
        name: "bitmap-that-records-writes",
        shape: || Shape { has_bitmap: true, cluster_bits: 10, ..plain() },
        acts: || vec![tasks(&[&[bytes(0, 1024), Operation::Flush, discard(0, 2)]])],
    },
    Scenario {
        name: "raw-data-file",
        shape: || Shape { data_file: DataFile::Raw, ..plain() },
        acts: || {
            let one = [bytes(100, 900), Operation::Flush, discard(0, 1), bytes(700, 300)];
            vec![tasks(&[&one, &[zero(3, 2, true), Operation::Flush]])]
        },
    },
    Scenario {
        name: "write-through-beside-a-write",
        shape: plain,
        acts: || {
            let (at, length, texture) = (0, CLUSTER, Texture::Plain);
            let through = Operation::WriteThrough { at, length, texture };
            vec![tasks(&[&[through], &[write(1, 1)], &[write(L2_ENTRIES, 1)]])]
        },
    },
];

impl PartialEq for Scenario {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Scenario {}

impl Scenario {
    /// What the disk is like.
    #[must_use]
    pub fn shape(&self) -> Shape {
        (self.shape)()
    }

    /// How many requests come before the matter.
    #[must_use]
    pub fn setup_len(&self) -> usize {
        let lengths = self.workload().acts.into_iter().map(|act| match act {
            Act::Setup(task) => task.len(),
            Act::Tasks(_) | Act::Resize { .. } | Act::Reopen { .. } => 0,
        });
        lengths.sum()
    }

    /// What is done, numbered.
    #[must_use]
    pub fn workload(&self) -> Workload {
        let mut acts = (self.acts)();
        let requests = acts.iter_mut().flat_map(|act| match act {
            Act::Setup(task) => task.iter_mut().collect::<Vec<_>>(),
            Act::Tasks(tasks) => tasks.iter_mut().flatten().collect(),
            Act::Resize { .. } | Act::Reopen { .. } => Vec::new(),
        });
        for (request, number) in requests.zip(1..) {
            request.number = number;
        }
        Workload { acts }
    }
}

/// An empty disk that needs two L2 tables.
fn plain() -> Shape {
    Shape { size: 2 * L2_ENTRIES * CLUSTER, ..Shape::plain() }
}

fn overlay() -> Shape {
    Shape { backing: Backing::Raw(2 * L2_ENTRIES * CLUSTER), ..plain() }
}

fn request(operation: &Operation) -> Request {
    Request { number: 0, operation: *operation, drop_after: None }
}

fn setup(task: &[Operation]) -> Act {
    Act::Setup(task.iter().map(request).collect())
}

fn tasks(tasks: &[&[Operation]]) -> Act {
    Act::Tasks(tasks.iter().map(|task| task.iter().map(request).collect()).collect())
}

fn bytes(at: u64, length: u64) -> Operation {
    Operation::Write { at, length, texture: Texture::Plain }
}

fn write(cluster: u64, count: u64) -> Operation {
    bytes(cluster * CLUSTER, count * CLUSTER)
}

fn read(cluster: u64, count: u64) -> Operation {
    Operation::Read { at: cluster * CLUSTER, length: count * CLUSTER }
}

fn zero(cluster: u64, count: u64, unmap: bool) -> Operation {
    Operation::Zero { at: cluster * CLUSTER, length: count * CLUSTER, unmap }
}

fn resize(clusters: u64) -> Operation {
    Operation::Resize { size: clusters * CLUSTER, preallocation: Preallocation::Off }
}

fn discard(cluster: u64, count: u64) -> Operation {
    Operation::Discard { at: cluster * CLUSTER, length: count * CLUSTER }
}

#[cfg(test)]
mod tests {
    use super::SCENARIOS;
    use crate::{Extent, Plan, SubjectKind, outline};

    #[test]
    fn every_scenario_has_a_disk_it_fits_on() {
        for scenario in SCENARIOS {
            let kind = SubjectKind::from_name(scenario.name).expect("it has a name");
            let plan = Plan::new(kind, 1).exhaustive();
            assert_eq!(plan.extent(), Extent::Tiny);
            assert!(!outline(&plan).0.is_empty(), "{}: the disk cannot be made", scenario.name);
        }
    }
}
