//! Bounds on everything that a registry can make this crate do or keep. Sizes are bytes.

use std::time::Duration;

/// One range of a blob that is fetched on its own, at most; see [`PARTS_IN_FLIGHT`].
pub const PART_BYTES: u64 = 8 << 20;

/// The same where memory is short: still several times what a connection brings in a round trip.
pub const PART_BYTES_MIN: u64 = 512 << 10;

/// Ranges of one blob that are under way or waiting for their turn.
pub const PARTS_IN_FLIGHT: usize = 4;

/// What a connection holds besides: hyper's read buffer, up to some 400 KiB where the server is near, and less elsewhere.
pub const CONNECTION_BYTES: u64 = 256 << 10;

/// What all transfers of a client share unless its owner gives it another budget.
pub const MEMORY_BYTES: u64 = 24 << 20;

/// Body that is read ahead of its reader is copied into blocks of this size: hyper's own buffers may be much larger than what
/// they hold.
pub const BLOCK_BYTES: usize = 64 << 10;

/// Pieces shorter than this are gathered before they are passed on: a hostile server that sends a byte at a time must not make
/// bookkeeping outweigh the bytes.
pub const CHUNK_BYTES_MIN: usize = 16 << 10;

/// Blocks of one part that wait for their turn, whatever the configured size of a part.
pub const PART_BLOCKS_MAX: usize = 1 << 14;

/// A body that brings less than this in [`CRAWL_WINDOWS`] idle timeouts counts as stalled: a byte now and then must not hold a
/// pull for ever. At the usual timeout of 30 s that is some 500 bytes a second.
pub const CRAWL_BYTES_MIN: u64 = 64 << 10;

/// See [`CRAWL_BYTES_MIN`].
pub const CRAWL_WINDOWS: u32 = 4;

/// Blocks that wait for the reader of a blob whose server gives it only in one stream.
pub const WHOLE_BLOCKS_QUEUED: usize = 8;

/// Chunks of one range of a [`RangedBlob`](crate::RangedBlob) that wait for its reader. A chunk is at most hyper's largest read
/// buffer, some 400 KiB.
pub const RANGE_CHUNKS_QUEUED: usize = 2;

/// What one random read may ask for.
pub const RANGE_BYTES_MAX: u64 = 64 << 20;

/// One request of an upload: at the usual idle timeout of 30 s that is 2 Mbit/s, and what an upload holds in memory.
pub const PUSH_PIECE_BYTES: u64 = 8 << 20;

/// An error document; only its first message is quoted.
pub const ERROR_BODY_BYTES_MAX: usize = 64 << 10;

/// An answer of a token service.
pub const TOKEN_BODY_BYTES_MAX: usize = 256 << 10;

/// A file of credentials, or a CA certificate file.
pub const AUTH_FILE_BYTES_MAX: u64 = 4 << 20;

/// What a docker-credential-* program may print.
pub const CREDENTIAL_PROGRAM_BYTES_MAX: u64 = 64 << 10;

/// How long a docker-credential-* program may take.
pub const CREDENTIAL_PROGRAM_TIMEOUT: Duration = Duration::from_secs(20);

/// Grants kept; one per registry, repository and login.
pub const GRANTS_MAX: usize = 1024;

/// Life of a token whose service does not tell, as the distribution project's token specification says.
pub const TOKEN_LIFE_DEFAULT: Duration = Duration::from_secs(60);

/// A token is renewed this long before its end, so that it does not end on the way.
pub const TOKEN_LIFE_MARGIN: Duration = Duration::from_secs(5);

/// HTTP clients kept, each with its idle connections; one per host.
pub const CLIENTS_MAX: usize = 256;

/// Redirects followed for one request.
pub const REDIRECTS_MAX: usize = 5;

/// Indexes inside indexes.
pub const INDEX_DEPTH_MAX: usize = 3;

/// A registry that asks for a longer pause than this gets none: the caller is told instead.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// One read of a layout's blob file.
pub const FILE_CHUNK_BYTES: usize = 128 << 10;

/// Files that an archive of images may have: three a layer, in the oldest form.
pub const ARCHIVE_MEMBERS_MAX: usize = 1 << 16;

/// Links that are followed from a name in an archive to its file.
pub const ARCHIVE_LINKS_MAX: usize = 8;

/// One read while an archive's headers are looked for.
pub const ARCHIVE_READ_BYTES: usize = 16 << 10;

/// What a reader of a blob may always have in memory, whatever others have: one part, or the queue of a stream.
pub(crate) const READER_BYTES_MIN: u64 = PART_BYTES_MIN + CONNECTION_BYTES;

const _: () = assert!(CHUNK_BYTES_MIN as u64 <= PART_BYTES_MIN && PART_BYTES_MIN <= PART_BYTES);
const _: () = assert!(WHOLE_BLOCKS_QUEUED as u64 * BLOCK_BYTES as u64 <= PART_BYTES_MIN);
