//! See `sampan_fuzz_targets::start_trace`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    sampan_fuzz_targets::start_trace(bytes);
});
