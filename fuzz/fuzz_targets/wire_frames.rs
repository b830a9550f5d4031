//! See `sampan_fuzz_targets::wire_frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    sampan_fuzz_targets::wire_frames(bytes);
});
