//! Writing what an instance sends below a local directory, and nowhere else.
//!
//! The stream is the work of whoever controls the instance. What it can name is bounded by the reader
//! ([`sampan_oci::layer`]): no absolute names, no climbing by `..`. What it can *reach* is bounded here:
//!
//! - every name is resolved by the kernel below the destination with no symlink on the way (`openat2`, `RESOLVE_BENEATH`
//!   and `RESOLVE_NO_SYMLINKS`), so that neither a link in the stream nor one that was there before leads out;
//! - files are created anew (`O_EXCL`) after an old one of the name is unlinked, so that nothing is written through a
//!   link of either kind; what is neither file, link nor directory is never replaced;
//! - set-uid, set-gid, devices, pipes and owners are not taken over: this process is usually root.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, fchmod, futimens, linkat, mkdirat,
    openat, openat2, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use sampan_oci::layer::{Entry, EntryKind, LayerPath, LayerSink, Segment, Timestamp, display_name};

use super::place::Remote;
use crate::failure::Failure;

/// Where a stream is to be written, decided before it is opened.
#[derive(Debug)]
pub(super) struct Wanted {
    /// The directory below which everything comes to lie.
    directory: OwnedFd,
    /// What the first component of every name becomes; `None`: it is left out.
    name: Option<OsString>,
    /// A file stands there, or a name for a directory was given: the source must be of the same kind.
    only: Option<Only>,
    /// The destination as the user wrote it.
    shown: String,
    /// Names in the stream have no first component of their own.
    of_root: bool,
}

/// Which kind of source a destination admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Only {
    NoDirectory,
    Directory,
}

impl Wanted {
    /// Applies docker's rules to a local destination.
    pub(super) fn at(to: &Path, from: &Remote) -> Result<Self, Failure> {
        let shown = to.display().to_string();
        let failure = |error: &dyn std::fmt::Display, way_out: &str| Failure::explain(&shown, error, way_out);
        let ends_as_directory = to.as_os_str().as_bytes().ends_with(b"/");
        let (directory, name, only) = match to.metadata() {
            Ok(found) if found.is_dir() => {
                let name = (!from.contents_only).then(|| OsString::from(from.base()));
                (to.to_owned(), name, from.contents_only.then_some(Only::Directory))
            }
            Ok(found) if found.is_file() => {
                let real = to.canonicalize().map_err(|error| failure(&error, "mend the path"))?;
                let (parent, name) = split(&real);
                (parent, name, Some(Only::NoDirectory))
            }
            Ok(_) => return Err(failure(&"it is neither a file nor a directory", "write - for a stream")),
            Err(_) => {
                let (parent, name) = split(to);
                (parent, name, ends_as_directory.then_some(Only::Directory))
            }
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, &directory, flags, Mode::empty()).map_err(|error| {
            failure(&format!("its directory cannot be opened: {error}"), "create the directory first")
        })?;
        Ok(Self { directory, name, only, shown: shown.clone(), of_root: from.is_root() })
    }
}

/// The directory of a path and the name in it.
fn split(path: &Path) -> (PathBuf, Option<OsString>) {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    (parent.to_owned(), path.file_name().map(ToOwned::to_owned))
}

/// A file that is being written.
#[derive(Debug)]
struct Open {
    file: File,
    entry: Entry,
    /// Bytes of data taken so far, holes not counted.
    taken: u64,
}

/// An unpacking under way.
#[derive(Debug)]
pub(super) struct Unpacking {
    wanted: Wanted,
    open: Option<Open>,
    /// Directories made, with what they get when nothing is written into them any more.
    made: Vec<(PathBuf, u16, Timestamp)>,
    entries: u64,
    left_out: u64,
}

impl Unpacking {
    pub(super) fn new(wanted: Wanted) -> Self {
        Self { wanted, open: None, made: Vec::new(), entries: 0, left_out: 0 }
    }

