//! Replays the corpus of the fuzz targets, and the seeds, through what the targets do.

use std::fs;
use std::path::Path;

use cowl_fuzz_bodies::{BODIES, SEEDS, mutate};

#[test]
fn every_input_of_the_corpus_holds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for (name, body) in BODIES {
        let folder = corpus.join(name);
        let entries = fs::read_dir(&folder);
        let entries = entries.unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut count = 0;
        for entry in entries {
            let path = entry.expect("a folder of files").path();
            let bytes = fs::read(&path).expect("a file of the corpus");
            println!("{}", path.display());
            body(&bytes);
            count += 1;
        }
        assert!(0 < count, "{} is empty", folder.display());
    }
}

#[test]
fn every_seed_holds_under_every_target() {
    for seed in SEEDS {
        for (_, body) in BODIES {
            body(seed.bytes);
        }
    }
    for number in 0..=u8::MAX {
        mutate(&[number]);
    }
}
