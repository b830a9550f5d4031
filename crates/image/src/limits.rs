//! What an image may ask of this machine.

use std::time::Duration;

/// Directories below one another: what a path of 4,096 bytes can name.
pub const DEPTH_MAX: usize = 2048;
/// Symbolic links followed on the way to one entry, as the kernel has it (`MAXSYMLINKS`).
pub const SYMLINKS_FOLLOWED_MAX: usize = 40;
/// Bytes of one blob: an EROFS device counts 2³² blocks of 4 KiB.
pub const BLOB_BYTES_MAX: u64 = 16 << 40;
/// Uncompressed bytes of one layer unless configured otherwise.
pub const LAYER_BYTES_MAX: u64 = 256 << 30;
/// Bytes of free space that writing a blob leaves on the disk.
pub const DISK_RESERVE_BYTES: u64 = 64 << 20;
/// Bytes of the front part of an index, unpacked: four million entries of ordinary names.
pub const INDEX_FRONT_BYTES_MAX: u64 = 256 << 20;
/// Bytes of the front part of an index as stored.
pub const INDEX_FRONT_STORED_BYTES_MAX: u64 = 128 << 20;
/// Bytes that the names, links and attributes of one layer may take in memory while it is unpacked.
pub const TREE_BYTES_MAX: u64 = INDEX_FRONT_BYTES_MAX;
/// Bytes of the front parts of all layers of one image, unpacked: they are merged in memory.
pub const IMAGE_FRONTS_BYTES_MAX: u64 = 512 << 20;
/// Bytes of one span's record: its window and the digests of its chunks. A span of stored blocks may be long.
pub const SPAN_RECORD_BYTES_MAX: u32 = 256 << 20;
/// Layers that are downloaded and unpacked at one time.
pub const LAYERS_AT_ONCE: usize = 4;
/// Bytes handed from thread to thread at a time.
pub const BUFFER_BYTES: usize = 1 << 20;
/// Buffers under way in one channel of the pipeline: with two channels that share them and four layers, some 40 MiB.
pub const CHANNEL_BUFFERS: usize = 4;
/// How long an image waits before it is synced to the disk.
pub const SEAL_DELAY: Duration = Duration::from_secs(10);
/// Chunks from a registry, of at most 1 MiB, that wait for the inflating thread; the registry client has a queue of its own.
pub const CHUNKS_QUEUED: usize = 8;
/// Bytes of one record of an image in the store.
pub const RECORD_BYTES_MAX: u64 = 64 << 20;

const _: () = assert!(BLOB_BYTES_MAX <= (1 << 32) * crate::tree::BLOCK_BYTES);
const _: () = assert!(LAYER_BYTES_MAX <= BLOB_BYTES_MAX);
const _: () = assert!(INDEX_FRONT_BYTES_MAX <= IMAGE_FRONTS_BYTES_MAX);
