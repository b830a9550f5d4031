//! See `sampan_fuzz_targets::auth_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    sampan_fuzz_targets::auth_file(bytes);
});
