//! A local file or directory as a tar stream: ustar, with PAX records for what does not fit it
//! (POSIX.1-2017 `pax`, "ustar Interchange Format").
//!
//! Owners are written as root, as docker does. Symlinks stay symlinks; hard links within the source stay hard links;
//! sockets, devices and pipes are left out. A file that grows while it is read is cut at the size in its header, one
//! that shrinks is filled with zeros, so that the stream stays one.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::sync::mpsc::Sender;

use crate::failure::Failure;
use crate::limits::COPY_DEPTH_MAX;

const BLOCK: usize = 512;
/// One piece of a stream.
const PIECE: usize = 64 << 10;
/// What ustar's size field holds: eleven octal digits.
const USTAR_SIZE_MAX: u64 = (1 << 33) - 1;

/// What is to be copied.
#[derive(Debug)]
pub(super) struct Source {
    path: PathBuf,
    metadata: Metadata,
    contents_only: bool,
}

/// Why packing ended early.
enum Stop {
    /// The other side takes no more; it says why.
    NobodyReads,
    /// This file could not be read.
    Unreadable(PathBuf, io::Error),
}

impl Source {
    /// Looks at a path: a symlink is itself meant, unless it ends in a slash.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let bytes = path.as_os_str().as_bytes();
        let contents_only = bytes == b"." || bytes.ends_with(b"/.");
        let through = contents_only || bytes.ends_with(b"/");
        let metadata = if through { path.metadata() } else { path.symlink_metadata() };
        let metadata = metadata.map_err(|error| Failure::explain(path.display(), error, "name a file or directory"))?;
        if !(metadata.is_dir() || metadata.is_file() || metadata.is_symlink()) {
            return Err(Failure::explain(
                path.display(),
                "it is neither file, directory nor link",
                "name one of these",
            ));
        }
        Ok(Self { path: path.to_owned(), metadata, contents_only })
    }

    pub(super) fn is_directory(&self) -> bool {
        self.metadata.is_dir()
    }

    /// The name it gets inside a directory; `None`: only what is in it goes there.
    pub(super) fn name_below(&self) -> Option<Vec<u8>> {
        if self.contents_only {
            return None;
        }
        let name = self.path.file_name().map(ToOwned::to_owned);
        // A path such as `..` has no name of its own.
        let name = name.or_else(|| self.path.canonicalize().ok()?.file_name().map(ToOwned::to_owned));
        name.map(|name| name.as_bytes().to_vec())
    }

    /// Writes the stream; blocking. A line about what was left out.
    pub(super) fn pack(&self, name: Option<&[u8]>, sender: &Sender<Bytes>) -> Result<Option<String>, Failure> {
        let mut packing = Packing { sender, linked: HashMap::new(), left_out: 0 };
        let packed = packing.tree(&self.path, &self.metadata, name.unwrap_or(b"."), 0).and_then(|()| packing.end());
        match packed {
            Ok(()) | Err(Stop::NobodyReads) => {
                let left_out = packing.left_out;
                Ok((left_out > 0).then(|| format!("cp: {left_out} sockets, devices or pipes were left out")))
            }
            Err(Stop::Unreadable(path, error)) => {
                Err(Failure::explain(path.display(), error, "the copy is incomplete; mend it and try again"))
            }
        }
    }
}

/// A stream being written.
struct Packing<'sender> {
    sender: &'sender Sender<Bytes>,
    /// Files with several names, by device and inode, with the name they got first.
    linked: HashMap<(u64, u64), Vec<u8>>,
    left_out: u64,
}

