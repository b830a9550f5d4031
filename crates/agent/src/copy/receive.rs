//! An archive extracted in a directory of the container.

use std::convert::Infallible;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chmodat, chownat, linkat, mkdirat, mknodat,
    openat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use sampan_wire::agent::Refusal;

use super::invalid;
use crate::fault::failed;
use crate::limits::{ARCHIVE_DEPTH_MAX, ARCHIVE_EXTENSION_BYTES_MAX, READ_BYTES};
use crate::tar::{BLOCK, Entry, Kind, text};

/// Extracts the archive in `directory` and ends the process.
pub(crate) fn receive(directory: &str, archive: &OwnedFd) -> Result<Infallible, Refusal> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let target = openat(CWD, directory, flags, Mode::empty())
        .map_err(|_errno| Refusal::NoSuchPath { path: directory.to_owned() })?;
    let stage = format!("copy to {directory}");
    let archive = archive.try_clone().map_err(|error| failed(&stage, &error))?;
    rustix::process::umask(Mode::empty());
    match extract(&target, io::BufReader::with_capacity(READ_BYTES, std::fs::File::from(archive))) {
        Ok(()) => sampan_sys::process::exit_now(0),
        Err(error) => Err(failed(&stage, &error)),
    }
}

/// Extracts everything; the end of the archive has to be there.
fn extract(target: &OwnedFd, mut archive: impl Read) -> io::Result<()> {
    let (mut records, mut long_name, mut long_link) = (None, None, None);
    loop {
        let mut block = [0; BLOCK];
        archive.read_exact(&mut block)?;
        let Some(mut entry) = Entry::decode(&block).map_err(invalid)? else {
            // What follows (a second empty block, padding) is read, so that the sender is not cut off.
            return io::copy(&mut archive, &mut io::sink()).map(|_| ());
        };
        match entry.kind {
            Kind::Extension => records = Some(read_extension(&mut archive, entry.size)?),
            Kind::GlobalExtension => drop(read_extension(&mut archive, entry.size)?),
            Kind::LongName => long_name = Some(read_extension(&mut archive, entry.size)?),
            Kind::LongLink => long_link = Some(read_extension(&mut archive, entry.size)?),
            _ => {
                if let Some(name) = long_name.take() {
                    entry.name = text(&name).to_vec();
                }
                if let Some(link) = long_link.take() {
                    entry.link = text(&link).to_vec();
                }
                if let Some(records) = records.take() {
                    entry.extend(&records).map_err(invalid)?;
                }
                make(target, &entry, &mut archive)?;
            }
        }
    }
}

