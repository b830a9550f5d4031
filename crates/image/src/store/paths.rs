//! Where things stand below the images' directory.

use crate::disk::allocated_bytes;
use crate::error::ImageError;
use sampan_oci::digest::Digest;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, Clone)]
pub(super) struct Paths {
    pub(super) root: PathBuf,
    pub(super) incoming: PathBuf,
    pub(super) blobs: PathBuf,
    pub(super) indexes: PathBuf,
    pub(super) metadata: PathBuf,
    pub(super) records: PathBuf,
    /// Layers on their way, a folder each.
    pub(super) lazy: PathBuf,
    /// Indexes of layers that were here.
    pub(super) kept: PathBuf,
    /// Checksums of indexes that were found to be untrue.
    pub(super) quarantine: PathBuf,
}

impl Paths {
    pub(super) fn new(data_dir: &Path) -> Self {
        let root = data_dir.join("images");
        Self {
            incoming: root.join("incoming"),
            blobs: root.join("blobs"),
            indexes: root.join("indexes"),
            metadata: root.join("metadata"),
            records: root.join("records"),
            lazy: root.join("lazy"),
            kept: root.join("kept"),
            quarantine: root.join("quarantine"),
            root,
        }
    }

    pub(super) fn directories(&self) -> [&Path; 9] {
        let [root, incoming, blobs] = [&self.root, &self.incoming, &self.blobs];
        let [indexes, metadata, records] = [&self.indexes, &self.metadata, &self.records];
        [root, incoming, blobs, indexes, metadata, records, &self.lazy, &self.kept, &self.quarantine]
    }

    pub(super) fn blob(&self, diff_id: &Digest) -> PathBuf {
        self.blobs.join(diff_id.hex())
    }

    pub(super) fn index(&self, diff_id: &Digest) -> PathBuf {
        self.indexes.join(diff_id.hex())
    }

    pub(super) fn lazy(&self, diff_id: &Digest) -> PathBuf {
        self.lazy.join(diff_id.hex())
    }

    pub(super) fn kept(&self, diff_id: &Digest) -> PathBuf {
        self.kept.join(diff_id.hex())
    }

    pub(super) fn metadata(&self, id: &Digest) -> PathBuf {
        self.metadata.join(id.hex())
    }

    pub(super) fn record(&self, id: &Digest) -> PathBuf {
        self.records.join(id.hex())
    }

    /// Bytes that a file takes on the disk; 0 where there is none.
    pub(super) fn allocated(&self, path: &Path) -> u64 {
        fs::metadata(path).map(|metadata| allocated_bytes(&metadata)).unwrap_or(0)
    }

    /// Removes a file, or a folder with all that is in it.
    pub(super) fn remove_all(&self, path: &Path) -> Result<(), ImageError> {
        if path.is_dir() {
            return fs::remove_dir_all(path).map_err(ImageError::file("remove", path));
        }
        self.remove(path).map(|_bytes| ())
    }

    /// Removes a file if it is there, and tells what that gives back.
    pub(super) fn remove(&self, path: &Path) -> Result<u64, ImageError> {
        let bytes = self.allocated(path);
        match fs::remove_file(path) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
            Err(error) => Err(ImageError::file("remove", path)(error)),
        }
    }
}

/// Writes a new file, read-only for its owner, and nothing of it if that fails.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<File, ImageError> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(path)
        .map_err(ImageError::file("create", path))?;
    if let Err(error) = file.write_all(bytes) {
        // The first error is the one to tell.
        fs::remove_file(path).ok();
        return Err(ImageError::file("write", path)(error));
    }
    Ok(file)
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<(), ImageError> {
    fs::rename(from, to).map_err(ImageError::file("rename a file to", to))
}
