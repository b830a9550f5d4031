//! Eight readers of a container's files, which compare every byte and write down how long they had to wait.
//!
//! They read through `/proc/PID/root`, so through the container's own mounts, and drop what they have read from the page cache:
//! the next reader asks for it again.

use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::fs::{Advice, fadvise};

use super::chance::Chance;
use super::truth::Truth;

pub(super) const READERS: u64 = 8;
const PIECE_BYTES: u64 = 64 << 10;
/// Waits that are written down.
const WAIT_MIN: Duration = Duration::from_millis(20);

/// What the readers share.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    reads: AtomicU64,
    /// How many parts of a hundred of each file are read.
    reach: AtomicU64,
    waits: Mutex<Vec<(u64, Instant, Instant)>>,
}

/// Running readers.
#[derive(Debug)]
pub(super) struct Readers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Readers {
    /// Opens the files below the root of the process `pid` and begins to read them.
    pub(super) fn start(pid: i32, truth: &Truth, seed: u64) -> Result<Self> {
        let shared = Arc::new(Shared { reach: AtomicU64::new(100), ..Shared::default() });
        let mut threads = Vec::new();
        for reader in 0..READERS {
            let root = Path::new("/proc").join(pid.to_string()).join("root");
            let names = truth.files().map(|(name, _)| root.join(name));
            let files: Vec<File> = names
                .map(|path| File::open(&path).with_context(|| format!("open {}", path.display())))
                .collect::<Result<_>>()?;
            let (shared, truth, chance) = (Arc::clone(&shared), truth.clone(), Chance::new(seed ^ reader << 48));
            threads.push(std::thread::spawn(move || read(&shared, &files, &truth, reader, chance)));
        }
        Ok(Self { shared, threads })
    }

    /// From now on only the first part of each file is read: what is here already, after a while.
    pub(super) fn stay_within(&self, percent: u64) {
        self.shared.reach.store(percent, Ordering::Relaxed);
    }

    pub(super) fn reads(&self) -> u64 {
        self.shared.reads.load(Ordering::Relaxed)
    }

    /// Whether one of them found something wrong.
    pub(super) fn have_ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Ends them; for each of the moments and each reader, how long he waited from then on.
    pub(super) fn finish(self, moments: &[Instant]) -> Result<Vec<Duration>> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_panic| anyhow!("a reader broke"))??;
        }
        let waits = self.shared.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = |reader: u64, moment: Instant| {
            let spans = waits.iter().filter(|(of, begin, end)| *of == reader && *begin <= moment && moment <= *end);
            spans.map(|(_, _, end)| *end - moment).max().unwrap_or_default()
        };
        Ok(moments.iter().flat_map(|moment| (0..READERS).map(move |reader| wait(reader, *moment))).collect())
    }
}

fn read(shared: &Shared, files: &[File], truth: &Truth, reader: u64, mut chance: Chance) -> Result<()> {
    let truths: Vec<(String, &[u8])> = truth.files().collect();
    let mut piece = vec![0; PIECE_BYTES as usize];
    while !shared.stop.load(Ordering::Relaxed) {
        let nth = chance.below(files.len() as u64) as usize;
        let (file, (name, bytes)) = (&files[nth], &truths[nth]);
        let length = 4096 << chance.below(5);
        let reach = bytes.len() as u64 * shared.reach.load(Ordering::Relaxed) / 100;
        let offset = chance.below(reach - length) / 4096 * 4096;
        let piece = &mut piece[..length as usize];
        let begin = Instant::now();
        file.read_exact_at(piece, offset).with_context(|| format!("read {length} bytes of {name} at {offset}"))?;
        if begin.elapsed() >= WAIT_MIN {
            let mut waits = shared.waits.lock().unwrap_or_else(PoisonError::into_inner);
            waits.push((reader, begin, Instant::now()));
        }
        let expected = &bytes[offset as usize..][..length as usize];
        ensure!(piece == expected, "wrong bytes in {length} of {name} at {offset}");
        fadvise(file, offset, NonZeroU64::new(length), Advice::DontNeed)?;
        shared.reads.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Compares all of it once, page cache or not.
pub(super) fn check_whole(pid: i32, truth: &Truth) -> Result<()> {
    for (name, expected) in truth.files() {
        let path = Path::new("/proc").join(pid.to_string()).join("root").join(&name);
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        ensure!(bytes == expected, "wrong bytes in {name}");
    }
    Ok(())
}
