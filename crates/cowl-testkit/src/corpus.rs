//! The recipes of all fixtures.
//!
//! A recipe is a list of steps for one folder. Images are small: a few MiB of disk, of which a part
//! is written with patterns at odd offsets, so that partial clusters and copy-on-write occur.

use std::path::Path;

use crate::fixture::{Feature, Fixture};
use crate::oracle::{self, Tool};
use crate::poke::{poke, read_at};
use crate::random::Random;

/// How to make one fixture.
pub(crate) struct Recipe {
    name: String,
    steps: Vec<Step>,
}

enum Step {
    Img(Vec<String>),
    Io(Vec<String>),
    Change(Box<dyn Fn(&Path)>),
}

impl Recipe {
    /// Makes the fixture in `directory`.
    pub(crate) fn carry_out(&self, directory: &Path) {
        for step in &self.steps {
            match step {
                Step::Img(arguments) => {
                    let what = format!("qemu-img {}", arguments.join(" "));
                    drop(oracle::run(Tool::Img, directory, arguments).expect_success(&what));
                }
                Step::Io(arguments) => {
                    let what = format!("qemu-io {}", arguments.join(" "));
                    let output = oracle::run(Tool::Io, directory, arguments).expect_success(&what);
                    let complained = output.stdout.contains("failed");
                    assert!(!complained, "{what}: {}", output.stdout);
                }
                Step::Change(change) => change(&directory.join(&self.name)),
            }
        }
    }
}

/// All fixtures, and how to make them, in an order in which each finds what it stands upon.
pub(crate) fn recipes() -> (Vec<Fixture>, Vec<Recipe>) {
    let mut book = Book::default();
    raw_images(&mut book);
    geometries(&mut book);
    contents(&mut book);
    chains(&mut book);
    data_files(&mut book);
    snapshots_and_bitmaps(&mut book);
    preallocated(&mut book);
    encrypted(&mut book);
    marked(&mut book);
    damaged(&mut book);
    unopenable(&mut book);
    (book.fixtures, book.recipes)
}

#[derive(Default)]
struct Book {
    fixtures: Vec<Fixture>,
    recipes: Vec<Recipe>,
}

/// Adds steps to the recipe at hand.
struct Page<'a> {
    recipe: &'a mut Recipe,
}

impl Book {
    /// Begins a fixture.
    fn page(&mut self, name: &str, features: &[Feature]) -> Page<'_> {
        self.fixtures.push(Fixture { name: name.into(), features: features.into() });
        self.recipes.push(Recipe { name: name.into(), steps: Vec::new() });
        Page { recipe: self.recipes.last_mut().expect("one was pushed") }
    }
}

impl Page<'_> {
    fn name(&self) -> String {
        self.recipe.name.clone()
    }

    fn img(self, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        self.recipe.steps.push(Step::Img(arguments));
        self
    }

    /// A qcow2 image with the `-o` list `options`.
    fn create(self, options: &str, size: &str) -> Self {
        let name = self.name();
        let options = if options.is_empty() { "compat=1.1" } else { options };
        self.img(&["create", "-q", "-f", "qcow2", "-o", options, &name, size])
    }

    /// A qcow2 image upon `backing`.
    fn overlay(self, backing: &str, format: &str, options: &str, size: Option<&str>) -> Self {
        let name = self.name();
        let options = if options.is_empty() { "compat=1.1" } else { options };
        let mut arguments =
            vec!["create", "-q", "-f", "qcow2", "-o", options, "-b", backing, "-F", format, &name];
        arguments.extend(size);
        self.img(&arguments)
    }

    /// Runs commands of qemu-io on the image.
    fn io(self, commands: &[&str]) -> Self {
        let name = self.name();
        let mut arguments: Vec<String> = ["-f", "qcow2"].map(str::to_owned).to_vec();
        if self.recipe.steps.is_empty() {
            arguments[1] = "raw".into();
        }
        for command in commands {
            arguments.extend(["-c".to_owned(), (*command).to_owned()]);
        }
        arguments.push(name);
        self.recipe.steps.push(Step::Io(arguments));
        self
    }

    /// Patterns at odd offsets, different for each image, within the first `size` bytes.
    fn scatter(self, size: u64, count: u64, length_max: u64) -> Self {
        let seed =
            self.name().bytes().fold(7, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte));
        let mut random = Random::new(seed);
        let commands: Vec<String> = (0..count)
            .map(|_| {
                let length = 1 + random.below(length_max.min(size / 4));
                let offset = random.below(size - length);
                format!("write -q -P {} {offset} {length}", 1 + random.below(255))
            })
            .collect();
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        self.io(&commands)
    }

    fn change(self, change: impl Fn(&Path) + 'static) -> Self {
        self.recipe.steps.push(Step::Change(Box::new(change)));
        self
    }
}

