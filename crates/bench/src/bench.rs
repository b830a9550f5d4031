//! What all figures share: the image in its registry, the peers, the folder, and the machine's caches.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sampan_e2e::fixtures::{Image, Registry, debian};
use tempfile::TempDir;

use crate::engines::Engine;
use crate::engines::containerd::{Containerd, Generation};
use crate::engines::sampan::Sampan;
use crate::footprint::Footprint;
use crate::peers::{Peers, announce};

/// How many quick runs there are for one slow one.
const QUICK_FACTOR: u32 = 6;

/// Memory that is touched before anything is measured: more than any engine needs for the image, twice.
const TOUCHED_BYTES: usize = 4 << 30;
/// Bytes written at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// The name of the measured image in the registry.
const IMAGE: &str = "python:large";

/// A prepared machine. Dropped, it is as it was.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) peers: Peers,
    /// Rounds of what takes seconds.
    pub(crate) runs: u32,
    /// The measured image.
    pub(crate) reference: String,
    image: Image,
    registry: Registry,
    program: PathBuf,
    work: TempDir,
    _footprint: Footprint,
}

impl Bench {
    /// Builds the image when it is not cached, and starts the registry with it.
    pub(crate) fn start(folder: &Path, program: PathBuf, peers: Peers, runs: u32) -> Result<Self> {
        let footprint = Footprint::look();
        announce("preparing the image (the first time this takes some minutes)")?;
        let image = debian::python_large().context("make the image of Python and SciPy")?;
        let registry = Registry::start()?;
        let reference = registry.push(&image, IMAGE)?;
        let work = tempfile::Builder::new().prefix("sampan-bench-").tempdir_in(folder)?;
        // A build that goes on beside us must not change what is measured.
        let measured = work.path().join("program");
        fs::copy(&program, &measured).with_context(|| format!("copy {}", program.display()))?;
        touch_memory(work.path())?;
        Ok(Self { peers, runs, reference, image, registry, program: measured, work, _footprint: footprint })
    }

    /// Rounds of what takes milliseconds.
    pub(crate) fn quick_runs(&self) -> u32 {
        self.runs * QUICK_FACTOR
    }

    /// A folder for a figure's or an engine's own use, below the one that is removed at the end.
    pub(crate) fn work(&self) -> &Path {
        self.work.path()
    }

    pub(crate) fn sampan(&self) -> Sampan {
        Sampan::new(&self.program, self.work(), self.registry.address())
    }

    /// containerd 2 with `snapshotter`, where it is installed.
    pub(crate) fn containerd2(&self, snapshotter: &'static str) -> Option<Containerd> {
        let programs = self.peers.containerd2.as_ref()?;
        Some(Containerd::new(Generation::Two, programs, snapshotter, self.work()))
    }

    /// Debian's containerd, where it is installed.
    pub(crate) fn containerd1(&self) -> Option<Containerd> {
        let programs = self.peers.containerd1.as_ref()?;
        Some(Containerd::new(Generation::Debian, programs, "overlayfs", self.work()))
    }

    /// Forgets everything read from disk, then reads again what is not to be measured: the registry's blobs, which
    /// stand for a far side, and the engine's programs.
    pub(crate) fn cool(&self, engine: &dyn Engine) -> Result<()> {
        drop_caches()?;
        for program in engine.programs() {
            fs::read(&program).with_context(|| format!("read {}", program.display()))?;
        }
        for layer in &self.image.layers {
            self.fetch(&layer.blob.digest)?;
        }
        Ok(())
    }

    fn fetch(&self, digest: &str) -> Result<()> {
        let address = self.registry.address();
        let repository = IMAGE.split(':').next().unwrap_or(IMAGE);
        let mut stream = TcpStream::connect(address)?;
        write!(stream, "GET /v2/{repository}/blobs/{digest} HTTP/1.0\r\nhost: {address}\r\n\r\n")?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        ensure!(status.ends_with(b"200"), "the registry does not give {digest}");
        std::io::copy(&mut stream, &mut std::io::sink())?;
        Ok(())
    }
}

/// Uses memory for the page cache once. A virtual machine gets a page from its host when it first touches it, which costs
/// ten times what writing the page does: whoever is measured first would pay that for all.
fn touch_memory(folder: &Path) -> Result<()> {
    let path = folder.join("touched");
    let mut file = fs::File::create(&path)?;
    let chunk = vec![1; CHUNK_BYTES];
    for _ in 0..TOUCHED_BYTES / CHUNK_BYTES {
        file.write_all(&chunk).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(fs::remove_file(&path)?)
}

/// Writes back what is dirty and forgets the page cache, names and inodes.
pub(crate) fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("drop the machine's caches")
}
