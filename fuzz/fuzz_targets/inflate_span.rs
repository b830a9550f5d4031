//! See `sampan_fuzz_targets::inflate_span`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    sampan_fuzz_targets::inflate_span(bytes);
});