const MIB: u64 = 1 << 20;

fn raw_images(book: &mut Book) {
    let make = |size: u64| {
        move |path: &Path| {
            let file = std::fs::File::create(path).expect("the folder takes files");
            file.set_len(size).expect("a file can be long");
        }
    };
    let raw = [Feature::Raw];
    book.page("raw-empty", &raw).change(make(0));
    book.page("raw-hole", &raw).change(make(3 * MIB));
    book.page("raw-sparse", &raw).change(make(3 * MIB)).change(|path| {
        poke(path, 65536, &[1; 5000]);
        poke(path, 2 * MIB, &[2; 100_000]);
    });
    book.page("raw-short", &raw).change(make(MIB)).change(|path| poke(path, 0, &[3; 1 << 20]));
    let odd = [Feature::Raw, Feature::OddSize];
    book.page("raw-odd", &odd).change(make(MIB + 777)).change(|path| {
        poke(path, MIB + 500, &[4; 277]);
    });
    book.page("raw-garbage", &odd).change(|path| {
        let mut random = Random::new(1);
        let bytes: Vec<u8> = (0..100_000).map(|_| random.number().to_le_bytes()[0]).collect();
        std::fs::write(path, bytes).expect("the folder takes files");
    });
}

fn geometries(book: &mut Book) {
    for cluster_size in [512, 1024, 4096, 16384, 65536, 262_144, 2 * MIB] {
        let features = [Feature::ClusterSize(cluster_size)];
        let size = if cluster_size == 2 * MIB { 16 * MIB } else { 4 * MIB };
        book.page(&format!("clusters-{cluster_size}"), &features)
            .create(&format!("cluster_size={cluster_size}"), &size.to_string())
            .scatter(size, 12, 200_000);
    }
    for bits in [1, 2, 4, 8, 32, 64] {
        book.page(&format!("refcounts-{bits}"), &[Feature::RefcountBits(bits)])
            .create(&format!("refcount_bits={bits},cluster_size=4096"), "4M")
            .scatter(4 * MIB, 8, 100_000);
    }
    for cluster_size in [512, 65536, 2 * MIB] {
        let features = [Feature::Version2, Feature::ClusterSize(cluster_size)];
        book.page(&format!("v2-clusters-{cluster_size}"), &features)
            .create(&format!("compat=0.10,cluster_size={cluster_size}"), "4M")
            .scatter(4 * MIB, 8, 100_000);
    }
    for cluster_size in [16384, 65536, 2 * MIB] {
        let features = [Feature::ExtendedL2, Feature::Zero, Feature::Discard];
        book.page(&format!("subclusters-{cluster_size}"), &features)
            .create(&format!("extended_l2=on,cluster_size={cluster_size}"), "8M")
            .scatter(8 * MIB, 12, 30_000)
            .io(&["write -q -z 100k 40k", "write -q -zu 4M 128k", "discard -q 5M 1M"]);
    }
    for (name, size) in [("odd-513", 513), ("odd-100000", 100_000), ("odd-1M+512", MIB + 512)] {
        book.page(name, &[Feature::OddSize])
            .create("", &size.to_string())
            .io(&[&format!("write -q -P 9 0 {size}")]);
    }
    book.page("empty", &[]).create("", "2M");
    book.page("size-0", &[]).create("", "0");
    book.page("l2-sparse", &[Feature::ClusterSize(512)]).create("cluster_size=512", "1G").io(&[
        "write -q -P 1 0 1k",
        "write -q -P 2 512M 1k",
        "write -q -P 3 1073741312 512",
    ]);
}

