//! See `sampan_fuzz_targets::image_config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    sampan_fuzz_targets::image_config(bytes);
});
