//! Requests of the kernel's FUSE, and answers to them, for a read-only server of regular files.
//!
//! Only what such a server meets is told apart; everything else is [`Operation::Other`], to be answered with `ENOSYS`, after
//! which the kernel does without. Numbers are in this machine's byte order. Source of every layout and constant:
//! `include/uapi/linux/fuse.h`.
//!
//! The other side is the kernel, which can be believed; requests are checked all the same, because a server that panics takes
//! every reader with it.

use rustix::io::Errno;

/// `FUSE_KERNEL_VERSION`.
pub const MAJOR: u32 = 7;
/// The minor version whose layouts these are (`FUSE_KERNEL_MINOR_VERSION` of Linux 6.9, the first that resends).
pub const MINOR: u32 = 40;
/// The smallest buffer that the kernel puts a request into (`FUSE_MIN_READ_BUFFER`).
pub const REQUEST_BYTES_MIN: usize = 8192;
/// Node number of the mount's root (`FUSE_ROOT_ID`).
pub const ROOT: u64 = 1;
/// `struct fuse_out_header`.
pub const ANSWER_HEADER_BYTES: usize = 16;

/// `FUSE_*` flags of `INIT`, both words as one.
pub mod features {
    /// Several reads of one file at one time.
    pub const ASYNC_READ: u64 = 1;
    /// Direct reads do not wait for each other either.
    pub const ASYNC_DIRECT_IO: u64 = 1 << 15;
    /// Lookups in one directory do not wait for each other.
    pub const PARALLEL_DIRECTORY: u64 = 1 << 18;
    /// Reading a queue of an aborted connection says so.
    pub const ABORT_ERROR: u64 = 1 << 21;
    /// Requests of more than 32 pages.
    pub const MAX_PAGES: u64 = 1 << 22;
    /// There is a second word of flags.
    pub const EXTENDED: u64 = 1 << 30;
    /// Requests can be asked for again.
    pub const RESEND: u64 = 1 << 39;
}

/// The bit in a request's number that tells that it was asked for again (`FUSE_UNIQUE_RESEND`).
const RESENT: u64 = 1 << 63;
/// `FUSE_NOTIFY_RESEND`.
const NOTIFY_RESEND: i32 = 7;
/// `struct fuse_in_header`.
const REQUEST_HEADER_BYTES: usize = 40;
/// How long the kernel may believe names and attributes: they do not change while a file is served.
const VALID_SECONDS: u64 = 10 * 365 * 86_400;
const BLOCK_BYTES: u32 = 4096;
/// `FOPEN_NOFLUSH`.
const OPEN_WITHOUT_FLUSH: u32 = 1 << 5;
/// `FOPEN_KEEP_CACHE`.
const OPEN_WITH_CACHE: u32 = 1 << 1;
const NAME_BYTES_MAX: u32 = 255;

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// Its number, which the answer repeats.
    pub unique: u64,
    /// The file or directory that it is about.
    pub node: u64,
    pub operation: Operation<'a>,
}

impl Request<'_> {
    /// Whether it was read before, by somebody who did not answer it.
    #[must_use]
    pub fn is_resent(&self) -> bool {
        self.unique & RESENT != 0
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation<'a> {
    /// The first request of a connection.
    Init {
        major: u32,
        minor: u32,
        features: u64,
    },
    /// A name in the directory `node`.
    LookUp {
        name: &'a [u8],
    },
    GetAttributes,
    Open,
    Read {
        offset: u64,
        bytes: u32,
    },
    /// The last descriptor of an open file is closed.
    Release,
    FileSystemStatus,
    /// Nobody waits for this request any more, or somebody was sent a signal meanwhile.
    Interrupt {
        unique: u64,
    },
    /// The mount ends.
    Destroy,
    /// The kernel forgets a node. Not answered.
    Forget,
    /// Anything else, by its `FUSE_*` number.
    Other(u32),
}

/// Why bytes are no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a request of {bytes} bytes, kind {opcode}, is none")]
pub struct ProtocolError {
    pub bytes: usize,
    pub opcode: u32,
    /// The number to answer `EPROTO` to, where so much could be read.
    pub unique: Option<u64>,
}

