//! The registry with the images in it, and the links in front of it.
//!
//! What is pushed stays for the next run, in the tests' cache: images are made once, and so is what others convert them to. Only
//! one run uses it at a time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use sampan_e2e::fixtures::{Image, Registry, cache};
use sampan_e2e::link::{Link, Shape};
use tempfile::TempDir;

use super::subjects::Subject;
use crate::bench::drop_caches;
use crate::engines::sampan::Sampan;
use crate::footprint::Footprint;
use crate::peers::{ImagePeers, announce};

/// Change it when what is kept there has another form.
const STORAGE: &str = "bench-registry-v1";
/// The tag of images as they were made.
const TAG: &str = "v1";

/// A prepared machine. Dropped, it is as it was, but for the cache.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) peers: ImagePeers,
    pub(super) registry: Registry,
    program: PathBuf,
    links: Vec<Link>,
    /// Repositories that are removed at the end, each with the one whose blobs it shares.
    temporary: Mutex<Vec<(String, String)>>,
    work: TempDir,
    _footprint: Footprint,
    _lock: File,
}

/// An image in the registry.
#[derive(Debug, Clone)]
pub(super) struct Pushed {
    pub(super) subject: &'static Subject,
    pub(super) image: Image,
}

impl Site {
    pub(super) fn open(folder: &Path, program: &Path, peers: ImagePeers, links: &[Shape]) -> Result<Self> {
        let footprint = Footprint::look();
        let storage = cache::directory().join(STORAGE);
        fs::create_dir_all(&storage).with_context(|| format!("make {}", storage.display()))?;
        let lock = File::create(storage.with_extension("lock"))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("another run uses {}; wait for its end", storage.display());
        }
        let registry = Registry::start_in(&storage)?;
        let links = links.iter().map(|shape| Link::to(registry.address(), *shape)).collect::<Result<_>>()?;
        let work = tempfile::Builder::new().prefix("sampan-bench-").tempdir_in(folder)?;
        // A build that goes on beside us must not change what is measured.
        let measured = work.path().join("program");
        fs::copy(program, &measured).with_context(|| format!("copy {}", program.display()))?;
        let temporary = Mutex::default();
        Ok(Self { peers, registry, program: measured, links, temporary, work, _footprint: footprint, _lock: lock })
    }

    /// What distinguishes this run's own repositories from those of others.
    pub(super) fn run_id(&self) -> u32 {
        std::process::id()
    }

    /// The measured program.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// Where the key is kept that our nodes share, once there is one.
    pub(super) fn fleet_key(&self) -> PathBuf {
        self.work.path().join("fleet.key")
    }

    /// Notes a repository, by an image's name in it, that holds nothing to keep.
    pub(super) fn is_temporary(&self, name: &str, pushed: &Pushed) {
        let repository = name.split(':').next().unwrap_or(name).to_owned();
        let mut temporary = self.temporary.lock().unwrap_or_else(PoisonError::into_inner);
        temporary.push((repository, pushed.subject.name.to_owned()));
    }

    /// A folder for engines, removed at the end.
    pub(super) fn work(&self) -> &Path {
        self.work.path()
    }

    /// Ours, in a folder of this name, which asks the registry at `address` and believes the fleet.
    pub(super) fn sampan(&self, name: &str, address: &str) -> Sampan {
        Sampan::named(name, &self.program, self.work(), address).with_fleet_key(self.fleet_key())
    }

    pub(super) fn link(&self, shape: Shape) -> Result<&Link> {
        self.links.iter().find(|link| link.shape() == shape).with_context(|| format!("there is no link {shape}"))
    }

    /// Makes an image and pushes it, where this has not been done.
    pub(super) fn push(&self, subject: &'static Subject) -> Result<Pushed> {
        announce(&format!("preparing the image {} (the first time this takes some minutes)", subject.name))?;
        let image = (subject.make)().with_context(|| format!("make the image {}", subject.name))?;
        let name = format!("{}:{TAG}", subject.name);
        if self.registry.manifest_digest(&name).as_deref() != Some(&image.manifest.digest) {
            self.registry.push(&image, &name)?;
        }
        Ok(Pushed { subject, image })
    }

    /// Forgets everything read from disk, then reads again what is not to be measured: the registry's blobs of a repository,
    /// which stand for a far side, and the programs that will be executed.
    pub(super) fn cool(&self, repository: &str, programs: &[PathBuf]) -> Result<()> {
        drop_caches()?;
        for path in programs.iter().chain(&self.registry.blob_files(repository)?) {
            let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
            std::io::copy(&mut file, &mut std::io::sink()).with_context(|| format!("read {}", path.display()))?;
        }
        Ok(())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for (repository, shared) in self.temporary.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if let Err(error) = self.registry.remove_repository(&repository, &shared) {
                drop(announce(&format!("the repository {repository} stays: {error:#}")));
            }
        }
    }
}

impl Pushed {
    /// Repository and tag of the image as it was made.
    pub(super) fn name(&self) -> String {
        format!("{}:{TAG}", self.subject.name)
    }

    /// What distinguishes this build of the image from others, for what is made of it.
    pub(super) fn key(&self) -> &str {
        self.image.manifest.digest.trim_start_matches("sha256:").get(..12).unwrap_or_default()
    }

    /// What a whole pull brings.
    pub(super) fn compressed_bytes(&self) -> u64 {
        self.image.layers.iter().map(|layer| layer.blob.size).sum()
    }
}
