//! The committed corpus, the list of targets and libFuzzer's programs belong together.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sampan_fuzz_targets::{TARGETS, seeds, smoke};

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

#[test]
fn every_target_has_its_program_and_its_corpus() {
    let manifest = std::fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    for target in TARGETS {
        let program = std::fs::read_to_string(fuzz().join(format!("fuzz_targets/{}.rs", target.name))).unwrap();
        assert!(program.contains(&format!("sampan_fuzz_targets::{}(", target.name)), "{}", target.name);
        assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{}", target.name);
    }
    let folders = std::fs::read_dir(fuzz().join("corpus")).unwrap();
    let folders: BTreeSet<String> = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(folders, TARGETS.iter().map(|target| target.name.to_owned()).collect());
}

#[test]
fn seeds_are_committed() {
    for seed in seeds::all().unwrap() {
        let path = fuzz().join("corpus").join(seed.target).join(format!("seed-{}", seed.name));
        assert!(path.is_file(), "run `cargo run -p sampan-fuzz-targets --bin fuzz-seeds` for {}", path.display());
    }
}

/// What once failed stands in the corpus too, under other names than the seeds, and must not fail again.
#[test]
fn the_corpus_is_survived_and_its_seeds_are_accepted() {
    for target in TARGETS {
        for (path, input) in smoke::corpus(&fuzz().join("corpus").join(target.name)).unwrap() {
            let accepted = (target.run)(&input);
            let is_seed = path.file_name().unwrap().to_str().unwrap().starts_with("seed-");
            assert!(accepted || !is_seed, "{} is refused; has a format changed? see fuzz/README.md", path.display());
        }
    }
}
