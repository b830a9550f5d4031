//! See `sampan_fuzz_targets::agent_files`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    sampan_fuzz_targets::agent_files(bytes);
});
