//! See `sampan_fuzz_targets::docker_archive`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    sampan_fuzz_targets::docker_archive(bytes);
});
