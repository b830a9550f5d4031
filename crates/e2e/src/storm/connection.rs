//! What the kernel says of the service's FUSE connection: how many requests it waits for an answer to.
//!
//! `Documentation/filesystems/fuse.rst`, "the fuse control filesystem".

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use crate::service::{Part, Service};

/// The control file system, mounted while this lives.
#[derive(Debug)]
pub(super) struct Control {
    folder: TempDir,
}

impl Control {
    pub(super) fn open() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("sampan-fusectl-").tempdir()?;
        mount("none", folder.path(), "fusectl", MountFlags::empty(), None).context("mount fusectl")?;
        Ok(Self { folder })
    }

    /// Requests of the service's readers that are queued or in its daemon's hands; 0 where it has no connection.
    pub(super) fn waiting(&self, service: &Service) -> Result<u64> {
        let Some(folder) = self.connection(service)? else { return Ok(0) };
        let waiting = fs::read_to_string(folder.join("waiting"))?;
        waiting.trim().parse().with_context(|| format!("a count that is none: {waiting:?}"))
    }

    /// The supervisor holds the mount, whose device has the connection's number.
    fn connection(&self, service: &Service) -> Result<Option<PathBuf>> {
        let supervisor = service.pid(Part::Supervisor)?.as_raw_nonzero();
        for entry in fs::read_dir(format!("/proc/{supervisor}/fd"))? {
            let path = entry?.path();
            // What is no directory is none, and never looked at further: not everything answers a stat.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let folder = self.folder.path().join(rustix::fs::minor(metadata.dev()).to_string());
            if metadata.is_dir() && rustix::fs::major(metadata.dev()) == 0 && is_connection(&folder) {
                return Ok(Some(folder));
            }
        }
        Ok(None)
    }
}

fn is_connection(folder: &Path) -> bool {
    folder.join("waiting").exists()
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Err(error) = unmount(self.folder.path(), UnmountFlags::DETACH) {
            eprintln!("fusectl stays mounted: {error}");
        }
    }
}