/// Reads one request, as one `read(2)` of a queue gives it.
///
/// # Errors
/// When the bytes are shorter than their kind is, or have another length than they say.
pub fn parse(bytes: &[u8]) -> Result<Request<'_>, ProtocolError> {
    let opcode = u32_at(bytes, 4).unwrap_or(0);
    let refused = |unique| ProtocolError { bytes: bytes.len(), opcode, unique };
    let header =
        || Some((u32_at(bytes, 0)?, u64_at(bytes, 8)?, u64_at(bytes, 16)?, bytes.get(REQUEST_HEADER_BYTES..)?));
    let (length, unique, node, body) = header().ok_or_else(|| refused(None))?;
    let operation = usize::try_from(length).ok().filter(|length| *length == bytes.len()).and_then(|_| {
        Some(match opcode {
            1 => Operation::LookUp { name: name(body)? },
            2 | 42 => Operation::Forget,
            3 => Operation::GetAttributes,
            14 => Operation::Open,
            15 => Operation::Read { offset: u64_at(body, 8)?, bytes: u32_at(body, 16)? },
            17 => Operation::FileSystemStatus,
            18 => Operation::Release,
            26 => init(body)?,
            36 => Operation::Interrupt { unique: u64_at(body, 0)? },
            38 => Operation::Destroy,
            other => Operation::Other(other),
        })
    });
    let operation = operation.ok_or_else(|| refused(Some(unique)))?;
    Ok(Request { unique, node, operation })
}

fn init(body: &[u8]) -> Option<Operation<'_>> {
    let (major, minor, low) = (u32_at(body, 0)?, u32_at(body, 4)?, u32_at(body, 12)?);
    let low = u64::from(low);
    // The second word is there where the first says so.
    let high = if low & features::EXTENDED == 0 { 0 } else { u64::from(u32_at(body, 16)?) };
    Some(Operation::Init { major, minor, features: high << 32 | low })
}

/// A name ends with a zero byte and has no other, nor a slash.
fn name(body: &[u8]) -> Option<&[u8]> {
    let (end, name) = body.split_last()?;
    (*end == 0 && !name.is_empty() && !name.contains(&0) && !name.contains(&b'/')).then_some(name)
}

/// A node's attributes, as far as read-only files differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attributes {
    /// The root.
    Directory,
    /// A file of so many bytes.
    File { node: u64, bytes: u64 },
}

/// The header of an answer; `body_bytes` must follow in the same write.
#[must_use]
pub fn header(unique: u64, outcome: Result<(), Errno>, body_bytes: u32) -> [u8; ANSWER_HEADER_BYTES] {
    let error = outcome.err().map_or(0, |errno| -errno.raw_os_error());
    let length = body_bytes.saturating_add(16);
    let mut header = [0; ANSWER_HEADER_BYTES];
    let (length_at, rest) = header.split_at_mut(4);
    let (error_at, unique_at) = rest.split_at_mut(4);
    length_at.copy_from_slice(&length.to_ne_bytes());
    error_at.copy_from_slice(&error.to_ne_bytes());
    unique_at.copy_from_slice(&unique.to_ne_bytes());
    header
}

/// A message that the kernel takes for `FUSE_NOTIFY_RESEND`: number 0, and its kind where an answer has its error.
#[must_use]
pub fn resend() -> [u8; ANSWER_HEADER_BYTES] {
    let mut message = header(0, Ok(()), 0);
    if let Some(kind) = message.get_mut(4..8) {
        kind.copy_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    }
    message
}

/// What a server says to `INIT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitAnswer {
    /// The kernel's own minor version, as it came.
    pub minor: u32,
    /// Of what the kernel offers, what is wanted.
    pub features: u64,
    /// Most bytes that one read asks for, a multiple of 4,096.
    pub read_bytes_max: u32,
    /// Requests without a waiting process that are under way at one time; read-ahead and direct reads of loop devices are such.
    pub background_max: u16,
}

