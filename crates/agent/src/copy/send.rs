//! A tree of the container as an archive.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};
use sampan_wire::agent::{ChildReport, Refusal};

use super::invalid;
use crate::fault::failed;
use crate::launch::report_to_agent;
use crate::limits::{ARCHIVE_DEPTH_MAX, HARD_LINKS_MAX, READ_BYTES};
use crate::tar::{BLOCK, Entry, Kind};

/// Writes the archive of `path` and ends the process; reports once the path has been found.
pub(crate) fn send(path: &str, archive: &OwnedFd, report: &OwnedFd) -> Result<Infallible, Refusal> {
    let no_such_path = || Refusal::NoSuchPath { path: path.to_owned() };
    let (parent, name) = split(path);
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = openat(CWD, parent, directory, Mode::empty()).map_err(|_errno| no_such_path())?;
    statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|_errno| no_such_path())?;
    report_to_agent(report, &ChildReport::Opened, &[]);
    let archive = archive.try_clone().map_err(|error| failed("duplicate the archive's pipe", &error))?;
    let mut sender = Sender { out: io::BufWriter::with_capacity(READ_BYTES, archive.into()), seen: HashMap::new() };
    let sent = sender.entry(parent.as_fd(), name.as_bytes(), name.as_bytes(), 0).and_then(|()| sender.end());
    match sent {
        Ok(()) => sampan_sys::process::exit_now(0),
        Err(error) => Err(failed(&format!("copy {path}"), &error)),
    }
}

/// Parent and last component; the root is its own `.`.
fn split(path: &str) -> (&str, &str) {
    match path.trim_end_matches('/').rsplit_once('/') {
        Some((parent, name @ ("." | ".."))) => {
            (if parent.is_empty() { "/" } else { path }, if name == ".." { ".." } else { "." })
        }
        Some(("", name)) => ("/", name),
        Some((parent, name)) => (parent, name),
        None if path.starts_with('/') || path.is_empty() => ("/", "."),
        None => ("/", path),
    }
}

struct Sender {
    out: io::BufWriter<std::fs::File>,
    /// Files with more than one name, by device and inode, and the first of the names.
    seen: HashMap<(u64, u64), Vec<u8>>,
}

impl Sender {
    /// Writes the entry called `name` in `dir`, as `path`, and all below it.
    fn entry(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8], depth: usize) -> io::Result<()> {
        if depth > ARCHIVE_DEPTH_MAX {
            return Err(invalid(format!("the tree is more than {ARCHIVE_DEPTH_MAX} directories deep")));
        }
        let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // It has just been removed.
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let Some(mut entry) = describe(&stat, path) else { return Ok(()) };
        match entry.kind {
            Kind::Directory => {
                entry.name.push(b'/');
                self.out.write_all(&entry.encode())?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let inside = openat(dir, name, flags, Mode::empty())?;
                self.directory(&inside, path, depth)
            }
            Kind::SymbolicLink => {
                entry.link = readlinkat(dir, name, Vec::new())?.into_bytes();
                self.out.write_all(&entry.encode())
            }
            Kind::File => {
                if let Some(first) = self.first_name(&stat, path) {
                    (entry.kind, entry.link, entry.size) = (Kind::HardLink, first, 0);
                    return self.out.write_all(&entry.encode());
                }
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = openat(dir, name, flags, Mode::empty())?;
                self.out.write_all(&entry.encode())?;
                self.content(file.into(), entry.size)
            }
            _ => self.out.write_all(&entry.encode()),
        }
    }

    fn directory(&mut self, inside: &OwnedFd, path: &[u8], depth: usize) -> io::Result<()> {
        for child in Dir::read_from(inside)? {
            let child = child?;
            let name = child.file_name().to_bytes();
            if name != b"." && name != b".." {
                let path = [path, name].join(&b'/');
                self.entry(inside.as_fd(), name, &path, depth.saturating_add(1))?;
            }
        }
        Ok(())
    }

    /// Exactly as much as the header says, whatever has become of the file.
    fn content(&mut self, file: std::fs::File, size: u64) -> io::Result<()> {
        let copied = io::copy(&mut file.take(size), &mut self.out)?;
        let padding = size.next_multiple_of(BLOCK as u64).saturating_sub(copied);
        io::copy(&mut io::repeat(0).take(padding), &mut self.out).map(|_| ())
    }

    /// The name under which this file is in the archive already.
    fn first_name(&mut self, stat: &Stat, path: &[u8]) -> Option<Vec<u8>> {
        if stat.st_nlink < 2 || self.seen.len() >= HARD_LINKS_MAX {
            return None;
        }
        let file = (stat.st_dev, stat.st_ino);
        let first = self.seen.get(&file).cloned();
        if first.is_none() {
            self.seen.insert(file, path.to_vec());
        }
        first
    }

    fn end(&mut self) -> io::Result<()> {
        self.out.write_all(&[0; BLOCK * 2])?;
        self.out.flush()
    }
}

/// `None` for what archives have no word for: sockets.
fn describe(stat: &Stat, path: &[u8]) -> Option<Entry> {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::SymbolicLink,
        FileType::Fifo => Kind::Fifo,
        FileType::CharacterDevice => Kind::CharacterDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        _ => return None,
    };
    let size = if kind == Kind::File { u64::try_from(stat.st_size).unwrap_or_default() } else { 0 };
    Some(Entry {
        kind,
        name: path.to_vec(),
        link: Vec::new(),
        mode: stat.st_mode & 0o7777,
        uid: u64::from(stat.st_uid),
        gid: u64::from(stat.st_gid),
        size,
        modified: stat.st_mtime,
        device: (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
    })
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn splits_paths() {
        assert_eq!(split("/etc/passwd"), ("/etc", "passwd"));
        assert_eq!(split("/etc/"), ("/", "etc"));
        assert_eq!(split("etc"), ("/", "etc"));
        assert_eq!(split("/"), ("/", "."));
        assert_eq!(split("/etc/."), ("/etc/.", "."));
    }
}
