//! Target `zstd`; see `cowl-fuzz-bodies`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cowl_fuzz_bodies::zstd(data));
