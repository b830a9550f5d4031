//! From the JSON of a table of contents to a tree and the pieces of its files.
//!
//! Both formats have the same entries, which are CRFS's: one for each entry of the archive, and one of type `chunk` for each further
//! piece of a file. A file's first piece is described by the file's own entry.

use super::{Toc, TocError, TocPiece};
use crate::limits::{BLOB_BYTES_MAX, TOC_PIECES_MAX};
use crate::tree::LayerTreeBuilder;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sampan_oci::digest::Digest;
use sampan_oci::layer::limits::{ENTRIES_MAX, FILE_BYTES_MAX, XATTR_BYTES_MAX, XATTR_NAME_BYTES_MAX, XATTRS_MAX};
use sampan_oci::layer::{Entry, EntryKind, LayerPath, Meaning, Timestamp, Xattr, display_name, meaning};
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

const VERSION: u64 = 1;
/// In what pieces the table itself is read, as a file of its layer.
const OWN_PIECE_BYTES: usize = 4 << 20;

/// One line of the table. What it does not name is irrelevant here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    modtime: Option<String>,
    #[serde(default)]
    link_name: String,
    #[serde(default)]
    mode: i64,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    #[serde(default)]
    dev_major: u32,
    #[serde(default)]
    dev_minor: u32,
    #[serde(default)]
    xattrs: Option<BTreeMap<String, Option<String>>>,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    end_offset: u64,
    #[serde(default)]
    chunk_offset: u64,
    #[serde(default)]
    chunk_size: u64,
    #[serde(default)]
    chunk_digest: String,
    #[serde(default)]
    inner_offset: u64,
}

impl Line {
    fn fault(&self, reason: &'static str) -> TocError {
        TocError::Entry { entry: display_name(self.name.as_bytes()), reason }
    }
}

/// The table's own file, of layers that have it as one: its entry, what comes before its data, its member.
pub(super) type OwnFile = (Entry, u64, Range<u64>);

/// Reads the table. `data_end` is where the layer's last piece must end.
pub(super) fn read(json: &[u8], data_end: u64, own: Option<OwnFile>) -> Result<Toc, TocError> {
    let mut reading = Reading::default();
    let mut source = serde_json::Deserializer::from_slice(json);
    let parsed = source.deserialize_map(Table(&mut reading)).and_then(|()| source.end());
    if let Some(fault) = reading.fault.take() {
        return Err(fault);
    }
    parsed.map_err(TocError::Json)?;
    if reading.version != Some(VERSION) {
        return Err(TocError::Unsound("its version is unknown"));
    }
    reading.end_file()?;
    let mut pieces = reading.pieces;
    settle_ends(&mut pieces, data_end)?;
    let (mut builder, mut stream) = (reading.tree, reading.stream);
    if let Some((entry, skipped_bytes, compressed)) = own {
        builder.add(Entry { data_offset: stream, ..entry })?;
        let mut skipped_bytes = skipped_bytes;
        for part in json.chunks(OWN_PIECE_BYTES) {
            let (bytes, digest) = (part.len() as u64, Digest::of(part));
            pieces.push(TocPiece {
                compressed: compressed.clone(),
                skipped_bytes,
                stream_offset: stream,
                bytes,
                digest,
            });
            skipped_bytes += bytes;
            stream += bytes;
        }
    }
    let tree = builder.finish();
    tree.check(stream)?;
    Ok(Toc { tree, pieces })
}

/// The document: its lines are taken one by one, so that no number of them fills the memory.
struct Table<'a>(&'a mut Reading);

impl<'de> Visitor<'de> for Table<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a table of contents")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match &*key {
                "version" => self.0.version = Some(map.next_value()?),
                "entries" => map.next_value_seed(Lines(&mut *self.0))?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

struct Lines<'a>(&'a mut Reading);

