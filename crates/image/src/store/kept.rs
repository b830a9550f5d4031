//! Indexes of layers that are no longer here: small, and enough to start from when the layer is wanted again.
//!
//! They vouch for themselves (checksum) and were made on this node; the one used longest ago goes first.

use super::paths::{Paths, rename};
use crate::error::ImageError;
use crate::lazy::limits::KEPT_INDEX_BYTES_MAX;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, utimensat};
use sampan_oci::digest::Digest;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Keeps the index of a layer that goes.
pub(super) fn keep(paths: &Paths, diff_id: &Digest) -> Result<(), ImageError> {
    let from = paths.index(diff_id);
    if !from.is_file() {
        return Ok(());
    }
    let to = paths.kept(diff_id);
    rename(&from, &to)?;
    touch(&to);
    trim(paths, KEPT_INDEX_BYTES_MAX)
}

/// Says that an index was used just now.
pub(super) fn touch(path: &Path) {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let as_it_is = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let times = Timestamps { last_access: as_it_is, last_modification: now };
    if let Err(error) = utimensat(CWD, path, &times, AtFlags::empty()) {
        tracing::debug!(path = %path.display(), %error, "an index looks older than it is");
    }
}

fn trim(paths: &Paths, bytes_max: u64) -> Result<(), ImageError> {
    let entries = fs::read_dir(&paths.kept).map_err(ImageError::file("read", &paths.kept))?;
    let mut files: Vec<(i64, i64, u64, PathBuf)> = Vec::new();
    for entry in entries.flatten() {
        if let Ok(metadata) = entry.metadata() {
            files.push((metadata.mtime(), metadata.mtime_nsec(), metadata.len(), entry.path()));
        }
    }
    files.sort();
    let mut bytes: u64 = files.iter().map(|(_, _, bytes, _)| bytes).sum();
    for (_, _, length, path) in files {
        if bytes <= bytes_max {
            break;
        }
        paths.remove(&path)?;
        bytes -= length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_that_was_used_longest_ago_goes_first() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path());
        for part in paths.directories() {
            fs::create_dir_all(part).unwrap();
        }
        let ids = [b"one", b"two"].map(|name| Digest::of(name));
        for id in &ids {
            fs::write(paths.index(id), [0; 1000]).unwrap();
            keep(&paths, id).unwrap();
        }
        touch(&paths.kept(&ids[0]));
        trim(&paths, 1500).unwrap();
        assert!(paths.kept(&ids[0]).exists() && !paths.kept(&ids[1]).exists());
        trim(&paths, 10).unwrap();
        assert_eq!(fs::read_dir(&paths.kept).unwrap().count(), 0);
    }
}
