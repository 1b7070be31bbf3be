//! What the differential tests share.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::Path;

use cowl_testkit::{Answers, Feature, Fixture, FixtureSet, SideBySide};

/// The fixtures and both programs, with a folder to write to.
pub(crate) struct Bench {
    pub(crate) set: &'static FixtureSet,
    pub(crate) both: SideBySide,
    pub(crate) folder: tempfile::TempDir,
}

impl Bench {
    /// `None` where the oracle is missing.
    pub(crate) fn new() -> Option<Self> {
        let set = FixtureSet::get()?;
        let folder = tempfile::tempdir().expect("a folder");
        let links = folder.path().join("links");
        std::fs::create_dir(&links).expect("a folder");
        let both = SideBySide::new(env!("CARGO_BIN_EXE_cowl"), &links)?;
        Some(Self { set, both, folder })
    }

    /// Where files may be written.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Gives the same arguments to both, in the folder of the fixtures.
    pub(crate) fn run(&self, arguments: &[&str]) -> Answers {
        self.both.run(&self.set.directory, arguments)
    }

    /// Calls `ask` for each fixture that `selected` takes and fails with every difference it
    /// returns.
    pub(crate) fn for_each(
        &self,
        selected: impl Fn(&Fixture) -> bool,
        ask: impl Fn(&Fixture) -> Option<String>,
    ) {
        let fixtures = self.set.fixtures.iter().filter(|fixture| selected(fixture));
        let differences: Vec<String> = fixtures.filter_map(ask).collect();
        assert!(
            differences.is_empty(),
            "{} differ:\n{}",
            differences.len(),
            differences.join("\n")
        );
    }
}

/// Images whose content both programs can read whole.
pub(crate) fn readable(fixture: &Fixture) -> bool {
    opened_alike(fixture)
        && !fixture.is_encrypted()
        && ![
            Feature::Unopenable,
            Feature::BackingMissing,
            Feature::Damaged,
            Feature::Unreadable,
            Feature::Uncheckable,
        ]
        .iter()
        .any(|feature| fixture.has(*feature))
}

/// All images but those that we refuse where qemu-img opens them, or refuse in our own words
/// (docs/qemu-img-differences.md).
pub(crate) fn opened_alike(fixture: &Fixture) -> bool {
    // A backing file named as json: is QEMU's to open; version 1 is another format.
    !["over-json", "version-1"].contains(&fixture.name.as_str())
}

/// Fails with all differences at once.
pub(crate) fn expect_none(differences: Vec<String>) {
    assert!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n"));
}
