//! Small valid images, one for each feature, made by QEMU (`seeds/make.sh`).

/// One image.
#[derive(Clone, Copy, Debug)]
pub struct Seed {
    /// What it is for.
    pub name: &'static str,
    /// The file.
    pub bytes: &'static [u8],
}

macro_rules! seeds {
    ($($name:literal),* $(,)?) => {
        /// All seeds. The order is part of the corpus of `mutate`: append only.
        pub const SEEDS: &[Seed] = &[
            $(Seed { name: $name, bytes: include_bytes!(concat!("../seeds/", $name, ".seed")) }),*
        ];
    };
}

seeds![
    "v2",
    "v3",
    "subclusters",
    "zlib",
    "zstd",
    "snapshots",
    "bitmaps",
    "overlay",
    "wide-refcounts",
    "narrow-refcounts",
    "data-file",
    "luks",
];