fn contents(book: &mut Book) {
    book.page("zeros", &[Feature::Zero, Feature::Discard])
        .create("", "4M")
        .scatter(4 * MIB, 10, 200_000)
        .io(&["write -q -z 1M 200k", "write -q -zu 2M 256k", "discard -q 3M 256k"]);
    book.page("v2-zeros", &[Feature::Version2, Feature::Discard])
        .create("compat=0.10", "4M")
        .scatter(4 * MIB, 10, 200_000)
        .io(&["write -q -z 1M 200k", "discard -q 3M 256k"]);
    for (kind, feature) in [("zlib", Feature::Zlib), ("zstd", Feature::Zstd)] {
        let compressed = [feature];
        for cluster_size in [512, 4096, 65536, 2 * MIB] {
            let name = format!("{kind}-{cluster_size}");
            let options = format!("compression_type={kind},cluster_size={cluster_size}");
            book.page(&name, &compressed).img(&[
                "convert",
                "-q",
                "-c",
                "-f",
                "qcow2",
                "-O",
                "qcow2",
                "-o",
                &options,
                "clusters-65536",
                &name,
            ]);
        }
        book.page(&format!("{kind}-mixed"), &[feature, Feature::Zero])
            .create(&format!("compression_type={kind}"), "4M")
            .io(&[
                "write -q -c -P 1 0 64k",
                "write -q -c -P 2 64k 64k",
                "write -q -c -P 3 1M 512k",
                "write -q -P 4 1100k 30k",
                "write -q -z 128k 64k",
                "write -q -P 5 3M 100k",
            ]);
        book.page(&format!("{kind}-subclusters"), &[feature, Feature::ExtendedL2])
            .create(&format!("compression_type={kind},extended_l2=on"), "4M")
            .io(&["write -q -c -P 1 0 64k", "write -q -P 2 70k 3k", "write -q -c -P 3 1M 256k"]);
    }
    book.page("v2-zlib", &[Feature::Version2, Feature::Zlib]).create("compat=0.10", "4M").io(&[
        "write -q -c -P 1 0 64k",
        "write -q -P 2 65k 1k",
        "write -q -c -P 3 1M 512k",
    ]);
    book.page("zlib-odd", &[Feature::Zlib, Feature::OddSize])
        .create("", "100000")
        .io(&["write -q -c -P 1 0 64k", "write -q -c -P 2 64k 34816"]);
    book.page("lazy", &[Feature::LazyRefcounts]).create("lazy_refcounts=on", "4M").scatter(
        4 * MIB,
        6,
        100_000,
    );
}

fn chains(book: &mut Book) {
    let backing = [Feature::Backing];
    book.page("over-raw", &backing).overlay("raw-sparse", "raw", "", None).scatter(
        3 * MIB,
        6,
        50_000,
    );
    book.page("over-raw-shorter", &backing)
        .overlay("raw-short", "raw", "", Some("4M"))
        .io(&["write -q -P 7 900k 300k", "write -q -z 3M 64k"]);
    book.page("over-raw-longer", &backing)
        .overlay("raw-sparse", "raw", "", Some("1M"))
        .io(&["write -q -P 7 100k 10k"]);
    book.page("over-raw-odd", &[Feature::Backing, Feature::OddSize])
        .overlay("raw-odd", "raw", "", Some("2000000"))
        .io(&["write -q -P 7 1000000 100"]);
    book.page("over-qcow2", &[Feature::Backing, Feature::Zero, Feature::Discard])
        .overlay("zeros", "qcow2", "", None)
        .scatter(4 * MIB, 6, 50_000)
        .io(&["write -q -z 1500k 100k", "discard -q 3M 128k"]);
    book.page("over-over-qcow2", &[Feature::Backing, Feature::ClusterSize(4096)])
        .overlay("over-qcow2", "qcow2", "cluster_size=4096", Some("6M"))
        .scatter(6 * MIB, 8, 20_000);
    book.page("over-raw-shorter-subclusters", &[Feature::Backing, Feature::ExtendedL2])
        .overlay("raw-sparse", "raw", "extended_l2=on", Some("12M"))
        .scatter(12 * MIB, 12, 10_000);
    book.page("over-zlib", &[Feature::Backing, Feature::Zlib])
        .overlay("zlib-mixed", "qcow2", "", None)
        .io(&["write -q -P 8 10k 1k", "write -q -c -P 9 64k 64k"]);
    book.page("v2-over-raw", &[Feature::Backing, Feature::Version2])
        .overlay("raw-sparse", "raw", "compat=0.10", None)
        .scatter(3 * MIB, 6, 50_000);
    book.page("subclusters-over-raw", &[Feature::Backing, Feature::ExtendedL2, Feature::Zero])
        .overlay("raw-sparse", "raw", "extended_l2=on", None)
        .io(&["write -q -P 7 66k 3k", "write -q -z 130k 9k", "write -q -P 8 2M 70k"]);
    book.page("over-missing", &[Feature::Backing, Feature::BackingMissing]).img(&[
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-b",
        "nowhere.qcow2",
        "-F",
        "qcow2",
        "over-missing",
        "1M",
    ]);
    book.page("over-json", &backing).img(&[
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-b",
        "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"raw-short\"}}",
        "-F",
        "raw",
        "over-json",
        "1M",
    ]);
}

