//! See `sampan_fuzz_targets::fuse_request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    sampan_fuzz_targets::fuse_request(bytes);
});