    /// Sets what directories get last; a line about what was left out.
    pub(super) fn finish(self) -> Result<Option<String>, Failure> {
        if self.entries == 0 {
            return Err(Failure::explain(&self.wanted.shown, "the instance sent nothing", "look at the service's log"));
        }
        for (path, mode, time) in self.made.iter().rev() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            if let Ok(directory) = beneath(self.wanted.directory.as_fd(), path, flags) {
                dress(directory.as_fd(), *mode, *time);
            }
        }
        let left_out = self.left_out;
        Ok((left_out > 0).then(|| format!("cp: {left_out} devices, pipes or whiteouts were left out")))
    }

    /// The local name of an entry; `None` when it is the directory itself that everything goes into.
    fn local(&self, path: &LayerPath) -> Option<PathBuf> {
        let mut components = path.components();
        if !self.wanted.of_root {
            components.next()?;
        }
        let rest = components.map(|component| OsString::from_vec(component.to_vec()));
        let local: PathBuf = self.wanted.name.iter().cloned().chain(rest).collect();
        (!local.as_os_str().is_empty()).then_some(local)
    }

    fn check_kind(&self, entry: &Entry) -> Result<(), Failure> {
        let is_directory = entry.kind == EntryKind::Directory;
        let failure = |reason: &str, way_out: &str| Err(Failure::explain(&self.wanted.shown, reason, way_out));
        match self.wanted.only {
            Some(Only::NoDirectory) if is_directory => {
                failure("it is a file, and a directory cannot take its place", "name a directory")
            }
            Some(Only::Directory) if !is_directory => failure("there is no such directory", "create it first"),
            _ => Ok(()),
        }
    }

    fn write_entry(&mut self, entry: Entry) -> Result<(), Errno> {
        let Some(local) = self.local(&entry.path) else { return Ok(()) };
        let name = local.file_name().unwrap_or_default().to_owned();
        match &entry.kind {
            EntryKind::Directory => self.make_directory(&local, entry.mode, entry.mtime),
            EntryKind::File { .. } => {
                let parent = self.parent(&local)?;
                make_room(parent.as_fd(), &name)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = File::from(openat(&parent, &name, flags, Mode::RUSR | Mode::WUSR)?);
                self.open = Some(Open { file, entry, taken: 0 });
                Ok(())
            }
            EntryKind::Symlink { target } => {
                let parent = self.parent(&local)?;
                make_room(parent.as_fd(), &name)?;
                symlinkat(target.as_slice(), &parent, &name)
            }
            EntryKind::HardLink { target } => {
                let target = self.local(target).ok_or(Errno::INVAL)?;
                let target_parent = self.parent(&target)?;
                let parent = self.parent(&local)?;
                make_room(parent.as_fd(), &name)?;
                linkat(&target_parent, target.file_name().unwrap_or_default(), &parent, &name, AtFlags::empty())
            }
            EntryKind::CharDevice { .. }
            | EntryKind::BlockDevice { .. }
            | EntryKind::Fifo
            | EntryKind::Whiteout
            | EntryKind::Opaque => {
                self.left_out += 1;
                Ok(())
            }
        }
    }

    fn make_directory(&mut self, local: &Path, mode: u16, time: Timestamp) -> Result<(), Errno> {
        let parent = self.parent(local)?;
        match mkdirat(&parent, local.file_name().unwrap_or_default(), Mode::RWXU) {
            Ok(()) => {
                self.made.push((local.to_owned(), mode, time));
                Ok(())
            }
            // One that is there already keeps what it has, and must be a directory itself, not a link to one.
            Err(Errno::EXIST) => {
                beneath(self.wanted.directory.as_fd(), local, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW)
                    .map(drop)
            }
            Err(error) => Err(error),
        }
    }

    /// The directory that a name lies in, made where the stream leaves it out.
    fn parent(&mut self, local: &Path) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let root = self.wanted.directory.as_fd();
        let Some(parent) = local.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
            return openat(root, ".", flags | OFlags::CLOEXEC, Mode::empty());
        };
        match beneath(root, parent, flags) {
            Err(Errno::NOENT) => {}
            opened => return opened,
        }
        let mut made = PathBuf::new();
        for component in parent.components() {
            made.push(component);
            let above = match made.parent().filter(|above| !above.as_os_str().is_empty()) {
                Some(above) => beneath(root, above, flags)?,
                None => openat(root, ".", flags | OFlags::CLOEXEC, Mode::empty())?,
            };
            match mkdirat(&above, component.as_os_str(), Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
        beneath(root, parent, flags)
    }

    fn about(&self, path: &LayerPath, error: Errno) -> Failure {
        let thing = format!("{}: {}", self.wanted.shown, display_name(path.as_bytes()));
        let (reason, way_out) = match error {
            Errno::LOOP | Errno::XDEV => ("a symlink stands in the way".to_owned(), "copy to an empty directory"),
            Errno::NOTDIR => ("a file stands where a directory belongs".to_owned(), "copy to an empty directory"),
            Errno::ISDIR => ("a directory stands where a file belongs".to_owned(), "copy to an empty directory"),
            Errno::NOTSUP => ("what stands there is no plain file".to_owned(), "copy to an empty directory"),
            Errno::NOSPC => ("the disk is full".to_owned(), "make room and try again"),
            error => (error.to_string(), "look at the destination"),
        };
        Failure::explain(thing, reason, way_out)
    }
}

