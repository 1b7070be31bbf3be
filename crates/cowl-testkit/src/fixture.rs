//! Images of every feature, made by qemu-img and qemu-io.
//!
//! The set is made once and kept beside the build, under a name that changes with the recipes and
//! with the version of qemu-img; processes that start at the same time do not disturb each other.
//! Images in it are shared by all tests, so nobody may write to them: take a
//! [`copy`](FixtureSet::copy).

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::corpus;
use crate::oracle::{self, Tool};

/// What an image has that others have not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// The format is raw.
    Raw,
    /// Version 2.
    Version2,
    /// This cluster size in bytes instead of 64 KiB.
    ClusterSize(u64),
    /// This refcount width instead of 16 bits.
    RefcountBits(u64),
    /// L2 entries with subclusters.
    ExtendedL2,
    /// Compressed clusters (zlib).
    Zlib,
    /// Compressed clusters (zstd).
    Zstd,
    /// Clusters that read as zero by a flag.
    Zero,
    /// Discarded clusters.
    Discard,
    /// A backing file.
    Backing,
    /// An external data file.
    DataFile,
    /// Internal snapshots.
    Snapshots,
    /// Persistent bitmaps.
    Bitmaps,
    /// Lazy refcounts.
    LazyRefcounts,
    /// A size that is no multiple of the cluster size.
    OddSize,
    /// Space allocated in advance.
    Preallocated,
    /// LUKS encryption.
    Luks,
    /// The legacy encryption.
    Aes,
    /// The dirty bit is set.
    Dirty,
    /// The corrupt bit is set.
    CorruptBit,
    /// Refcounts say more than is used.
    Leaks,
    /// Tables contradict each other.
    Damaged,
    /// A feature nobody knows.
    Unknown,
    /// Damaged so that a check cannot be completed.
    Uncheckable,
    /// Damaged so that reading fails although a check finds nothing.
    Unreadable,
    /// The backing file is not there.
    BackingMissing,
    /// qemu-img refuses to open it.
    Unopenable,
}

/// An image with a name and its features.
#[derive(Clone, Debug)]
pub struct Fixture {
    /// Name of the fixture and of its image file.
    pub name: String,
    /// What it has.
    pub features: Vec<Feature>,
}

impl Fixture {
    /// Whether it has `feature`.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        self.features.contains(&feature)
    }

    /// Whether the guest's bytes cannot be read without a password.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.has(Feature::Luks) || self.has(Feature::Aes)
    }

    /// The format: `raw` or `qcow2`.
    #[must_use]
    pub fn format(&self) -> &'static str {
        if self.has(Feature::Raw) { "raw" } else { "qcow2" }
    }
}

/// All fixtures, in one folder. Backing and data files are named relative to it.
#[derive(Debug)]
pub struct FixtureSet {
    /// The folder.
    pub directory: PathBuf,
    /// What is in it.
    pub fixtures: Vec<Fixture>,
}

impl FixtureSet {
    /// The set, made at the first call; `None` where the oracle is missing.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn get() -> Option<&'static Self> {
        static SET: OnceLock<Option<FixtureSet>> = OnceLock::new();
        SET.get_or_init(|| oracle::is_available().then(Self::make)).as_ref()
    }

    /// The fixture called `name`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn named(&self, name: &str) -> &Fixture {
        let found = self.fixtures.iter().find(|fixture| fixture.name == name);
        found.unwrap_or_else(|| panic!("no fixture is called {name}"))
    }

    /// The image file of `fixture`.
    #[must_use]
    pub fn path(&self, fixture: &Fixture) -> PathBuf {
        self.directory.join(&fixture.name)
    }

    /// Copies `fixture` into `directory`, where it may be changed, and returns the new file.
    ///
    /// # Panics
    /// When the copy fails.
    #[must_use]
    pub fn copy(&self, fixture: &Fixture, directory: &Path) -> PathBuf {
        let target = directory.join(&fixture.name);
        fs::copy(self.path(fixture), &target).expect("a small file can be copied");
        target
    }

    fn make() -> Self {
        let directory = home().join(format!("{:016x}", recipe_hash()));
        let (fixtures, recipes) = corpus::recipes();
        if !directory.exists() {
            let unfinished = home().join(format!("unfinished-{}", std::process::id()));
            fs::create_dir_all(&unfinished).expect("the build folder takes folders");
            for recipe in recipes {
                recipe.carry_out(&unfinished);
            }
            // Whoever comes second finds the place taken by the same images.
            if fs::rename(&unfinished, &directory).is_err() {
                fs::remove_dir_all(&unfinished).ok();
            }
        }
        assert!(directory.is_dir(), "{} could not be made", directory.display());
        Self { directory, fixtures }
    }
}

