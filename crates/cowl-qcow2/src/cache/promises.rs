//! The promises of [`MetadataCaches`], one test for each method.
//!
//! An order is one of durability: between two writes that are ordered lies a barrier that was
//! issued after the first one had ended and has returned before the second one was issued.

use std::sync::Arc;

use cowl_format::{ByteCount, Header, HostCluster, HostOffset, L2Entry, L2Index};
use cowl_storage::{MemoryStorage, Operation, Purpose, Trace, TraceRecord, TraceStorage};
use pollster::block_on;

use crate::cache::sys::alone::{invalidate_l2, invalidate_rb};
use crate::cache::{CacheDependency, L2Table, MetadataCaches};
use crate::flush::After;
use crate::{BuilderFiles, CreateOptions, Preallocation, create, read_header};

type Caches = MetadataCaches<TraceStorage<MemoryStorage>>;

/// Where a table would lie, in a new image of 4 KiB clusters.
const TABLE: HostCluster = HostCluster::new(20);

struct Rig {
    caches: Caches,
    header: Arc<Header>,
    trace: Trace,
}

fn rig() -> Rig {
    let file = Arc::new(TraceStorage::new(MemoryStorage::new()));
    let files = BuilderFiles { image: Arc::clone(&file), data: None };
    let size = ByteCount::new(1 << 20);
    let options = CreateOptions { cluster_size: 4096, ..CreateOptions::new(size) };
    block_on(create(files, &options, Preallocation::Off)).unwrap();
    let header = Arc::new(block_on(read_header(file.as_ref())).unwrap());
    let trace = file.trace();
    trace.take();
    Rig { caches: Caches::new(&file, &header, 4, 4), header, trace }
}

impl Rig {
    /// The only refcount block of a new image.
    fn block(&self) -> HostCluster {
        HostCluster::new(self.header.refcount_table_offset.get() / 4096 + 1)
    }

    /// Counts a cluster.
    fn count(&self, cluster: u64) {
        let block = block_on(self.caches.rb_get_or_insert(self.block())).unwrap();
        self.caches.set_refcounts(&block, cluster, 1, 1).unwrap();
    }

    /// Links guest cluster `index` in the table.
    fn link(&self, index: u32) {
        let index = L2Index::new(index);
        let table = block_on(self.caches.l2_load(TABLE, index)).unwrap();
        let host = HostOffset::new(30 * 4096);
        let entry = L2Entry::data(host, true, self.header.geometry);
        self.caches.set_entry(&table, index, entry, After::NOTHING).unwrap();
    }

    fn writes(&self, purpose: Purpose) -> Vec<TraceRecord> {
        let is_it = |record: &TraceRecord| {
            record.operation == Operation::Write && record.purpose == Some(purpose)
        };
        self.trace.records().into_iter().filter(is_it).collect()
    }

    fn reads(&self) -> usize {
        self.trace.records().iter().filter(|record| record.operation == Operation::Read).count()
    }

    /// Whether a barrier lies between two writes.
    fn is_ordered(&self, first: &TraceRecord, then: &TraceRecord) -> bool {
        self.trace.records().iter().any(|record| {
            record.operation == Operation::Barrier
                && first.finished.unwrap() < record.issued
                && record.finished.unwrap() < then.issued
        })
    }

    /// Whether the write is durable now.
    fn is_durable(&self, write: &TraceRecord) -> bool {
        self.trace.records().iter().any(|record| {
            record.operation == Operation::Barrier
                && write.finished.unwrap() < record.issued
                && record.finished.is_some()
        })
    }
}

fn entry_of(table: &L2Table, index: u32) -> L2Entry {
    table.slice(L2Index::new(index)).unwrap().entry(index).unwrap()
}

#[test]
fn new_holds_nothing_and_reads_nothing() {
    let rig = rig();
    assert_eq!((rig.caches.weight(), rig.caches.misses(), rig.reads()), (0, 0, 0));
    assert_eq!(rig.caches.direction(), CacheDependency::None);
}

#[test]
fn l2_depends_on_rb_makes_refcounts_durable_before_tables_are_written() {
    let rig = rig();
    block_on(rig.caches.l2_depends_on_rb()).unwrap();
    assert_eq!(rig.caches.direction(), CacheDependency::L2AfterRefcounts);
    // In whatever order they are changed.
    rig.link(0);
    rig.count(30);
    block_on(rig.caches.flush_all()).unwrap();
    let (block, table) = (rig.writes(Purpose::RefcountBlock), rig.writes(Purpose::L2Table));
    assert_eq!((block.len(), table.len()), (1, 1));
    assert!(rig.is_ordered(&block[0], &table[0]));
    // Said again, it costs nothing.
    rig.trace.take();
    block_on(rig.caches.l2_depends_on_rb()).unwrap();
    assert!(rig.trace.records().is_empty());
}

#[test]
fn rb_depends_on_l2_makes_tables_durable_before_refcounts_are_written() {
    let rig = rig();
    rig.link(0);
    block_on(rig.caches.rb_depends_on_l2()).unwrap();
    assert_eq!(rig.caches.direction(), CacheDependency::RefcountsAfterL2);
    rig.count(30);
    block_on(rig.caches.flush_all()).unwrap();
    let (block, table) = (rig.writes(Purpose::RefcountBlock), rig.writes(Purpose::L2Table));
    assert_eq!((block.len(), table.len()), (1, 1));
    assert!(rig.is_ordered(&table[0], &block[0]));
}

