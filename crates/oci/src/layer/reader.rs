//! The reader: a state machine over 512-byte blocks that never looks ahead and never keeps file data.
//!
//! ```text
//!            ┌────────────── Skip (padding) ◀──────────────┐
//!            ▼                                             │
//!  ┌──▶ Header ──x,g,L,K──▶ Extended ──────────────────────┤
//!  │       │                                               │
//!  │       ├──S──▶ GnuSparse (continuation blocks) ─┐      │
//!  │       ├──0, GNU.sparse 1.0──▶ TextMap ─────────┤      │
//!  │       └──0────────────────────────────────────▶ Data ─┘
//!  └── one block of zeros ── a second one ──▶ End
//! ```

use super::entry::{Entry, EntryKind, Segment, Timestamp};
use super::error::{LayerError, ReadError};
use super::header::{BLOCK_BYTES, Header, gnu_sparse_continuation};
use super::limits::{ENTRIES_MAX, EXTENDED_HEADER_BYTES_MAX, FILE_BYTES_MAX, PATH_BYTES_MAX, SPARSE_SEGMENTS_MAX};
use super::name::{LayerPath, Meaning, display_name, meaning};
use super::pax::Records;
use super::sparse::{self, TextMap};

/// Takes a layer apart. Called in the order of the stream from one thread; after an error it is not called again.
pub trait LayerSink {
    type Error;

    /// The next entry. For a file, calls of [`data`](Self::data) with all its bytes and one of
    /// [`end_of_file`](Self::end_of_file) follow before the next entry.
    fn entry(&mut self, entry: Entry) -> Result<(), Self::Error>;
    /// The next bytes of the last file, in pieces of any size; holes are left out.
    fn data(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
    /// The last file has had all its bytes.
    fn end_of_file(&mut self) -> Result<(), Self::Error>;
}

/// Reads a layer from bytes pushed into it in pieces of any size.
#[derive(Debug)]
pub struct LayerReader {
    state: State,
    /// Bytes of the block being collected; `filled` of them are valid.
    block: Box<[u8; BLOCK_BYTES]>,
    filled: usize,
    /// Bytes taken from the stream.
    offset: u64,
    entries: u64,
    zero_blocks: u8,
    global: Records,
    local: Option<Records>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

#[derive(Debug)]
enum State {
    Header,
    Extended { kind: Extended, remaining: u64, size: u64, bytes: Vec<u8> },
    GnuSparse { entry: Box<Entry>, segments: Vec<Segment>, real_size: u64, data_bytes: u64 },
    TextMap { entry: Box<Entry>, map: TextMap, real_size: u64, remaining: u64 },
    Data { remaining: u64, padding: u64 },
    Skip { remaining: u64 },
    End,
}

#[derive(Debug, Clone, Copy)]
enum Extended {
    Local,
    Global,
    LongName,
    LongLink,
}

impl Default for LayerReader {
    fn default() -> Self {
        Self::new()
    }
}

impl LayerReader {
    pub fn new() -> Self {
        Self {
            state: State::Header,
            block: Box::new([0; BLOCK_BYTES]),
            filled: 0,
            offset: 0,
            entries: 0,
            zero_blocks: 0,
            global: Records::default(),
            local: None,
            long_name: None,
            long_link: None,
        }
    }

    /// Bytes taken from the stream so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the next bytes of the stream. Whatever follows the end of the archive is ignored.
    pub fn feed<S: LayerSink>(&mut self, mut bytes: &[u8], sink: &mut S) -> Result<(), ReadError<S::Error>> {
        while !bytes.is_empty() {
            let taken = match &mut self.state {
                State::End => bytes.len(),
                State::Skip { remaining } => {
                    let taken = at_most(bytes, *remaining);
                    *remaining = remaining.saturating_sub(taken as u64);
                    if *remaining == 0 {
                        self.state = State::Header;
                    }
                    taken
                }
                State::Data { .. } => self.take_data(bytes, sink)?,
                State::Extended { .. } => self.take_extended(bytes)?,
                State::Header | State::GnuSparse { .. } | State::TextMap { .. } => self.take_block(bytes, sink)?,
            };
            self.offset = self.offset.saturating_add(taken as u64);
            bytes = bytes.get(taken..).unwrap_or(&[]);
        }
        Ok(())
    }

    /// Bytes of a file's data that may be left out of the stream, for readers who want to know only what is in it.
    pub fn skippable(&self) -> u64 {
        match &self.state {
            // The last byte goes the ordinary way, so that the file ends.
            State::Data { remaining, .. } => remaining.saturating_sub(1),
            _ => 0,
        }
    }

