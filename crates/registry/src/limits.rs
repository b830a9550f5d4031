//! Bounds on everything that a registry can make this crate do or keep. Sizes are bytes.

use std::time::Duration;

/// One range of a blob that is fetched on its own; see [`PARTS_IN_FLIGHT`].
pub const PART_BYTES: u64 = 8 << 20;

/// Ranges of one blob that are under way or waiting for their turn, so one reader holds at most
/// `PART_BYTES * PARTS_IN_FLIGHT` of body in memory.
pub const PARTS_IN_FLIGHT: usize = 4;

/// Pieces shorter than this are gathered before they are passed on: a hostile server that sends a byte at a time must not make
/// bookkeeping outweigh the bytes.
pub const CHUNK_BYTES_MIN: usize = 16 << 10;

/// Chunks of one part that wait for their turn, whatever the configured size of a part.
pub const PART_CHUNKS_MAX: usize = 1 << 16;

/// A body that brings less than this in [`CRAWL_WINDOWS`] idle timeouts counts as stalled: a byte now and then must not hold a
/// pull for ever. At the usual timeout of 30 s that is some 500 bytes a second.
pub const CRAWL_BYTES_MIN: u64 = 64 << 10;

/// See [`CRAWL_BYTES_MIN`].
pub const CRAWL_WINDOWS: u32 = 4;

/// Chunks that wait for the reader of a blob whose server gives it only in one stream. A chunk is at most hyper's largest read
/// buffer, some 400 KiB.
pub const WHOLE_CHUNKS_QUEUED: usize = 24;

/// Chunks of one range of a [`RangedBlob`](crate::RangedBlob) that wait for its reader; see [`WHOLE_CHUNKS_QUEUED`].
pub const RANGE_CHUNKS_QUEUED: usize = 4;

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
pub const FILE_CHUNK_BYTES: usize = 1 << 20;

/// Files that an archive of images may have: three a layer, in the oldest form.
pub const ARCHIVE_MEMBERS_MAX: usize = 1 << 16;

/// Links that are followed from a name in an archive to its file.
pub const ARCHIVE_LINKS_MAX: usize = 8;

/// One read while an archive's headers are looked for.
pub const ARCHIVE_READ_BYTES: usize = 16 << 10;

const _: () = assert!(PART_BYTES * PARTS_IN_FLIGHT as u64 <= 64 << 20, "one blob reader must stay below 64 MiB");
const _: () = assert!(CHUNK_BYTES_MIN as u64 <= PART_BYTES);
