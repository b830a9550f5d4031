//! A run without libFuzzer: every target on its corpus and on simple changes of it, for a set time in all.
//!
//! What was being run stands in a file of its own before it runs, so that an input that takes the whole process down is
//! found there. Inputs follow from the target's name alone: two runs differ only in how far they get.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::mutation::{Chance, mutate};
use crate::{TARGETS, Target};

/// The address space that the whole run may use: a parser that allocates what a header claims ends here.
const ADDRESS_SPACE_BYTES_MAX: u64 = 4 << 30;
/// One input of at most 64 KiB may take this long in an unoptimised build on a busy machine.
const INPUT_DURATION_MAX: Duration = Duration::from_secs(5);

/// Runs all targets, or the one of that name.
pub fn run(out: &mut impl Write, fuzz: &Path, only: Option<&str>, duration: Duration) -> anyhow::Result<ExitCode> {
    let limit = Some(ADDRESS_SPACE_BYTES_MAX);
    rustix::process::setrlimit(
        rustix::process::Resource::As,
        rustix::process::Rlimit { current: limit, maximum: limit },
    )
    .context("cannot limit the memory of this run")?;
    let chosen: Vec<&Target> = TARGETS.iter().filter(|target| only.is_none_or(|name| name == target.name)).collect();
    ensure!(!chosen.is_empty(), "there is no target {}; see fuzz/README.md", only.unwrap_or_default());
    let share = duration / u32::try_from(chosen.len()).unwrap_or(1);
    let artifacts = fuzz.join("artifacts");
    fs::create_dir_all(&artifacts).context("cannot make a folder for what is found")?;
    let mut sound = true;
    for target in chosen {
        let corpus = corpus(&fuzz.join("corpus").join(target.name))?;
        let corpus: Vec<Vec<u8>> = corpus.into_iter().map(|(_path, input)| input).collect();
        match smoke(target, &corpus, &artifacts, share)? {
            Outcome::Sound { inputs, accepted } => {
                writeln!(out, "{:14} {inputs:9} inputs, {accepted:8} accepted", target.name)?;
            }
            Outcome::Found { input, why } => {
                writeln!(out, "{:14} FAILS: {why}; the input is {}", target.name, input.display())?;
                sound = false;
            }
        }
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The committed inputs of a target with their paths, in the order of those.
pub fn corpus(folder: &Path) -> anyhow::Result<Vec<(PathBuf, Vec<u8>)>> {
    let entries = fs::read_dir(folder).with_context(|| format!("there is no corpus {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<PathBuf>>>()?;
    paths.sort();
    let read = |path: PathBuf| {
        let input = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok((path, input))
    };
    paths.into_iter().map(read).collect()
}

enum Outcome {
    Sound { inputs: u64, accepted: u64 },
    Found { input: PathBuf, why: String },
}

fn smoke(target: &Target, corpus: &[Vec<u8>], artifacts: &Path, share: Duration) -> anyhow::Result<Outcome> {
    let path = artifacts.join(format!("{}-running", target.name));
    let record = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    let seed =
        blake3::hash(target.name.as_bytes()).as_bytes().first_chunk().map_or(1, |seed| u64::from_le_bytes(*seed));
    let mut chance = Chance::new(seed);
    let (began, mut inputs, mut accepted) = (Instant::now(), 0, 0);
    let mut committed = corpus.iter();
    loop {
        let input = match committed.next() {
            Some(input) => input.clone(),
            None if began.elapsed() >= share => break,
            None => mutate(&mut chance, corpus),
        };
        record.set_len(input.len() as u64)?;
        record.write_all_at(&input, 0)?;
        let started = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| (target.run)(&input)));
        let why = match result {
            Ok(_) if started.elapsed() > INPUT_DURATION_MAX => {
                format!("it took {} ms", started.elapsed().as_millis())
            }
            Ok(taken) => {
                inputs += 1;
                accepted += u64::from(taken);
                continue;
            }
            Err(_panic) => "it panicked; the message stands above".to_owned(),
        };
        let kept = artifacts.join(format!("{}-{}", target.name, blake3::hash(&input).to_hex().split_at(16).0));
        fs::rename(&path, &kept)?;
        return Ok(Outcome::Found { input: kept, why });
    }
    fs::remove_file(&path)?;
    Ok(Outcome::Sound { inputs, accepted })
}
