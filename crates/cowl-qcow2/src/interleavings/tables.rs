//! Both metadata caches over a file: changes, write-backs and evictions at once.

use std::sync::{Arc, Mutex};

use cowl_format::{ByteCount, Header, HostCluster, HostOffset, L2Entry, L2Index};
use cowl_storage::{IoBuffer, MemoryStorage, Purpose, Storage};
use shuttle::future::block_on;

use crate::flush::After;
use crate::interleavings::stage::Stage;
use crate::interleavings::{drop_after, explore, threads};
use crate::{
    BuilderFiles, CreateOptions, MetadataCaches, Preallocation, RefBlock, create, read_header,
};

const CLUSTER: u64 = 1024;

/// Where tables would lie: beyond everything that the image has.
const TABLES: [HostCluster; 3] = [HostCluster::new(40), HostCluster::new(41), HostCluster::new(42)];

/// An image without content.
struct Empty {
    file: MemoryStorage,
    header: Arc<Header>,
}

impl Empty {
    fn new() -> Self {
        let file = Arc::new(MemoryStorage::new());
        let files = BuilderFiles { image: Arc::clone(&file), data: None };
        let size = ByteCount::new(256 << 10);
        let options = CreateOptions { cluster_size: CLUSTER, ..CreateOptions::new(size) };
        pollster::block_on(create(files, &options, Preallocation::Off)).unwrap();
        let header = Arc::new(pollster::block_on(read_header(file.as_ref())).unwrap());
        let length = ByteCount::new(64 * CLUSTER);
        pollster::block_on(file.set_len(length, Purpose::FileLength)).unwrap();
        Self { file: file.snapshot(), header }
    }

    /// Caches with room for nothing: each load presses out what may go.
    fn rig(&self) -> Rig {
        let stage = Arc::new(Stage::new(self.file.snapshot()));
        let caches = MetadataCaches::new(&stage, &self.header, 0, 0);
        Rig { stage, caches, header: Arc::clone(&self.header) }
    }
}

struct Rig {
    stage: Arc<Stage>,
    caches: MetadataCaches<Stage>,
    header: Arc<Header>,
}

impl Rig {
    fn entry(&self, value: u64) -> L2Entry {
        L2Entry::data(HostOffset::new(value * CLUSTER), true, self.header.geometry)
    }

    async fn link(&self, table: HostCluster, index: u32, value: u64) {
        let index = L2Index::new(index);
        loop {
            let table = self.caches.l2_load(table, index).await.unwrap();
            if self.caches.set_entry(&table, index, self.entry(value), After::NOTHING).is_ok() {
                return;
            }
        }
    }

    async fn look(&self, table: HostCluster, index: u32) -> L2Entry {
        let index = L2Index::new(index);
        let table = self.caches.l2_load(table, index).await.unwrap();
        table.slice(index).unwrap().entry(index.get()).unwrap()
    }

    /// The only refcount block of a new image.
    fn block(&self) -> HostCluster {
        HostCluster::new(self.header.refcount_table_offset.get() / CLUSTER + 1)
    }

    /// If the change of a refcount counts as durable, it is.
    fn assert_durable(&self, (block, change, cluster): &(Arc<RefBlock>, u64, u64)) {
        if block.is_durable(*change) {
            let at = HostOffset::new(self.block().get() * CLUSTER + cluster * 2);
            let mut bytes = [0; 2];
            let file = self.stage.durable();
            file.try_read(at, &mut bytes, Purpose::RefcountBlock).unwrap().unwrap();
            assert_eq!(bytes, [0, 1], "cluster {cluster} counts as durable");
        }
    }

    fn in_file(file: &MemoryStorage, table: HostCluster, index: u64) -> u64 {
        let mut bytes = [0; 8];
        let at = HostOffset::new(table.get() * CLUSTER + index * 8);
        file.try_read(at, &mut bytes, Purpose::L2Table).unwrap().unwrap();
        u64::from_be_bytes(bytes)
    }
}

/// Threads that link, one that loads other tables, one that writes back.
fn link_while_written(rig: &Rig, write_back: impl Fn() + Send + Sync) {
    threads(4, |thread| match thread {
        0 | 1 => {
            for step in 0..2 {
                // In one slice, in another one of the same table, in another table.
                let (table, index) = [(TABLES[0], 0), (TABLES[step], 70)][step];
                let index = index + u32::try_from(thread).unwrap();
                let value = 8 + thread;
                block_on(async {
                    rig.link(table, index, value).await;
                    assert_eq!(rig.look(table, index).await, rig.entry(value), "not found");
                });
            }
        }
        2 => {
            block_on(rig.look(TABLES[2], 3));
            block_on(rig.look(TABLES[1], 3));
        }
        _ => write_back(),
    });
}