impl Packing<'_> {
    fn tree(&mut self, path: &Path, metadata: &Metadata, name: &[u8], depth: usize) -> Result<(), Stop> {
        let unreadable = |error: io::Error| Stop::Unreadable(path.to_owned(), error);
        if depth > COPY_DEPTH_MAX {
            return Err(unreadable(io::Error::other("directories are nested too deeply")));
        }
        if metadata.is_symlink() {
            let target = fs::read_link(path).map_err(unreadable)?;
            return self.head(name, b'2', metadata, 0, target.as_os_str().as_bytes());
        }
        if metadata.is_dir() {
            self.head(&[name, b"/"].concat(), b'5', metadata, 0, b"")?;
            let mut children: Vec<PathBuf> = Vec::new();
            for child in fs::read_dir(path).map_err(unreadable)? {
                children.push(child.map_err(unreadable)?.path());
            }
            children.sort();
            for child in children {
                let metadata = child.symlink_metadata().map_err(|error| Stop::Unreadable(child.clone(), error))?;
                let base = child.file_name().unwrap_or_default().as_bytes();
                self.tree(&child, &metadata, &[name, b"/", base].concat(), depth + 1)?;
            }
            return Ok(());
        }
        if !metadata.is_file() {
            self.left_out += 1;
            return Ok(());
        }
        if metadata.nlink() > 1 {
            let identity = (metadata.dev(), metadata.ino());
            if let Some(first) = self.linked.get(&identity).cloned() {
                return self.head(name, b'1', metadata, 0, &first);
            }
            self.linked.insert(identity, name.to_vec());
        }
        let file = File::open(path).map_err(unreadable)?;
        self.head(name, b'0', metadata, metadata.len(), b"")?;
        self.content(file, metadata.len()).map_err(|stop| match stop {
            Stop::Unreadable(_, error) => Stop::Unreadable(path.to_owned(), error),
            stop => stop,
        })
    }

    fn content(&mut self, mut file: File, size: u64) -> Result<(), Stop> {
        let mut remaining = size;
        while remaining > 0 {
            let mut piece = vec![0; PIECE.min(usize::try_from(remaining).unwrap_or(PIECE))];
            let count = file.read(&mut piece).map_err(|error| Stop::Unreadable(PathBuf::new(), error))?;
            if count > 0 {
                piece.truncate(count);
            }
            remaining -= piece.len() as u64;
            self.send(piece)?;
        }
        self.send(vec![0; padding(size)])
    }

    fn head(&mut self, name: &[u8], kind: u8, metadata: &Metadata, size: u64, link: &[u8]) -> Result<(), Stop> {
        let mut records = Vec::new();
        for (key, value) in [("path", name), ("linkpath", link)] {
            if value.len() > 100 {
                record(&mut records, key, value);
            }
        }
        if size > USTAR_SIZE_MAX {
            record(&mut records, "size", size.to_string().as_bytes());
        }
        let mode = metadata.mode() & 0o7777;
        let time = u64::try_from(metadata.mtime()).unwrap_or(0).min(USTAR_SIZE_MAX);
        if !records.is_empty() {
            let length = records.len() as u64;
            self.send(block(b"PaxHeader", b'x', 0o644, time, length, b""))?;
            records.resize(records.len() + padding(length), 0);
            self.send(records)?;
        }
        self.send(block(name, kind, mode, time, size, link))
    }

    fn end(&mut self) -> Result<(), Stop> {
        self.send(vec![0; 2 * BLOCK])
    }

    fn send(&mut self, piece: Vec<u8>) -> Result<(), Stop> {
        if piece.is_empty() {
            return Ok(());
        }
        self.sender.blocking_send(Bytes::from(piece)).map_err(|_closed| Stop::NobodyReads)
    }
}

/// Zeros after so many bytes, up to the next block.
fn padding(size: u64) -> usize {
    (BLOCK - (size % BLOCK as u64) as usize) % BLOCK
}

/// A PAX record: its own length in decimal, a blank, `key=value`, a newline.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if length.to_string().len() > rest.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// A ustar header; what is too long is cut, for a PAX record says it in full.
fn block(name: &[u8], kind: u8, mode: u32, time: u64, size: u64, link: &[u8]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    let mut put = |offset: usize, bytes: &[u8]| {
        for (place, byte) in block.iter_mut().skip(offset).zip(bytes) {
            *place = *byte;
        }
    };
    put(0, name.get(..name.len().min(100)).unwrap_or_default());
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{:011o}", size.min(USTAR_SIZE_MAX)).as_bytes());
    put(136, format!("{time:011o}").as_bytes());
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link.get(..link.len().min(100)).unwrap_or_default());
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    let checksum = format!("{sum:06o}\0 ");
    for (place, byte) in block.iter_mut().skip(148).zip(checksum.as_bytes()) {
        *place = *byte;
    }
    block
}