fn data_files(book: &mut Book) {
    book.page("data-file", &[Feature::DataFile, Feature::Zero, Feature::Discard])
        .create("data_file=data-file.data", "4M")
        .scatter(4 * MIB, 8, 100_000)
        .io(&["write -q -z 1M 128k", "discard -q 2M 128k"]);
    book.page("data-file-raw", &[Feature::DataFile, Feature::Zero])
        .create("data_file=data-file-raw.data,data_file_raw=on", "4M")
        .scatter(4 * MIB, 8, 100_000)
        .io(&["write -q -z 1M 128k"]);
    book.page("data-file-subclusters", &[Feature::DataFile, Feature::ExtendedL2])
        .create("data_file=data-file-subclusters.data,extended_l2=on", "4M")
        .scatter(4 * MIB, 8, 10_000);
    // The first cluster of a data file is at offset 0; here it is zero, and says so.
    book.page("data-file-zero-first", &[Feature::DataFile, Feature::Zero])
        .create("data_file=data-file-zero-first.data,data_file_raw=on", "1M")
        .io(&["write -q -P 1 0 128k", "write -q -z -u 0 64k"]);
}

fn snapshots_and_bitmaps(book: &mut Book) {
    for (name, options, feature) in [
        ("snapshots", "compat=1.1", Feature::Snapshots),
        ("v2-snapshots", "compat=0.10", Feature::Version2),
        ("snapshots-subclusters", "extended_l2=on", Feature::ExtendedL2),
        ("snapshots-refcounts-2", "refcount_bits=2,cluster_size=4k", Feature::RefcountBits(2)),
    ] {
        book.page(name, &[Feature::Snapshots, feature])
            .create(options, "4M")
            .scatter(4 * MIB, 6, 100_000)
            .img(&["snapshot", "-c", "first", name])
            .scatter(3 * MIB, 6, 100_000)
            .img(&["snapshot", "-c", "a second one with a rather long name", name])
            .scatter(2 * MIB, 6, 50_000);
    }
    book.page("over-with-snapshots", &[Feature::Snapshots, Feature::Backing])
        .overlay("raw-sparse", "raw", "", None)
        .img(&["snapshot", "-c", "first", "over-with-snapshots"]);
    book.page("snapshot-of-other-size", &[Feature::Snapshots])
        .create("", "2M")
        .io(&["write -q -P 1 0 2M"])
        .img(&["snapshot", "-c", "small", "snapshot-of-other-size"])
        .img(&["resize", "-q", "-f", "qcow2", "snapshot-of-other-size", "5M"])
        .io(&["write -q -P 2 1M 3M"]);
    book.page("bitmaps", &[Feature::Bitmaps])
        .create("", "4M")
        .img(&["bitmap", "--add", "bitmaps", "every"])
        .img(&["bitmap", "--add", "-g", "4096", "--disable", "bitmaps", "fine"])
        .scatter(4 * MIB, 6, 100_000);
    book.page("bitmap-in-use", &[Feature::Bitmaps])
        .create("", "4M")
        .img(&["bitmap", "--add", "bitmap-in-use", "broken"])
        .img(&["bitmap", "--add", "bitmap-in-use", "fine"])
        .change(|path| {
            let directory = u64::from_be_bytes(read_at(path, bitmap_directory_pointer(path)));
            poke(path, directory + 12, &3u32.to_be_bytes());
        });
}

/// Where the header's bitmap extension keeps the offset of the directory.
fn bitmap_directory_pointer(path: &Path) -> u64 {
    const BITMAPS: u32 = 0x2385_2875;
    let mut at = u64::from(u32::from_be_bytes(read_at(path, 100)));
    loop {
        let kind = u32::from_be_bytes(read_at(path, at));
        let length = u64::from(u32::from_be_bytes(read_at(path, at + 4)));
        assert!(kind != 0, "the image has no bitmaps");
        if kind == BITMAPS {
            return at + 8 + 16;
        }
        at += 8 + length.next_multiple_of(8);
    }
}