/// Everything linked above is in this file.
fn assert_linked(rig: &Rig, file: &MemoryStorage) {
    for (table, index) in [(TABLES[0], 0), (TABLES[1], 70)] {
        for thread in 0..2 {
            let raw = Rig::in_file(file, table, index + thread);
            assert_eq!(raw, rig.entry(8 + thread).raw, "{table:?} {index} {thread}");
        }
    }
}

// Catches: tables that take changes after they have left (`add_unclean` without its look),
// `retire` that lets a dirty table go, a slice that counts as clean from its copy on, `written`
// that calls a slice clean which changed meanwhile.
#[test]
fn no_change_is_lost_between_memory_and_file() {
    let empty = Empty::new();
    explore(100, move || {
        let rig = empty.rig();
        link_while_written(&rig, || {
            block_on(rig.caches.flush_all()).unwrap();
            block_on(rig.caches.flush_all()).unwrap();
        });
        block_on(rig.caches.flush_all()).unwrap();
        assert!(rig.caches.dirty().is_empty());
        assert_linked(&rig, &rig.stage.durable());
        // Nothing is left that holds a table: all of them may go.
        rig.caches.forget_l2();
        assert_eq!(rig.caches.weight(), 0, "something dirty is left");
    });
}

// Catches: `Taken` that does not give back what was not written, and gives it back only in part.
#[test]
fn a_write_back_that_failed_or_was_dropped_is_made_up_for() {
    let empty = Empty::new();
    explore(100, move || {
        let rig = empty.rig();
        rig.stage.fail_write(Purpose::L2Table);
        link_while_written(&rig, || {
            drop_after(3, rig.caches.flush_all());
            block_on(rig.caches.flush_all()).ok();
        });
        // Whoever drops a write waits for the storage before the next one: see `Layer::recover`.
        block_on(rig.stage.settle());
        block_on(rig.caches.flush_all()).ok();
        block_on(rig.caches.flush_all()).unwrap();
        assert_linked(&rig, &rig.stage.durable());
    });
}

// Catches: `made_durable` before the barrier, `take_copy` that reports a change made after the
// copy.
#[test]
fn a_refcount_that_counts_as_durable_is_durable() {
    let empty = Empty::new();
    explore(600, move || {
        let rig = empty.rig();
        let changes = Mutex::new(Vec::new());
        threads(4, |thread| {
            if thread == 2 {
                (0..3).for_each(|_| block_on(rig.caches.flush_rb()).unwrap());
                return;
            }
            if thread == 3 {
                // Anything is a block to the cache, and presses others out.
                for other in TABLES {
                    block_on(rig.caches.rb_get_or_insert(other)).unwrap();
                }
                return;
            }
            let cluster = 50 + thread;
            let change = loop {
                let block = block_on(rig.caches.rb_get_or_insert(rig.block())).unwrap();
                if let Some(change) = rig.caches.set_refcounts(&block, cluster, 1, 1) {
                    break (block, change, cluster);
                }
            };
            for _ in 0..8 {
                rig.assert_durable(&change);
                shuttle::thread::yield_now();
            }
            changes.lock().unwrap().push(change);
        });
        let changes = changes.into_inner().unwrap();
        changes.iter().for_each(|change| rig.assert_durable(change));
        block_on(rig.caches.flush_rb()).unwrap();
        assert!(changes.iter().all(|(block, change, _)| block.is_durable(*change)));
        changes.iter().for_each(|change| rig.assert_durable(change));
    });
}

// Catches: a slice whose copy is taken before the lock, `retire` that lets a new table go.
#[test]
fn a_new_table_is_written_whole_whatever_changes_meanwhile() {
    let empty = Empty::new();
    explore(100, move || {
        let rig = empty.rig();
        let garbage = IoBuffer::from_slice(&[0xff; 1024]);
        let at = HostOffset::new(TABLES[0].get() * CLUSTER);
        block_on(rig.stage.write(at, garbage, Purpose::L2Table)).0.unwrap();
        let table = rig.caches.new_table(TABLES[0]);
        block_on(rig.caches.l2_insert(TABLES[0], table)).unwrap();
        threads(3, |thread| match thread {
            0 => block_on(rig.link(TABLES[0], 0, 8)),
            1 => {
                block_on(rig.link(TABLES[0], 70, 9));
                block_on(rig.look(TABLES[1], 0));
            }
            _ => block_on(rig.caches.flush_all()).unwrap(),
        });
        block_on(rig.caches.flush_all()).unwrap();
        let file = rig.stage.durable();
        for index in 0..128 {
            let expected = match index {
                0 => rig.entry(8).raw,
                70 => rig.entry(9).raw,
                _ => 0,
            };
            assert_eq!(Rig::in_file(&file, TABLES[0], index), expected, "{index}");
        }
        rig.caches.forget_l2();
        assert_eq!(rig.caches.weight(), 0, "something dirty is left");
    });
}
