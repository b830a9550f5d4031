//! See `sampan_fuzz_targets::seccomp_profile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    sampan_fuzz_targets::seccomp_profile(bytes);
});