impl LayerSink for Unpacking {
    type Error = Failure;

    fn entry(&mut self, entry: Entry) -> Result<(), Failure> {
        if self.entries == 0 {
            self.check_kind(&entry)?;
        }
        self.entries += 1;
        let path = entry.path.clone();
        self.write_entry(entry).map_err(|error| self.about(&path, error))
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let mut rest = bytes;
        while !rest.is_empty() {
            let (offset, room) = position(&open.entry.kind, open.taken);
            let (piece, after) = rest.split_at(rest.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            if let Err(error) = open.file.write_all_at(piece, offset) {
                let error = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                let path = open.entry.path.clone();
                return Err(self.about(&path, error));
            }
            open.taken += piece.len() as u64;
            rest = after;
        }
        Ok(())
    }

    fn end_of_file(&mut self) -> Result<(), Failure> {
        let Some(Open { file, entry, .. }) = self.open.take() else { return Ok(()) };
        if let EntryKind::File { size, segments: Some(_) } = &entry.kind {
            rustix::fs::ftruncate(&file, *size).map_err(|error| self.about(&entry.path, error))?;
        }
        dress(file.as_fd(), entry.mode, entry.mtime);
        Ok(())
    }
}

/// Where the byte after `taken` bytes of data belongs in the file, and how many may follow it there.
fn position(kind: &EntryKind, taken: u64) -> (u64, u64) {
    let EntryKind::File { segments: Some(segments), .. } = kind else { return (taken, u64::MAX) };
    let mut before = 0_u64;
    for Segment { offset, length } in segments {
        if taken < before.saturating_add(*length) {
            let inside = taken - before;
            return (offset.saturating_add(inside), length - inside);
        }
        before = before.saturating_add(*length);
    }
    (taken, u64::MAX)
}

/// Opens a path below `root` with no symlink on the way, the last component included.
fn beneath(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Unlinks a file or link of this name; anything else stays and is an error.
fn make_room(parent: BorrowedFd<'_>, name: &std::ffi::OsStr) -> Result<(), Errno> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
        Ok(found) => match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile | FileType::Symlink => unlinkat(parent, name, AtFlags::empty()),
            FileType::Directory => Err(Errno::ISDIR),
            _ => Err(Errno::NOTSUP),
        },
    }
}

/// Gives a file its permissions, less set-uid and set-gid, and its time. A file system that has neither is no obstacle.
fn dress(file: BorrowedFd<'_>, mode: u16, time: Timestamp) {
    fchmod(file, Mode::from_bits_truncate(u32::from(mode) & 0o1777)).ok();
    let stamp = Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    futimens(file, &Timestamps { last_access: stamp, last_modification: stamp }).ok();
}

#[cfg(test)]
mod tests;