    /// Says that the next `bytes` of the stream, at most [`skippable`](Self::skippable), were left out.
    pub fn skip(&mut self, bytes: u64) {
        let bytes = bytes.min(self.skippable());
        if let State::Data { remaining, .. } = &mut self.state {
            *remaining = remaining.saturating_sub(bytes);
        }
        self.offset = self.offset.saturating_add(bytes);
    }

    /// Says that the stream has ended. Archives without their two blocks of zeros are common and accepted.
    pub fn finish(&self) -> Result<(), LayerError> {
        let what = match &self.state {
            State::End => return Ok(()),
            State::Header if self.filled == 0 && self.local.is_none() && self.long_name.is_none() => return Ok(()),
            State::Header => "a header".to_owned(),
            State::Extended { .. } => "an extended header".to_owned(),
            State::GnuSparse { entry, .. } | State::TextMap { entry, .. } => {
                format!("the sparse map of {}", display_name(entry.path.as_bytes()))
            }
            State::Data { .. } => "a file's data".to_owned(),
            State::Skip { .. } => "padding".to_owned(),
        };
        Err(LayerError::Truncated { what })
    }

    fn take_data<S: LayerSink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<usize, ReadError<S::Error>> {
        let State::Data { remaining, padding } = &mut self.state else { return Ok(0) };
        let taken = at_most(bytes, *remaining);
        if let Some(data) = bytes.get(..taken).filter(|data| !data.is_empty()) {
            sink.data(data).map_err(ReadError::Sink)?;
        }
        *remaining = remaining.saturating_sub(taken as u64);
        if *remaining == 0 {
            let padding = *padding;
            self.state = skip(padding);
            sink.end_of_file().map_err(ReadError::Sink)?;
        }
        Ok(taken)
    }

    fn take_extended(&mut self, input: &[u8]) -> Result<usize, LayerError> {
        let offset = self.offset;
        let State::Extended { kind, remaining, size, bytes } = &mut self.state else { return Ok(0) };
        let taken = at_most(input, *remaining);
        bytes.extend_from_slice(input.get(..taken).unwrap_or(&[]));
        *remaining = remaining.saturating_sub(taken as u64);
        if *remaining > 0 {
            return Ok(taken);
        }
        let (kind, padding, bytes) = (*kind, padding_after(*size), std::mem::take(bytes));
        self.state = skip(padding);
        match kind {
            Extended::Local => self.local.get_or_insert_default().add(&bytes, offset)?,
            Extended::Global => self.global.add(&bytes, offset)?,
            Extended::LongName => self.long_name = Some(until_nul(bytes)),
            Extended::LongLink => self.long_link = Some(until_nul(bytes)),
        }
        Ok(taken)
    }

    /// Collects one block and acts on it when it is whole.
    fn take_block<S: LayerSink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<usize, ReadError<S::Error>> {
        let room = BLOCK_BYTES.saturating_sub(self.filled);
        let taken = bytes.len().min(room);
        let end = self.filled.saturating_add(taken);
        if let (Some(target), Some(source)) = (self.block.get_mut(self.filled..end), bytes.get(..taken)) {
            target.copy_from_slice(source);
        }
        self.filled = end;
        if self.filled < BLOCK_BYTES {
            return Ok(taken);
        }
        self.filled = 0;
        let block_offset = self.offset.saturating_add(taken as u64).saturating_sub(BLOCK_BYTES as u64);
        let next_offset = self.offset.saturating_add(taken as u64);
        match std::mem::replace(&mut self.state, State::Header) {
            State::GnuSparse { entry, mut segments, real_size, data_bytes } => {
                let (more, extended) = gnu_sparse_continuation(&self.block, block_offset)?;
                segments.extend(more);
                if segments.len() > SPARSE_SEGMENTS_MAX {
                    let entry = display_name(entry.path.as_bytes());
                    return Err(LayerError::Sparse { entry, reason: "it has too many segments" }.into());
                }
                if extended {
                    self.state = State::GnuSparse { entry, segments, real_size, data_bytes };
                } else {
                    self.begin_sparse(*entry, segments, real_size, data_bytes, next_offset, sink)?;
                }
            }
            State::TextMap { entry, mut map, real_size, remaining } => {
                let remaining = remaining.checked_sub(BLOCK_BYTES as u64).ok_or_else(|| LayerError::Sparse {
                    entry: display_name(entry.path.as_bytes()),
                    reason: "it is longer than the entry",
                })?;
                match map.add(entry.path.as_bytes(), &self.block)? {
                    Some(segments) => self.begin_sparse(*entry, segments, real_size, remaining, next_offset, sink)?,
                    None => self.state = State::TextMap { entry, map, real_size, remaining },
                }
            }
            _ => self.header(block_offset, sink)?,
        }
        Ok(taken)
    }