/// A folder beside the build, which goes when the build goes.
fn home() -> PathBuf {
    let program = std::env::current_exe().expect("a test has a program");
    let build = program.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    build.map_or_else(std::env::temp_dir, Path::to_path_buf).join("cowl-fixtures")
}

fn recipe_hash() -> u64 {
    let mut hasher = DefaultHasher::new();
    include_str!("corpus.rs").hash(&mut hasher);
    include_str!("random.rs").hash(&mut hasher);
    oracle::run(Tool::Img, Path::new("/"), &["--version"]).stdout.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::{Feature, FixtureSet};

    #[test]
    fn every_fixture_is_an_image_of_its_format() {
        let Some(set) = FixtureSet::get() else { return };
        for fixture in &set.fixtures {
            let bytes = std::fs::read(set.path(fixture)).unwrap();
            let is_qcow2 = bytes.starts_with(b"QFI\xfb");
            assert_eq!(is_qcow2, fixture.format() == "qcow2", "{}", fixture.name);
        }
    }

    #[test]
    fn qemu_img_opens_what_it_should() {
        let Some(set) = FixtureSet::get() else { return };
        for fixture in &set.fixtures {
            let arguments = ["info", "-f", fixture.format(), &fixture.name];
            let output = crate::run(crate::Tool::Img, &set.directory, &arguments);
            let opened = output.code == 0;
            let name = &fixture.name;
            assert_eq!(opened, !fixture.has(Feature::Unopenable), "{name}: {}", output.stderr);
        }
    }

    #[test]
    fn images_are_as_sound_as_they_claim() {
        let Some(set) = FixtureSet::get() else { return };
        let mut wrong = Vec::new();
        for fixture in &set.fixtures {
            let expected = match fixture {
                f if f.has(Feature::Unopenable) || f.has(Feature::Raw) || f.is_encrypted() => {
                    continue;
                }
                f if f.has(Feature::BackingMissing) || f.has(Feature::Uncheckable) => 1,
                f if f.has(Feature::Damaged) => 2,
                f if f.has(Feature::Leaks) => 3,
                _ => 0,
            };
            let arguments = ["check", "-f", "qcow2", "-U", &fixture.name];
            let output = crate::run(crate::Tool::Img, &set.directory, &arguments);
            if output.code != expected {
                wrong.push(format!("{}: {} {}", fixture.name, output.code, output.stderr));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn every_feature_occurs() {
        let Some(set) = FixtureSet::get() else { return };
        use Feature::*;
        for feature in [
            Raw,
            Version2,
            ExtendedL2,
            Zlib,
            Zstd,
            Zero,
            Discard,
            Backing,
            DataFile,
            Snapshots,
            Bitmaps,
            LazyRefcounts,
            OddSize,
            Preallocated,
            Luks,
            Aes,
            Dirty,
            CorruptBit,
            Leaks,
            Damaged,
            Unknown,
            Unopenable,
        ] {
            assert!(set.fixtures.iter().any(|f| f.has(feature)), "{feature:?}");
        }
    }
}