#[test]
fn flush_all_makes_both_caches_durable_and_writes_nothing_twice() {
    let rig = rig();
    rig.link(3);
    rig.count(30);
    block_on(rig.caches.flush_all()).unwrap();
    for write in [rig.writes(Purpose::RefcountBlock), rig.writes(Purpose::L2Table)].concat() {
        assert!(rig.is_durable(&write), "{write}");
    }
    rig.trace.take();
    block_on(rig.caches.flush_all()).unwrap();
    assert_eq!(rig.writes(Purpose::RefcountBlock).len() + rig.writes(Purpose::L2Table).len(), 0);
}

#[test]
fn l2_get_or_insert_gives_everybody_the_same_table() {
    let rig = rig();
    let first = block_on(rig.caches.l2_get_or_insert(TABLE)).unwrap();
    let second = block_on(rig.caches.l2_get_or_insert(TABLE)).unwrap();
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(first.host(), HostOffset::new(20 * 4096));
    // A table can be nowhere else's.
    let l1 = rig.header.geometry.host_cluster(rig.header.l1_offset);
    assert!(block_on(rig.caches.l2_get_or_insert(l1)).is_err());
}

#[test]
fn l2_insert_writes_the_whole_table_with_the_next_flush() {
    let rig = rig();
    let table = rig.caches.new_table(TABLE);
    block_on(rig.caches.l2_insert(TABLE, Arc::clone(&table))).unwrap();
    let found = block_on(rig.caches.l2_get_or_insert(TABLE)).unwrap();
    assert!(Arc::ptr_eq(&found, &table));
    rig.link(7);
    assert_eq!(rig.reads(), 0, "nothing in the file is of interest");
    block_on(rig.caches.flush_all()).unwrap();
    let writes = rig.writes(Purpose::L2Table);
    let range = Some((HostOffset::new(20 * 4096), ByteCount::new(4096)));
    assert_eq!(writes.iter().map(|write| write.range).collect::<Vec<_>>(), [range]);
    assert!(rig.is_durable(&writes[0]));
}

#[test]
fn rb_get_or_insert_gives_everybody_the_same_block() {
    let rig = rig();
    let first = block_on(rig.caches.rb_get_or_insert(rig.block())).unwrap();
    let second = block_on(rig.caches.rb_get_or_insert(rig.block())).unwrap();
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(rig.reads(), 1);
    assert_eq!(first.get(cowl_format::RefcountBlockIndex::new(0)), 1, "the header's cluster");
}

#[test]
fn rb_insert_replaces_the_block() {
    let rig = rig();
    let bytes = cowl_storage::IoBuffer::zeroed(4096);
    let block = rig.caches.new_block(HostCluster::new(40), bytes, rig.header.geometry);
    block_on(rig.caches.rb_insert(HostCluster::new(40), Arc::clone(&block))).unwrap();
    let found = block_on(rig.caches.rb_get_or_insert(HostCluster::new(40))).unwrap();
    assert!(Arc::ptr_eq(&found, &block));
    assert_eq!(rig.reads(), 0);
    rig.caches.set_refcounts(&block, 5, 1, 1).unwrap();
    block_on(rig.caches.flush_rb()).unwrap();
    assert_eq!(rig.writes(Purpose::RefcountBlock).len(), 1);
}

#[test]
fn flush_rb_makes_refcounts_durable_and_leaves_tables_alone() {
    let rig = rig();
    rig.link(0);
    rig.count(30);
    block_on(rig.caches.flush_rb()).unwrap();
    let writes = rig.writes(Purpose::RefcountBlock);
    assert_eq!((writes.len(), rig.writes(Purpose::L2Table).len()), (1, 0));
    assert!(rig.is_durable(&writes[0]));
}

#[test]
fn invalidate_l2_forgets_what_the_file_has_and_nothing_else() {
    let rig = rig();
    rig.link(0);
    invalidate_l2(&rig.caches).unwrap();
    let table = block_on(rig.caches.l2_load(TABLE, L2Index::new(0))).unwrap();
    assert_ne!(entry_of(&table, 0), L2Entry::default(), "a change that is not written stays");
    block_on(rig.caches.flush_all()).unwrap();
    rig.trace.take();
    invalidate_l2(&rig.caches).unwrap();
    let again = block_on(rig.caches.l2_load(TABLE, L2Index::new(0))).unwrap();
    assert!(!Arc::ptr_eq(&table, &again));
    assert_eq!((rig.reads(), entry_of(&again, 0)), (1, entry_of(&table, 0)));
}

#[test]
fn invalidate_rb_forgets_what_the_file_has_and_nothing_else() {
    let rig = rig();
    rig.count(30);
    let index = cowl_format::RefcountBlockIndex::new(30);
    invalidate_rb(&rig.caches).unwrap();
    let block = block_on(rig.caches.rb_get_or_insert(rig.block())).unwrap();
    assert_eq!(block.get(index), 1, "a change that is not written stays");
    block_on(rig.caches.flush_rb()).unwrap();
    rig.trace.take();
    invalidate_rb(&rig.caches).unwrap();
    let again = block_on(rig.caches.rb_get_or_insert(rig.block())).unwrap();
    assert!(!Arc::ptr_eq(&block, &again));
    assert_eq!((rig.reads(), again.get(index)), (1, 1));
}

#[test]
fn caches_may_be_shared_by_threads() {
    const fn is_shared<T: Send + Sync>() {}
    const { is_shared::<Caches>() };
}
