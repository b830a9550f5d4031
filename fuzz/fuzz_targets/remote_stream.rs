//! See `sampan_fuzz_targets::remote_stream`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    sampan_fuzz_targets::remote_stream(bytes);
});
