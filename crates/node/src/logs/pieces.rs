//! A run's log in pieces: the file that is being written, and older ones that were put aside, most of them packed.
//!
//! ```text
//! 0.log                                the agent writes here
//! 0.log.20261121-162530.123456789      put aside last: readers may still be in it
//! 0.log.20261121-160000.000000000.gz   older
//! 0.log.next                           for a moment: where the agent goes on
//! ```
//!
//! The agent is told of the next file before anything is renamed, so whoever sees another file under the log's name knows
//! that the old one is complete. As the kubelet does it (`pkg/kubelet/logs/container_log_manager.go`).

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use jiff::Timestamp;

use crate::limits::{LOG_PIECE_BYTES, LOG_PIECE_BYTES_UNPACKED_MAX, LOG_PIECES_MAX};

/// Listing and opening again, when a piece is put aside in between.
const ATTEMPTS_MAX: u32 = 4;

/// An opened piece.
#[derive(Debug)]
pub(crate) struct Piece {
    file: File,
    packed: bool,
}

impl Piece {
    /// One that needs no unpacking.
    pub(crate) fn plain(file: File) -> Self {
        Self { file, packed: false }
    }

    /// Whether [`Self::open`] has to unpack it.
    pub(crate) fn is_packed(&self) -> bool {
        self.packed
    }

    /// The file itself, or an unpacked copy of it that has no name.
    pub(crate) fn open(self) -> io::Result<File> {
        if !self.packed {
            return Ok(self.file);
        }
        let mut plain = tempfile()?;
        let unpacked = io::Read::take(GzDecoder::new(self.file), LOG_PIECE_BYTES_UNPACKED_MAX);
        io::copy(&mut io::BufReader::new(unpacked), &mut plain)?;
        io::Seek::rewind(&mut plain)?;
        Ok(plain)
    }

    /// Whether this is that very file.
    pub(crate) fn is(&self, file: &fs::Metadata) -> bool {
        let same = |own: fs::Metadata| own.dev() == file.dev() && own.ino() == file.ino();
        self.file.metadata().is_ok_and(same)
    }
}

/// A file in memory: pieces are small.
fn tempfile() -> io::Result<File> {
    Ok(rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC)?.into())
}

/// Everything there is of a log, the oldest first.
pub(crate) fn open_all(path: &Path) -> io::Result<Vec<Piece>> {
    for _ in 0..ATTEMPTS_MAX {
        let names = names(path)?;
        let opened: io::Result<Vec<Piece>> = names.iter().map(|name| open(name)).collect();
        match opened {
            // Something was put aside, packed or removed in the meantime.
            Err(error) if error.kind() == io::ErrorKind::NotFound && names.len() > 1 => {}
            Ok(pieces) if names.len() == 1 || self::names(path)? == names => return Ok(pieces),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(vec![open(path)?])
}

fn open(path: &Path) -> io::Result<Piece> {
    let packed = path.extension().is_some_and(|extension| extension == "gz");
    Ok(Piece { file: File::open(path)?, packed })
}

/// The names of all pieces, the oldest first; the log itself last, whether it is there or not.
fn names(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut aside = aside(path)?;
    aside.push(path.to_owned());
    Ok(aside)
}

/// What was put aside, the oldest first.
fn aside(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let own = entry.file_name();
        let rest = own.to_str().and_then(|own| own.strip_prefix(name)?.strip_prefix('.'));
        if rest.is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()) && !rest.ends_with(".tmp")) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Where the agent goes on.
pub(crate) fn next(path: &Path) -> PathBuf {
    with(path, ".next")
}

/// Whether a log is to be cut: it is long, or it was about to be when the service died.
pub(crate) fn is_due(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|log| log.len() >= LOG_PIECE_BYTES) || next(path).exists()
}

/// Puts a log aside, once the agent writes to [`next`]; packs and removes older pieces.
pub(crate) fn cut(path: &Path, now: Timestamp) -> io::Result<()> {
    fs::rename(path, with(path, &format!(".{}", now.strftime("%Y%m%d-%H%M%S.%9f"))))?;
    fs::rename(next(path), path)?;
    let mut pieces = aside(path)?;
    // The log itself is one of them.
    let surplus = (pieces.len() + 1).saturating_sub(LOG_PIECES_MAX);
    for old in pieces.drain(..surplus) {
        fs::remove_file(old)?;
    }
    pieces.pop();
    pieces.into_iter().filter(|piece| piece.extension().is_none_or(|extension| extension != "gz")).try_for_each(pack)
}

fn pack(piece: PathBuf) -> io::Result<()> {
    let (draft, packed) = (with(&piece, ".tmp"), with(&piece, ".gz"));
    let target = OpenOptions::new().create(true).write(true).truncate(true).mode(0o640).open(&draft)?;
    let mut encoder = GzEncoder::new(target, Compression::fast());
    // Not more than a reader unpacks; and of a log with a hole at its beginning only what is there.
    let mut source = io::Read::take(skip_hole(File::open(&piece)?)?, LOG_PIECE_BYTES_UNPACKED_MAX);
    io::copy(&mut source, &mut encoder)?;
    encoder.finish()?;
    fs::rename(draft, packed)?;
    fs::remove_file(piece)
}

fn skip_hole(mut file: File) -> io::Result<File> {
    match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)) {
        Ok(_) => {}
        Err(rustix::io::Errno::NXIO) => drop(io::Seek::seek(&mut file, io::SeekFrom::End(0))?),
        Err(error) => return Err(error.into()),
    }
    Ok(file)
}

/// Removes what was put aside of a run's log.
pub(crate) fn forget_aside(path: &Path) -> io::Result<()> {
    match aside(path) {
        Ok(pieces) => pieces.into_iter().try_for_each(fs::remove_file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::{aside, cut, forget_aside, next, open_all};
    use crate::limits::LOG_PIECES_MAX;
    use jiff::Timestamp;
    use std::io::Read;

    #[test]
    fn a_log_is_cut_packed_and_read_as_one() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("0.log");
        std::fs::write(&log, "line 0\n").unwrap();
        for number in 1..=LOG_PIECES_MAX + 2 {
            std::fs::write(next(&log), format!("line {number}\n")).unwrap();
            cut(&log, Timestamp::from_second(1_000_000 + i64::try_from(number).unwrap()).unwrap()).unwrap();
            let mut all = String::new();
            for piece in open_all(&log).unwrap() {
                piece.open().unwrap().read_to_string(&mut all).unwrap();
            }
            let first = (number + 1).saturating_sub(LOG_PIECES_MAX);
            let wanted: String = (first..=number).map(|number| format!("line {number}\n")).collect();
            assert_eq!(all, wanted);
        }
        let packed = aside(&log).unwrap().iter().filter(|path| path.extension().is_some_and(|one| one == "gz")).count();
        assert_eq!(packed, LOG_PIECES_MAX - 2, "all but the last, where readers may still be");
        forget_aside(&log).unwrap();
        assert_eq!((aside(&log).unwrap().len(), log.exists()), (0, true));
    }
}
