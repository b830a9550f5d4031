//! Traces on the disk: one file for each image and command shape, the newest kept where there are too many.
//!
//! ```text
//! IMAGES/traces/<manifest>/<BLAKE3 of the shape>        the trace
//! IMAGES/traces/<manifest>/<BLAKE3 of the shape>.name   the shape itself
//! ```
//!
//! Files are replaced whole. A trace that is lost or damaged costs a slower start and nothing else, so none is synced and one
//! that cannot be read counts as none.

use super::{Trace, TraceFault};
use crate::lazy::source::Touch;
use crate::limits::{SHAPE_BYTES_MAX, TRACE_IMAGES_MAX, TRACE_SHAPES_MAX, TRACE_STORED_BYTES_MAX};
use sampan_oci::digest::Digest;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Why a trace could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("the trace of a start cannot be kept in {}", .path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Fault(#[from] TraceFault),
}

/// A kept trace and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceName {
    pub manifest: Digest,
    pub shape: String,
}

/// The traces of this machine. Cheap to clone; all methods read and write files, shortly.
#[derive(Debug, Clone)]
pub struct TraceStore {
    folder: PathBuf,
}

impl TraceStore {
    /// The traces below the images' directory; nothing is made before there is one.
    pub fn new(images: &Path) -> Self {
        Self { folder: images.join("traces") }
    }

    /// What is known of a command's starts.
    pub fn get(&self, manifest: &Digest, shape: &str) -> Option<Trace> {
        read(&self.path(manifest, shape)).and_then(|bytes| Trace::decode(&bytes).ok())
    }

    /// The trace of an image that was heard of last, whatever the command.
    pub fn newest(&self, manifest: &Digest) -> Option<(String, Trace)> {
        let mut shapes = self.shapes(manifest);
        shapes.sort_by_key(|(_, changed)| *changed);
        let (shape, _) = shapes.pop()?;
        let trace = self.get(manifest, &shape)?;
        Some((shape, trace))
    }

    /// Merges one start in. Of two at once, one may be lost.
    pub fn record(&self, manifest: &Digest, shape: &str, touches: &[Touch]) -> Result<Trace, TraceError> {
        let mut trace = self.get(manifest, shape).unwrap_or_default();
        trace.merge(touches);
        self.put(manifest, shape, &trace)?;
        Ok(trace)
    }

    /// All traces of an image, by shape.
    pub fn list(&self, manifest: &Digest) -> Vec<(TraceName, Trace)> {
        let mut shapes: Vec<String> = self.shapes(manifest).into_iter().map(|(shape, _)| shape).collect();
        shapes.sort();
        let named = |shape: String| {
            let trace = self.get(manifest, &shape)?;
            Some((TraceName { manifest: *manifest, shape }, trace))
        };
        shapes.into_iter().filter_map(named).collect()
    }

    /// Forgets all traces of an image.
    pub fn remove(&self, manifest: &Digest) -> Result<(), TraceError> {
        let path = self.folder.join(manifest.hex());
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(TraceError::File { path, source: error }),
            _ => Ok(()),
        }
    }

    fn put(&self, manifest: &Digest, shape: &str, trace: &Trace) -> Result<(), TraceError> {
        let path = self.path(manifest, shape);
        let folder = self.folder.join(manifest.hex());
        let is_new = !path.exists();
        let bytes = trace.encode()?;
        let write = || {
            DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            if is_new {
                self.make_room(&folder)?;
                replace(&path.with_extension("name"), shape.as_bytes())?;
            }
            replace(&path, &bytes)
        };
        write().map_err(|source| TraceError::File { path: path.clone(), source })
    }

    /// Drops the oldest shapes of this image, and the images that were heard of least lately.
    fn make_room(&self, image: &Path) -> io::Result<()> {
        for path in oldest_beyond(image, TRACE_SHAPES_MAX - 1, |path| path.extension().is_none())? {
            remove(&path)?;
            remove(&path.with_extension("name"))?;
        }
        for path in oldest_beyond(&self.folder, TRACE_IMAGES_MAX, |path| path != image && path.is_dir())? {
            fs::remove_dir_all(path)?;
        }
        Ok(())
    }

    fn shapes(&self, manifest: &Digest) -> Vec<(String, SystemTime)> {
        let folder = self.folder.join(manifest.hex());
        let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
        let names =
            entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|x| x == "name"));
        let read = |path: PathBuf| {
            let shape = String::from_utf8(read(&path)?).ok().filter(|shape| shape.len() <= SHAPE_BYTES_MAX)?;
            let changed = fs::metadata(path.with_extension("")).and_then(|metadata| metadata.modified()).ok()?;
            Some((shape, changed))
        };
        names.filter_map(read).collect()
    }

    fn path(&self, manifest: &Digest, shape: &str) -> PathBuf {
        self.folder.join(manifest.hex()).join(blake3::hash(shape.as_bytes()).to_hex().as_str())
    }
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(TRACE_STORED_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    fs::write(&temporary, bytes)?;
    fs::rename(temporary, path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The entries that were changed least lately, all but `kept` of them.
fn oldest_beyond(folder: &Path, kept: usize, counts: impl Fn(&Path) -> bool) -> io::Result<Vec<PathBuf>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if counts(&entry.path()) {
            entries.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    entries.sort();
    entries.truncate(entries.len().saturating_sub(kept));
    Ok(entries.into_iter().map(|(_, path)| path).collect())
}