fn read_extension(archive: &mut impl Read, size: u64) -> io::Result<Vec<u8>> {
    if size > ARCHIVE_EXTENSION_BYTES_MAX {
        return Err(invalid(format!("an extended header has {size} bytes, more than {ARCHIVE_EXTENSION_BYTES_MAX}")));
    }
    let mut bytes = Vec::new();
    let padded = size.next_multiple_of(BLOCK as u64);
    archive.take(padded).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != padded {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    bytes.truncate(usize::try_from(size).unwrap_or(usize::MAX));
    Ok(bytes)
}

/// The components of a name; an absolute one is taken as relative, one that climbs is refused.
fn components(name: &[u8]) -> io::Result<Vec<&[u8]>> {
    let parts: Vec<&[u8]> = name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.contains(&&b".."[..]) || parts.len() > ARCHIVE_DEPTH_MAX {
        return Err(invalid(format!("the name {:?} is refused", String::from_utf8_lossy(name))));
    }
    Ok(parts)
}

fn make(target: &OwnedFd, entry: &Entry, archive: &mut impl Read) -> io::Result<()> {
    let size = if entry.kind == Kind::File { entry.size } else { 0 };
    let mut content = archive.take(size);
    let parts = components(&entry.name)?;
    if let Some((name, parents)) = parts.split_last() {
        let mut dir = target.try_clone()?;
        for parent in parents {
            dir = enter(&dir, parent)?;
        }
        make_in(target, &dir, name, entry, &mut content)?;
    }
    io::copy(&mut content, &mut io::sink())?;
    let padding = size.next_multiple_of(BLOCK as u64).saturating_sub(size);
    let padded = io::copy(&mut archive.take(padding), &mut io::sink())?;
    if padded == padding { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// A directory inside another, made when it is missing. Links are followed: they end at the container's own root.
fn enter(dir: &OwnedFd, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(dir, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            mkdirat(dir, name, Mode::from_raw_mode(0o755))?;
            Ok(openat(dir, name, flags, Mode::empty())?)
        }
        result => Ok(result?),
    }
}

fn make_in(
    target: &OwnedFd,
    dir: &OwnedFd,
    name: &[u8],
    entry: &Entry,
    content: &mut io::Take<impl Read>,
) -> io::Result<()> {
    let mode = Mode::from_raw_mode(entry.mode);
    let existing = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok().map(|stat| FileType::from_raw_mode(stat.st_mode));
    match (entry.kind, existing) {
        (Kind::Directory, Some(FileType::Directory)) | (_, None) => {}
        (_, Some(FileType::Directory)) => {
            return Err(invalid(format!("{} is a directory already", String::from_utf8_lossy(&entry.name))));
        }
        (_, Some(_)) => unlinkat(dir, name, AtFlags::empty())?,
    }
    match entry.kind {
        Kind::Directory if existing == Some(FileType::Directory) => {}
        Kind::Directory => mkdirat(dir, name, mode)?,
        Kind::File => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = std::fs::File::from(openat(dir, name, flags, mode)?);
            let written = io::copy(content, &mut file)?;
            if written != entry.size {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Kind::SymbolicLink => symlinkat(entry.link.as_slice(), dir, name)?,
        Kind::HardLink => {
            let parts = components(&entry.link)?;
            linkat(target, parts.join(&b'/').as_slice(), dir, name, AtFlags::empty())?;
            // Owner, mode and times are the file's own.
            return Ok(());
        }
        Kind::Fifo => mknodat(dir, name, FileType::Fifo, mode, 0)?,
        _ => return Err(invalid(format!("{} is a device", String::from_utf8_lossy(&entry.name)))),
    }
    restore(dir, name, entry)
}

fn restore(dir: &OwnedFd, name: &[u8], entry: &Entry) -> io::Result<()> {
    if let (Ok(uid), Ok(gid)) = (u32::try_from(entry.uid), u32::try_from(entry.gid)) {
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match chownat(dir.as_fd(), name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW) {
            // An owner that the container does not have: then it is root's.
            Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if entry.kind != Kind::SymbolicLink {
        chmodat(dir, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
    }
    let modified = Timespec { tv_sec: entry.modified, tv_nsec: 0 };
    let times = Timestamps { last_access: modified, last_modification: modified };
    match utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW) {
        // A time before or after what the file system can hold.
        Ok(()) | Err(Errno::INVAL | Errno::OVERFLOW) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn archive(entries: &[(Kind, &str, &str, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, name, link, content) in entries {
            let entry = Entry {
                kind: *kind,
                name: name.as_bytes().to_vec(),
                link: link.as_bytes().to_vec(),
                mode: 0o640,
                uid: 0,
                gid: 0,
                size: content.len() as u64,
                modified: 1_000_000_000,
                device: (0, 0),
            };
            bytes.extend(entry.encode());
            bytes.extend(*content);
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        }
        bytes.extend([0; 2 * BLOCK]);
        bytes
    }

    fn extract_in(directory: &std::path::Path, bytes: &[u8]) -> io::Result<()> {
        let target = OwnedFd::from(std::fs::File::open(directory)?);
        extract(&target, bytes)
    }

    #[test]
    fn extracts_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let long = format!("deep/{}", "n".repeat(200));
        let bytes = archive(&[
            (Kind::File, "/a", "", b"content"),
            (Kind::File, &long, "", b""),
            (Kind::SymbolicLink, "deep/link", "../a", b""),
            (Kind::HardLink, "b", "a", b""),
            (Kind::File, "a", "", b"again"),
        ]);
        extract_in(directory.path(), &bytes).unwrap();
        let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        assert_eq!((read("a"), read("b"), read("deep/link")), ("again".into(), "content".into(), "again".into()));
        assert_eq!(read(&long), "");
    }

    #[test]
    fn refuses_what_climbs_and_what_breaks_off() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["../x", "a/../../x"] {
            let error = extract_in(directory.path(), &archive(&[(Kind::File, name, "", b"x")])).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        let whole = archive(&[(Kind::File, "a", "", b"content")]);
        for cut in [0, 100, BLOCK, BLOCK + 3, 2 * BLOCK] {
            let error = extract_in(directory.path(), &whole[..cut]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn any_archive_is_survived(damage in prop::collection::vec((0..4096_usize, any::<u8>()), 0..20)) {
            let directory = tempfile::tempdir().unwrap();
            let mut bytes = archive(&[(Kind::File, "a", "", b"content"), (Kind::SymbolicLink, "l", "a", b""), (Kind::Directory, "d", "", b"")]);
            for (place, byte) in damage {
                let length = bytes.len();
                bytes[place % length] = byte;
            }
            drop(extract_in(directory.path(), &bytes));
        }
    }
}