fn preallocated(book: &mut Book) {
    let preallocated = [Feature::Preallocated];
    for mode in ["metadata", "falloc", "full"] {
        book.page(&format!("preallocated-{mode}"), &preallocated)
            .create(&format!("preallocation={mode}"), "4M")
            .io(&["write -q -P 5 1M 100k"]);
    }
    book.page("preallocated-data-file", &[Feature::Preallocated, Feature::DataFile]).create(
        "preallocation=metadata,data_file=preallocated-data-file.data,data_file_raw=on",
        "4M",
    );
    book.page("preallocated-subclusters", &[Feature::Preallocated, Feature::ExtendedL2])
        .create("preallocation=metadata,extended_l2=on", "4M");
}

fn encrypted(book: &mut Book) {
    const SECRET: &str = "secret,id=key,data=cowl";
    for (format, feature) in [("luks", Feature::Luks), ("aes", Feature::Aes)] {
        let iterations = if format == "luks" { ",encrypt.iter-time=10" } else { "" };
        let options = format!("encrypt.format={format},encrypt.key-secret=key{iterations}");
        book.page(format, &[feature]).img(&[
            "create", "-q", "-f", "qcow2", "--object", SECRET, "-o", &options, format, "1M",
        ]);
    }
    book.page("v2-aes", &[Feature::Aes, Feature::Version2]).img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "--object",
        SECRET,
        "-o",
        "compat=0.10,encrypt.format=aes,encrypt.key-secret=key",
        "v2-aes",
        "1M",
    ]);
}

fn marked(book: &mut Book) {
    let set = |offset: u64, bit: u8| {
        move |path: &Path| {
            let [byte] = read_at(path, offset);
            poke(path, offset, &[byte | bit]);
        }
    };
    const INCOMPATIBLE: u64 = 79;
    const COMPATIBLE: u64 = 80;
    const AUTOCLEAR: u64 = 88;
    let base = |book: &mut Book, name: &str, features: &[Feature], offset, bit| {
        book.page(name, features)
            .create("", "4M")
            .scatter(4 * MIB, 6, 100_000)
            .change(set(offset, bit));
    };
    base(book, "dirty", &[Feature::Dirty], INCOMPATIBLE, 1);
    base(book, "corrupt-bit", &[Feature::CorruptBit], INCOMPATIBLE, 2);
    base(book, "dirty-and-corrupt", &[Feature::Dirty, Feature::CorruptBit], INCOMPATIBLE, 3);
    base(book, "unknown-compatible", &[Feature::Unknown], COMPATIBLE, 0x80);
    base(book, "unknown-autoclear", &[Feature::Unknown], AUTOCLEAR, 0x80);
    let unopenable = [Feature::Unknown, Feature::Unopenable];
    base(book, "unknown-incompatible", &unopenable, INCOMPATIBLE, 0x80);
    book.page("lazy-dirty", &[Feature::LazyRefcounts, Feature::Dirty, Feature::Damaged])
        .create("lazy_refcounts=on", "4M")
        .scatter(4 * MIB, 6, 100_000)
        .change(set(INCOMPATIBLE, 1))
        .change(|path| poke(path, FIRST_REFCOUNT_BLOCK + 12, &[0; 4]));
}

/// Where qemu-img puts things in a fresh image with 64 KiB clusters.
const FIRST_REFCOUNT_BLOCK: u64 = 2 << 16;
const L1_TABLE: u64 = 3 << 16;
const FIRST_L2_TABLE: u64 = 4 << 16;

