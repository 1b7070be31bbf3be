//! Hits in the caches of tables, by themselves.

use std::cell::Cell;
use std::sync::Arc;

use cowl_format::{HostCluster, HostOffset, L1Entry, RefcountTableEntry};
use cowl_qcow2::{
    AsyncLruCache, AsyncLruCacheBackend, Charge, Error, L2Table, MetadataCaches, RefBlock,
    read_header,
};
use cowl_storage::{IoBuffer, MemoryStorage, Purpose, Storage};
use pollster::block_on;

use crate::disk::{File, file_with_tables};
use crate::{Body, Subject};

/// Keys of the cache of numbers.
const KEYS: u64 = 1024;

/// Tables or blocks that the caches may hold.
const ENTRIES: usize = 16;

/// Hits.
pub const BODIES: &[Body] = &[
    Body {
        name: "cache/peek",
        unit: "AsyncLruCache::peek of one of 1024 values",
        operations: 2000,
        set_up: || Box::new(Numbers::new(peek)),
    },
    Body {
        name: "cache/get",
        unit: "AsyncLruCache::get_or_insert of one of 1024 values",
        operations: 2000,
        set_up: || Box::new(Numbers::new(get)),
    },
    Body {
        name: "cache/l2",
        unit: "MetadataCaches::l2_get_or_insert, in memory",
        operations: 2000,
        set_up: || Box::new(Tables::new(Kind::L2)),
    },
    Body {
        name: "cache/refcount-block",
        unit: "MetadataCaches::rb_get_or_insert, in memory",
        operations: 2000,
        set_up: || Box::new(Tables::new(Kind::RefcountBlock)),
    },
];

type Cache = AsyncLruCache<u64, Number, Squares>;

/// A value that is computed, with the charge that every cached value keeps.
struct Number {
    value: u64,
    charge: Charge,
}

struct Squares;

impl AsyncLruCacheBackend for Squares {
    type Key = u64;
    type Value = Number;

    async fn load(&self, key: u64, charge: Charge) -> Result<Number, Error> {
        charge.add(size_of::<Number>());
        Ok(Number { value: key * key, charge })
    }

    fn charge(value: &Number) -> &Charge {
        &value.charge
    }
}

fn peek(cache: &Cache, key: u64) -> u64 {
    cache.peek(key, |number| number.value).expect("all of them are there")
}

fn get(cache: &Cache, key: u64) -> u64 {
    block_on(cache.get_or_insert(key)).expect("all of them are there").value
}

struct Numbers {
    cache: Cache,
    look: fn(&Cache, u64) -> u64,
    sum: Cell<u64>,
}

impl Numbers {
    fn new(look: fn(&Cache, u64) -> u64) -> Self {
        let cache = AsyncLruCache::new(Squares, usize::MAX);
        for key in 0..KEYS {
            block_on(cache.get_or_insert(key)).expect("a square is always found");
        }
        Self { cache, look, sum: Cell::new(0) }
    }
}

impl Subject for Numbers {
    fn operate(&self, number: u64) {
        let value = (self.look)(&self.cache, number % KEYS);
        self.sum.set(self.sum.get() + value);
    }

    fn check(&self, operations: u64) {
        let sum: u64 = (0..operations).map(|number| (number % KEYS).pow(2)).sum();
        assert_eq!(self.sum.get(), sum);
        assert_eq!(self.cache.misses(), KEYS, "every look was a hit");
    }
}

#[derive(Clone, Copy)]
enum Kind {
    L2,
    RefcountBlock,
}

/// The caches of an image, alone.
struct Tables {
    caches: MetadataCaches<MemoryStorage>,
    kind: Kind,
    l2: (HostCluster, Arc<L2Table>),
    block: (HostCluster, Arc<RefBlock>),
    misses: u64,
    hits: Cell<u64>,
}

impl Tables {
    fn new(kind: Kind) -> Self {
        let file = file_with_tables(1);
        let header = block_on(read_header(file.as_ref())).expect("the header is ours");
        let header = Arc::new(header);
        let geometry = header.geometry;
        let caches = MetadataCaches::new(&file, &header, ENTRIES, ENTRIES);
        let table = L1Entry::from_raw(word(&file, header.l1_offset)).table(geometry);
        let table = table.ok().flatten().expect("a cluster is mapped");
        let table = geometry.host_cluster(table);
        let block = RefcountTableEntry::from_raw(word(&file, header.refcount_table_offset));
        let block = block.block(geometry).ok().flatten().expect("clusters are counted");
        let block = geometry.host_cluster(block);
        let l2 = block_on(caches.l2_get_or_insert(table)).expect("memory has it");
        let first_block = block_on(caches.rb_get_or_insert(block)).expect("memory has it");
        let misses = caches.misses();
        let (l2, block) = ((table, l2), (block, first_block));
        Self { caches, kind, l2, block, misses, hits: Cell::new(0) }
    }
}

/// The first entry of a table.
fn word(file: &File, at: HostOffset) -> u64 {
    let (result, bytes) = block_on(file.read(at, IoBuffer::zeroed(8), Purpose::L1Table));
    result.expect("memory has it");
    u64::from_be_bytes(bytes[..].try_into().expect("8 bytes"))
}

impl Subject for Tables {
    fn operate(&self, _number: u64) {
        let is_hit = match self.kind {
            Kind::L2 => {
                let (cluster, table) = &self.l2;
                let found = block_on(self.caches.l2_get_or_insert(*cluster));
                Arc::ptr_eq(&found.expect("memory has it"), table)
            }
            Kind::RefcountBlock => {
                let (cluster, block) = &self.block;
                let found = block_on(self.caches.rb_get_or_insert(*cluster));
                Arc::ptr_eq(&found.expect("memory has it"), block)
            }
        };
        self.hits.set(self.hits.get() + u64::from(is_hit));
    }

    fn check(&self, operations: u64) {
        assert_eq!(self.hits.get(), operations);
        assert_eq!(self.caches.misses(), self.misses);
    }
}
