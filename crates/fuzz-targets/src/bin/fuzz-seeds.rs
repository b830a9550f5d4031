//! Writes the seeds of every target into `fuzz/corpus`. To be run again when a format of ours changes.

use std::fs;
use std::path::Path;

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for seed in sampan_fuzz_targets::seeds::all()? {
        let folder = corpus.join(seed.target);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(format!("seed-{}", seed.name));
        fs::write(&path, seed.bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