fn damaged(book: &mut Book) {
    let base = |book: &mut Book, name: &str, feature: Feature, change: fn(&Path)| {
        book.page(name, &[feature])
            .create("", "4M")
            .io(&["write -q -P 1 0 300k", "write -q -P 2 1M 100k"])
            .change(change);
    };
    let damaged = Feature::Damaged;
    base(book, "leaks", Feature::Leaks, |path| {
        poke(path, FIRST_L2_TABLE, &[0; 8]);
        poke(path, FIRST_L2_TABLE + 24, &[0; 16]);
    });
    base(book, "leak-high-refcount", damaged, |path| {
        poke(path, FIRST_REFCOUNT_BLOCK + 12, &[0, 7]);
    });
    base(book, "refcount-zero", damaged, |path| {
        poke(path, FIRST_REFCOUNT_BLOCK + 10, &[0; 6]);
    });
    base(book, "refcount-zero-header", damaged, |path| {
        poke(path, FIRST_REFCOUNT_BLOCK, &[0; 2]);
    });
    base(book, "l2-shared-cluster", damaged, |path| {
        let entry: [u8; 8] = read_at(path, FIRST_L2_TABLE);
        poke(path, FIRST_L2_TABLE + 8, &entry);
    });
    base(book, "l2-misaligned", damaged, |path| {
        poke(path, FIRST_L2_TABLE + 6, &[2]);
    });
    base(book, "l2-reserved-bits", damaged, |path| {
        poke(path, FIRST_L2_TABLE, &[0xb0]);
    });
    base(book, "l2-behind-the-file", damaged, |path| {
        poke(path, FIRST_L2_TABLE, &0x8000_0000_4000_0000u64.to_be_bytes());
    });
    base(book, "l2-not-copied", damaged, |path| {
        poke(path, FIRST_L2_TABLE, &[0]);
    });
    base(book, "l1-misaligned", damaged, |path| {
        poke(path, L1_TABLE + 6, &[2]);
    });
    base(book, "l1-not-copied", damaged, |path| {
        poke(path, L1_TABLE, &[0]);
    });
    base(book, "l1-reserved-bits", damaged, |path| {
        poke(path, L1_TABLE, &[0xff]);
    });
    base(book, "data-over-metadata", damaged, |path| {
        poke(path, FIRST_L2_TABLE, &0x8000_0000_0002_0000u64.to_be_bytes());
    });
    base(book, "refcount-block-misaligned", Feature::Uncheckable, |path| {
        poke(path, 1 << 16, &0x2_0200u64.to_be_bytes());
    });
    book.page("v2-zero-flag", &[Feature::Unreadable, Feature::Version2])
        .create("compat=0.10", "4M")
        .io(&["write -q -P 1 0 300k"])
        .change(|path| poke(path, FIRST_L2_TABLE + 7, &[1]));
    book.page("truncated", &[damaged]).create("", "4M").io(&["write -q -P 1 0 300k"]).change(
        |path| {
            let file = std::fs::OpenOptions::new().write(true).open(path);
            let file = file.expect("the file was made above");
            file.set_len(5 << 16).expect("a file can be cut");
        },
    );
}

fn unopenable(book: &mut Book) {
    let base = |book: &mut Book, name: &str, change: fn(&Path)| {
        book.page(name, &[Feature::Unopenable]).create("", "1M").change(change);
    };
    base(book, "version-4", |path| poke(path, 4, &4u32.to_be_bytes()));
    base(book, "version-1", |path| poke(path, 4, &1u32.to_be_bytes()));
    base(book, "cluster-bits-8", |path| poke(path, 20, &8u32.to_be_bytes()));
    base(book, "cluster-bits-22", |path| poke(path, 20, &22u32.to_be_bytes()));
    base(book, "header-length-96", |path| poke(path, 100, &96u32.to_be_bytes()));
    base(book, "refcount-order-7", |path| poke(path, 96, &7u32.to_be_bytes()));
    base(book, "crypt-method-3", |path| poke(path, 32, &3u32.to_be_bytes()));
    base(book, "l1-too-small", |path| poke(path, 36, &0u32.to_be_bytes()));
    base(book, "l1-too-large", |path| poke(path, 36, &u32::MAX.to_be_bytes()));
    base(book, "l1-offset-misaligned", |path| poke(path, 40, &513u64.to_be_bytes()));
    base(book, "refcount-table-misaligned", |path| poke(path, 48, &513u64.to_be_bytes()));
    base(book, "refcount-table-too-large", |path| poke(path, 56, &129u32.to_be_bytes()));
    base(book, "snapshots-too-many", |path| poke(path, 60, &65_537u32.to_be_bytes()));
    base(book, "backing-name-too-long", |path| {
        poke(path, 8, &512u64.to_be_bytes());
        poke(path, 16, &1024u32.to_be_bytes());
    });
    base(book, "extension-too-large", |path| {
        poke(path, 112, &0xe279_2acau32.to_be_bytes());
        poke(path, 116, &u32::MAX.to_be_bytes());
    });
    base(book, "compression-type-unannounced", |path| poke(path, 104, &[1]));
}