/// The answer to `INIT`, header included (`struct fuse_init_out`). There is no read-ahead.
#[must_use]
pub fn init_answer(unique: u64, answer: InitAnswer) -> Vec<u8> {
    let pages = u16::try_from(answer.read_bytes_max / BLOCK_BYTES).unwrap_or(u16::MAX);
    let (low, high) = (answer.features & 0xffff_ffff, answer.features >> 32);
    let word = |flags: u64| u32::try_from(flags).unwrap_or(0);
    let mut body = Body::new(unique);
    // Version, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages, map_alignment.
    body.u32(MAJOR).u32(answer.minor.min(MINOR)).u32(0).u32(word(low));
    body.u16(answer.background_max).u16(answer.background_max).u32(BLOCK_BYTES).u32(1).u16(pages).u16(0);
    body.u32(word(high)).zeroes(28);
    body.finish()
}

/// The answer to a lookup, header included (`struct fuse_entry_out`).
#[must_use]
pub fn entry_answer(unique: u64, node: u64, bytes: u64) -> Vec<u8> {
    let mut body = Body::new(unique);
    body.u64(node).u64(0).u64(VALID_SECONDS).u64(VALID_SECONDS).u32(0).u32(0);
    body.attributes(Attributes::File { node, bytes });
    body.finish()
}

/// The answer to a question for attributes, header included (`struct fuse_attr_out`).
#[must_use]
pub fn attributes_answer(unique: u64, attributes: Attributes) -> Vec<u8> {
    let mut body = Body::new(unique);
    body.u64(VALID_SECONDS).u32(0).u32(0).attributes(attributes);
    body.finish()
}

/// The answer to an open, header included (`struct fuse_open_out`): through the page cache.
///
/// What is cached stays: emptying the cache would wait for pages that are still to be read, and those may wait for a server that
/// opens the file first. Closing is never told (`FLUSH`): a killed server that has files of its own open would wait for itself.
#[must_use]
pub fn open_answer(unique: u64) -> Vec<u8> {
    let mut body = Body::new(unique);
    body.u64(0).u32(OPEN_WITHOUT_FLUSH | OPEN_WITH_CACHE).u32(0);
    body.finish()
}

/// The answer to a question for the file system, header included (`struct fuse_statfs_out`).
#[must_use]
pub fn status_answer(unique: u64) -> Vec<u8> {
    let mut body = Body::new(unique);
    body.zeroes(40).u32(BLOCK_BYTES).u32(NAME_BYTES_MAX).u32(BLOCK_BYTES).zeroes(28);
    body.finish()
}

/// An answer being put together; its header is set at the end.
struct Body {
    bytes: Vec<u8>,
    unique: u64,
}

impl Body {
    fn new(unique: u64) -> Self {
        Self { bytes: vec![0; ANSWER_HEADER_BYTES], unique }
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes.extend(value.to_ne_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes.extend(value.to_ne_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes.extend(value.to_ne_bytes());
        self
    }

    fn zeroes(&mut self, count: usize) -> &mut Self {
        self.bytes.extend(std::iter::repeat_n(0, count));
        self
    }

    /// `struct fuse_attr`: node, size, blocks of 512, times, mode, links, owner, device, block size, flags.
    fn attributes(&mut self, attributes: Attributes) -> &mut Self {
        let (node, bytes, mode, links) = match attributes {
            Attributes::Directory => (ROOT, 0, 0o040_500, 2),
            Attributes::File { node, bytes } => (node, bytes, 0o100_400, 1),
        };
        self.u64(node).u64(bytes).u64(bytes.div_ceil(512)).zeroes(36);
        self.u32(mode).u32(links).zeroes(12).u32(BLOCK_BYTES).u32(0)
    }

    fn finish(mut self) -> Vec<u8> {
        let body = self.bytes.len().saturating_sub(ANSWER_HEADER_BYTES);
        let header = header(self.unique, Ok(()), u32::try_from(body).unwrap_or(u32::MAX));
        if let Some(place) = self.bytes.get_mut(..ANSWER_HEADER_BYTES) {
            place.copy_from_slice(&header);
        }
        self.bytes
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests;