    fn header<S: LayerSink>(&mut self, block_offset: u64, sink: &mut S) -> Result<(), ReadError<S::Error>> {
        let block = self.block.clone();
        let Some(header) = Header::parse(&block, block_offset)? else {
            self.zero_blocks = self.zero_blocks.saturating_add(1);
            if self.zero_blocks == 2 {
                self.state = State::End;
            }
            return Ok(());
        };
        if self.zero_blocks > 0 {
            return Err(LayerError::Checksum { offset: block_offset }.into());
        }
        self.entries = self.entries.saturating_add(1);
        if self.entries > ENTRIES_MAX {
            return Err(LayerError::TooManyEntries.into());
        }
        let extended = match header.kind() {
            b'x' | b'X' => Some(Extended::Local),
            b'g' => Some(Extended::Global),
            b'L' => Some(Extended::LongName),
            b'K' => Some(Extended::LongLink),
            // A volume's label says nothing about files.
            b'V' => {
                self.state = skip(padded(header.size()?));
                return Ok(());
            }
            _ => None,
        };
        if let Some(kind) = extended {
            let size = header.size()?;
            if size > EXTENDED_HEADER_BYTES_MAX {
                return Err(LayerError::ExtendedHeaderTooLarge { size }.into());
            }
            if size > 0 {
                self.state = State::Extended { kind, remaining: size, size, bytes: Vec::new() };
            }
            return Ok(());
        }
        self.entry(&header, block_offset, sink)
    }

    fn entry<S: LayerSink>(
        &mut self,
        header: &Header<'_>,
        block_offset: u64,
        sink: &mut S,
    ) -> Result<(), ReadError<S::Error>> {
        let mut records = self.global.overlaid(self.local.take().unwrap_or_default());
        let (long_name, long_link) = (self.long_name.take(), self.long_link.take());
        let name = records.sparse.name.take().or(records.path.take()).or(long_name).unwrap_or_else(|| header.name());
        let link = records.link_target.take().or(long_link).unwrap_or_else(|| header.link_target().to_vec());
        let path = LayerPath::of_entry(&name)?;
        let size = match records.size {
            Some(size) => size,
            None => header.size()?,
        };
        let is_directory_name = name.last() == Some(&b'/');
        let (path, kind, data_bytes) = match meaning(path)? {
            Meaning::Whiteout(path) => (path, EntryKind::Whiteout, file_size(header, size)),
            Meaning::Opaque(path) => (path, EntryKind::Opaque, file_size(header, size)),
            Meaning::Plain(path) => {
                let kind = plain_kind(header, &name, &link, size, is_directory_name)?;
                let data_bytes = if matches!(kind, EntryKind::File { .. }) { size } else { 0 };
                (path, kind, data_bytes)
            }
        };
        let mtime = match records.mtime {
            Some(mtime) => mtime,
            None => Timestamp { seconds: header.mtime()?, nanoseconds: 0 },
        };
        let entry = Entry {
            uid: owner(&name, "its owner", records.uid.map_or_else(|| header.uid(), Ok)?)?,
            gid: owner(&name, "its group", records.gid.map_or_else(|| header.gid(), Ok)?)?,
            mode: header.mode()?,
            mtime,
            xattrs: records.take_xattrs(&name)?,
            data_offset: 0,
            path,
            kind,
        };
        self.begin(entry, header, &records, data_bytes, block_offset.saturating_add(BLOCK_BYTES as u64), sink)
    }

    /// Hands a finished entry to the sink, or waits for its sparse map first.
    fn begin<S: LayerSink>(
        &mut self,
        mut entry: Entry,
        header: &Header<'_>,
        records: &Records,
        data_bytes: u64,
        offset: u64,
        sink: &mut S,
    ) -> Result<(), ReadError<S::Error>> {
        entry.data_offset = offset;
        if !matches!(entry.kind, EntryKind::File { .. }) {
            self.state = skip(padded(data_bytes));
            return sink.entry(entry).map_err(ReadError::Sink);
        }
        if header.kind() == b'S' {
            let (segments, extended, real_size) = header.gnu_sparse()?;
            if extended {
                self.state = State::GnuSparse { entry: Box::new(entry), segments, real_size, data_bytes };
                return Ok(());
            }
            return self.begin_sparse(entry, segments, real_size, data_bytes, offset, sink);
        }
        let sparse = &records.sparse;
        if let Some(major) = sparse.major.filter(|major| *major > 0) {
            let name = display_name(entry.path.as_bytes());
            if major != 1 || sparse.minor.unwrap_or(0) != 0 {
                return Err(LayerError::Sparse { entry: name, reason: "its version is unknown" }.into());
            }
            let Some(real_size) = sparse.real_size else {
                return Err(LayerError::Sparse { entry: name, reason: "it does not say the file's size" }.into());
            };
            let map = TextMap::default();
            self.state = State::TextMap { entry: Box::new(entry), map, real_size, remaining: data_bytes };
            return Ok(());
        }
        if let Some(real_size) = sparse.real_size {
            return self.begin_sparse(entry, sparse.pairs.clone(), real_size, data_bytes, offset, sink);
        }
        self.begin_data(entry, data_bytes, sink)
    }

