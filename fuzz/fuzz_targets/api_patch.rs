//! See `sampan_fuzz_targets::api_patch`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    sampan_fuzz_targets::api_patch(bytes);
});
