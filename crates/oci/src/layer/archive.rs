//! Writes archives, for the tests of this and other rooms: any entry as PAX, and single blocks for the odd and the hostile.

use super::entry::{Entry, EntryKind, Segment};
use super::header::BLOCK_BYTES;

/// An archive being written.
#[derive(Debug, Default)]
pub struct ArchiveWriter {
    bytes: Vec<u8>,
}

impl ArchiveWriter {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry with the data of a file (of a sparse one, its segments packed). The path is written as it is, and `./`
    /// before it if it is empty.
    pub fn entry(&mut self, entry: &Entry, data: &[u8]) -> &mut Self {
        let (name, kind, target): (Vec<u8>, u8, &[u8]) = match &entry.kind {
            EntryKind::File { .. } => (entry.path.as_bytes().to_vec(), b'0', b""),
            EntryKind::Directory => ([b"./", entry.path.as_bytes(), b"/"].concat(), b'5', b""),
            EntryKind::Symlink { target } => (entry.path.as_bytes().to_vec(), b'2', target),
            EntryKind::HardLink { target } => (entry.path.as_bytes().to_vec(), b'1', target.as_bytes()),
            EntryKind::CharDevice { .. } => (entry.path.as_bytes().to_vec(), b'3', b""),
            EntryKind::BlockDevice { .. } => (entry.path.as_bytes().to_vec(), b'4', b""),
            EntryKind::Fifo => (entry.path.as_bytes().to_vec(), b'6', b""),
            EntryKind::Whiteout => (whiteout(entry), b'0', b""),
            EntryKind::Opaque => ([b"./", entry.path.as_bytes(), b"/.wh..wh..opq"].concat(), b'0', b""),
        };
        let mut records = Vec::new();
        record(&mut records, b"linkpath", target);
        record(&mut records, b"uid", entry.uid.to_string().as_bytes());
        record(&mut records, b"gid", entry.gid.to_string().as_bytes());
        record(&mut records, b"mtime", time(entry.mtime.seconds, entry.mtime.nanoseconds).as_bytes());
        for xattr in &entry.xattrs {
            record(&mut records, &[b"SCHILY.xattr.", &xattr.name[..]].concat(), &xattr.value);
        }
        let mut map = Vec::new();
        if let EntryKind::File { size, segments: Some(segments) } = &entry.kind {
            record(&mut records, b"GNU.sparse.major", b"1");
            record(&mut records, b"GNU.sparse.minor", b"0");
            record(&mut records, b"GNU.sparse.name", &name);
            record(&mut records, b"GNU.sparse.realsize", size.to_string().as_bytes());
            map = sparse_map(segments);
        } else {
            record(&mut records, b"path", &name);
        }
        record(&mut records, b"size", (map.len() + data.len()).to_string().as_bytes());
        self.header(b"PaxHeaders/x", b'x', records.len() as u64).data(&records);
        let device = match entry.kind {
            EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => (major, minor),
            _ => (0, 0),
        };
        self.block(b"entry", kind, 0, entry.mode, device).data(&[map, data.to_vec()].concat())
    }

    /// Adds one ustar header; `size` may lie.
    pub fn header(&mut self, name: &[u8], kind: u8, size: u64) -> &mut Self {
        self.block(name, kind, size, 0o644, (0, 0))
    }

    /// Adds bytes, padded to whole blocks.
    pub fn data(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        self
    }

    /// Adds a PAX header with one record, to count for the next entry.
    pub fn pax(&mut self, key: &[u8], value: &[u8]) -> &mut Self {
        let mut records = Vec::new();
        record(&mut records, key, value);
        self.header(b"PaxHeaders/x", b'x', records.len() as u64).data(&records)
    }

    /// The archive so far, without its end.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The archive with the two blocks of zeros that end it.
    pub fn finish(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.resize(bytes.len() + 2 * BLOCK_BYTES, 0);
        bytes
    }

    fn block(&mut self, name: &[u8], kind: u8, size: u64, mode: u16, device: (u32, u32)) -> &mut Self {
        let mut block = [0u8; BLOCK_BYTES];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &name[..name.len().min(100)]);
        put(100, format!("{mode:07o}\0").as_bytes());
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        if size < 1 << 33 {
            put(124, format!("{size:011o}\0").as_bytes());
        } else {
            put(124, &[&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat());
        }
        put(136, b"00000000000\0");
        put(148, b"        ");
        put(156, &[kind]);
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}\0", device.0).as_bytes());
        put(337, format!("{:07o}\0", device.1).as_bytes());
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&block);
        self
    }
}

fn whiteout(entry: &Entry) -> Vec<u8> {
    match entry.path.split_last() {
        Some((parent, name)) => [b"./", parent.as_bytes(), b"/.wh.", name].concat(),
        None => b".wh.".to_vec(),
    }
}

fn time(seconds: i64, nanoseconds: u32) -> String {
    if seconds < 0 && nanoseconds > 0 {
        return format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds);
    }
    format!("{seconds}.{nanoseconds:09}")
}

fn sparse_map(segments: &[Segment]) -> Vec<u8> {
    let mut map = format!("{}\n", segments.len()).into_bytes();
    for segment in segments {
        map.extend_from_slice(format!("{}\n{}\n", segment.offset, segment.length).as_bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK_BYTES), 0);
    map
}

fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while body + length.to_string().len() != length {
        length = body + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}