impl<'de> DeserializeSeed<'de> for Lines<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Lines<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a list of entries")
    }

    /// Go writes an empty list so.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut lines: A) -> Result<(), A::Error> {
        while let Some(line) = lines.next_element::<Line>()? {
            if let Err(fault) = self.0.line(&line) {
                self.0.fault = Some(fault);
                return Err(A::Error::custom("an entry is not valid"));
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Reading {
    version: Option<u64>,
    lines: u64,
    tree: LayerTreeBuilder,
    pieces: Vec<TocPiece>,
    /// File data so far.
    stream: u64,
    /// The file whose pieces may still come.
    file: Option<OpenFile>,
    fault: Option<TocError>,
}

struct OpenFile {
    name: String,
    size: u64,
    /// How much of it has pieces.
    covered: u64,
}

impl Reading {
    fn line(&mut self, line: &Line) -> Result<(), TocError> {
        self.lines += 1;
        if self.lines > ENTRIES_MAX {
            return Err(TocError::TooLarge);
        }
        if line.kind == "chunk" { self.chunk(line) } else { self.entry(line) }
    }

    fn entry(&mut self, line: &Line) -> Result<(), TocError> {
        self.end_file()?;
        // Those who write tables put this where a name is no UTF-8.
        let names = line.xattrs.iter().flatten().map(|(name, _)| name).chain([&line.name, &line.link_name]);
        if names.into_iter().any(|name| name.contains(char::REPLACEMENT_CHARACTER)) {
            return Err(line.fault("a name was lost on the way into JSON"));
        }
        let (path, kind) = match meaning(LayerPath::of_entry(line.name.as_bytes())?)? {
            Meaning::Whiteout(path) => (path, EntryKind::Whiteout),
            Meaning::Opaque(path) => (path, EntryKind::Opaque),
            Meaning::Plain(path) => (path, kind_of(line)?),
        };
        let is_file = matches!(kind, EntryKind::File { .. });
        let entry = Entry {
            path,
            kind,
            // The type's bits, where a writer leaves them in, say nothing new.
            mode: (line.mode & 0o7777) as u16,
            uid: line.uid,
            gid: line.gid,
            mtime: mtime(line)?,
            xattrs: xattrs(line)?,
            data_offset: self.stream,
        };
        self.tree.add(entry)?;
        if is_file && line.size > 0 {
            self.file = Some(OpenFile { name: line.name.clone(), size: line.size, covered: 0 });
            self.piece(line)?;
        }
        Ok(())
    }

    fn chunk(&mut self, line: &Line) -> Result<(), TocError> {
        match &self.file {
            Some(file) if file.name == line.name && file.covered == line.chunk_offset => self.piece(line),
            _ => Err(line.fault("a piece does not follow the file that it belongs to")),
        }
    }

    /// Takes the piece that `line` describes as the next one of the open file.
    fn piece(&mut self, line: &Line) -> Result<(), TocError> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let left = file.size - file.covered;
        let is_whole = file.covered == 0 && (line.chunk_size == 0 || line.chunk_size == left);
        let bytes = if line.chunk_size == 0 { left } else { line.chunk_size };
        if bytes > left || bytes == 0 {
            return Err(line.fault("a piece is longer than its file"));
        }
        let digest = match (line.chunk_digest.as_str(), is_whole) {
            ("", true) => line.digest.as_str(),
            (digest, _) => digest,
        };
        let digest: Digest = digest.parse().map_err(|_digest| line.fault("a piece has no digest"))?;
        if self.pieces.len() >= TOC_PIECES_MAX {
            return Err(TocError::TooLarge);
        }
        let end = if line.end_offset > 0 && is_whole { line.end_offset } else { 0 };
        self.pieces.push(TocPiece {
            compressed: line.offset..end,
            skipped_bytes: line.inner_offset,
            stream_offset: self.stream + file.covered,
            bytes,
            digest,
        });
        file.covered += bytes;
        Ok(())
    }

    fn end_file(&mut self) -> Result<(), TocError> {
        let Some(file) = self.file.take() else { return Ok(()) };
        if file.covered != file.size {
            let entry = display_name(file.name.as_bytes());
            return Err(TocError::Entry { entry, reason: "pieces of it are missing" });
        }
        self.stream += file.covered;
        if self.stream > BLOB_BYTES_MAX { Err(TocError::TooLarge) } else { Ok(()) }
    }
}

/// A piece ends at the latest where the next member begins. Several may share one member.
fn settle_ends(pieces: &mut [TocPiece], data_end: u64) -> Result<(), TocError> {
    let mut next = data_end;
    let mut last_start = data_end;
    for piece in pieces.iter_mut().rev() {
        let start = piece.compressed.start;
        if start > last_start || start >= data_end {
            return Err(TocError::Unsound("pieces are out of order, or lie outside the layer"));
        }
        if start < last_start {
            next = last_start;
        }
        last_start = start;
        let said = piece.compressed.end;
        piece.compressed.end = if said > start && said <= next { said } else { next };
    }
    Ok(())
}

fn kind_of(line: &Line) -> Result<EntryKind, TocError> {
    let (major, minor) = (line.dev_major, line.dev_minor);
    Ok(match line.kind.as_str() {
        "dir" => EntryKind::Directory,
        "reg" if line.size > FILE_BYTES_MAX => return Err(line.fault("the file is too long")),
        "reg" => EntryKind::File { size: line.size, segments: None },
        "symlink" => {
            let target = line.link_name.as_bytes();
            if target.is_empty() || target.len() > sampan_oci::layer::limits::PATH_BYTES_MAX || target.contains(&0) {
                return Err(line.fault("its target is empty, too long or holds a NUL byte"));
            }
            EntryKind::Symlink { target: target.to_vec() }
        }
        "hardlink" => {
            let target = LayerPath::of_link_target(line.name.as_bytes(), line.link_name.as_bytes())?;
            EntryKind::HardLink { target }
        }
        "char" => EntryKind::CharDevice { major, minor },
        "block" => EntryKind::BlockDevice { major, minor },
        "fifo" => EntryKind::Fifo,
        _ => return Err(line.fault("its type is unknown")),
    })
}

fn mtime(line: &Line) -> Result<Timestamp, TocError> {
    let Some(text) = line.modtime.as_deref().filter(|text| !text.is_empty()) else { return Ok(Timestamp::default()) };
    let moment: jiff::Timestamp = text.parse().map_err(|_time| line.fault("its time is not valid"))?;
    let nanoseconds = moment.as_nanosecond();
    let outside = || line.fault("its time is out of range");
    Ok(Timestamp {
        seconds: i64::try_from(nanoseconds.div_euclid(1_000_000_000)).map_err(|_range| outside())?,
        nanoseconds: u32::try_from(nanoseconds.rem_euclid(1_000_000_000)).map_err(|_range| outside())?,
    })
}

fn xattrs(line: &Line) -> Result<Vec<Xattr>, TocError> {
    let Some(map) = &line.xattrs else { return Ok(Vec::new()) };
    if map.len() > XATTRS_MAX {
        return Err(line.fault("it has too many extended attributes"));
    }
    let mut bytes = 0;
    let mut found = Vec::with_capacity(map.len());
    // A BTreeMap of UTF-8 names is in the order of their bytes.
    for (name, value) in map {
        let value = STANDARD.decode(value.as_deref().unwrap_or_default());
        let value = value.map_err(|_base64| line.fault("an extended attribute is not base64"))?;
        bytes += name.len() + value.len();
        if !(1..=XATTR_NAME_BYTES_MAX).contains(&name.len()) || name.contains('\0') || bytes > XATTR_BYTES_MAX {
            return Err(line.fault("extended attributes are too large or badly named"));
        }
        found.push(Xattr { name: name.clone().into_bytes(), value });
    }
    Ok(found)
}