    fn begin_sparse<S: LayerSink>(
        &mut self,
        mut entry: Entry,
        segments: Vec<Segment>,
        real_size: u64,
        data_bytes: u64,
        offset: u64,
        sink: &mut S,
    ) -> Result<(), ReadError<S::Error>> {
        let segments = sparse::checked(entry.path.as_bytes(), segments, real_size, data_bytes)?;
        entry.data_offset = offset;
        entry.kind = EntryKind::File { size: real_size, segments: Some(segments) };
        self.begin_data(entry, data_bytes, sink)
    }

    fn begin_data<S: LayerSink>(
        &mut self,
        entry: Entry,
        data_bytes: u64,
        sink: &mut S,
    ) -> Result<(), ReadError<S::Error>> {
        sink.entry(entry).map_err(ReadError::Sink)?;
        if data_bytes == 0 {
            self.state = State::Header;
            return sink.end_of_file().map_err(ReadError::Sink);
        }
        self.state = State::Data { remaining: data_bytes, padding: padding_after(data_bytes) };
        Ok(())
    }
}

/// What an entry that is no whiteout is. Types without data have none, whatever their size field says.
fn plain_kind(
    header: &Header<'_>,
    name: &[u8],
    link: &[u8],
    size: u64,
    is_directory_name: bool,
) -> Result<EntryKind, LayerError> {
    let kind = match header.kind() {
        b'0' | 0 if is_directory_name => EntryKind::Directory,
        b'0' | b'7' | b'S' | 0 => {
            if size > FILE_BYTES_MAX {
                return Err(sparse::too_large(name, size));
            }
            EntryKind::File { size, segments: None }
        }
        b'1' => EntryKind::HardLink { target: LayerPath::of_link_target(name, link)? },
        b'2' => EntryKind::Symlink { target: symlink_target(name, link)? },
        b'3' => {
            let (major, minor) = header.device()?;
            EntryKind::CharDevice { major, minor }
        }
        b'4' => {
            let (major, minor) = header.device()?;
            EntryKind::BlockDevice { major, minor }
        }
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        other => return Err(LayerError::UnknownType { entry: display_name(name), kind: char::from(other) }),
    };
    Ok(kind)
}

fn symlink_target(name: &[u8], target: &[u8]) -> Result<Vec<u8>, LayerError> {
    let bad = |reason| LayerError::BadName { entry: display_name(name), reason };
    match target {
        [] => Err(bad("a symbolic link to nothing")),
        _ if target.contains(&0) => Err(bad("its link target holds a NUL byte")),
        _ if target.len() > PATH_BYTES_MAX => Err(LayerError::TooLarge {
            entry: display_name(name),
            what: "the length of its link target",
            value: target.len() as u64,
            limit: PATH_BYTES_MAX as u64,
        }),
        _ => Ok(target.to_vec()),
    }
}

/// Linux has no owner 2³²−1: it means "leave as it is".
fn owner(name: &[u8], what: &'static str, id: i64) -> Result<u32, LayerError> {
    let limit = u32::MAX.saturating_sub(1);
    match u32::try_from(id) {
        Ok(id) if id <= limit => Ok(id),
        _ => {
            let value = u64::try_from(id).unwrap_or(u64::MAX);
            Err(LayerError::TooLarge { entry: display_name(name), what, value, limit: u64::from(limit) })
        }
    }
}

/// Data that follow the header of a whiteout: none should, but a file's size is believed.
fn file_size(header: &Header<'_>, size: u64) -> u64 {
    if matches!(header.kind(), b'0' | b'7' | 0) { size } else { 0 }
}

fn skip(remaining: u64) -> State {
    if remaining == 0 { State::Header } else { State::Skip { remaining } }
}

fn padding_after(size: u64) -> u64 {
    size.wrapping_neg() & (BLOCK_BYTES as u64).wrapping_sub(1)
}

fn padded(size: u64) -> u64 {
    size.saturating_add(padding_after(size))
}

fn at_most(bytes: &[u8], remaining: u64) -> usize {
    bytes.len().min(usize::try_from(remaining).unwrap_or(usize::MAX))
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}
