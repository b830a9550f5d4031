//! What an image may ask of this machine.

use std::time::Duration;

/// Directories below one another: what a path of 4,096 bytes can name.
pub const DEPTH_MAX: usize = 2048;
/// Symbolic links followed on the way to one entry, as the kernel has it (`MAXSYMLINKS`).
pub const SYMLINKS_FOLLOWED_MAX: usize = 40;
/// Files of so many bytes, one chunk, are read with their neighbours where images stand on loop devices; larger ones alone.
pub const SMALL_FILE_BYTES_MAX: u64 = crate::tree::CHUNK_BYTES;
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
/// Queues of the FUSE connection, and threads that serve it.
pub const FUSE_QUEUES_MAX: usize = 64;
/// Bytes of one read over FUSE; the kernel cuts larger ones. Each thread has that much memory.
pub const FUSE_READ_BYTES_MAX: u32 = 1 << 20;
/// Bytes of one request over FUSE: those that matter are short.
pub const FUSE_REQUEST_BYTES_MAX: usize = 16 << 10;
/// Reads of loop devices that may wait at one time: those that wait for the network must not hold up the others. Every one of
/// several hundred devices may have 128.
pub const FUSE_BACKGROUND_MAX: u16 = u16::MAX;
/// How often one read is tried before what was fetched counts as lost.
pub const FUSE_READ_ATTEMPTS_MAX: u32 = 3;

const _: () = assert!(FUSE_QUEUES_MAX < sampan_sys::socket::DESCRIPTORS_MAX);
const _: () = assert!(FUSE_REQUEST_BYTES_MAX >= sampan_sys::fuse::protocol::REQUEST_BYTES_MIN);
const _: () = assert!(BLOB_BYTES_MAX <= (1 << 32) * crate::tree::BLOCK_BYTES);
const _: () = assert!(LAYER_BYTES_MAX <= BLOB_BYTES_MAX);
const _: () = assert!(INDEX_FRONT_BYTES_MAX <= IMAGE_FRONTS_BYTES_MAX);

/// Bytes of a layer's own table of contents, unpacked and as stored: half a million entries of ordinary names.
pub const TOC_BYTES_MAX: u64 = 128 << 20;
pub const TOC_STORED_BYTES_MAX: u64 = 64 << 20;
/// Pieces of files in a layer's own table of contents: 64 GiB in pieces of the usual 64 KiB.
pub const TOC_PIECES_MAX: usize = 1 << 20;
/// Bytes of one such piece, which is verified in memory. Usual are 64 KiB and 4 MiB; only long runs of one byte make more.
pub const TOC_PIECE_BYTES_MAX: u64 = 32 << 20;
/// Bytes that may have to be unpacked to come to a piece: headers, other small files, the table's own beginning.
pub const TOC_SKIPPED_BYTES_MAX: u64 = TOC_BYTES_MAX + (1 << 20);
/// Pieces above this are unpacked only so many at one time, over all layers, and once all of their bytes are here.
pub const TOC_LARGE_PIECE_BYTES: u64 = 1 << 20;
pub const TOC_LARGE_PIECES_AT_ONCE: usize = 4;
/// Layers of an image, as manifests may name.
pub const TRACE_LAYERS_MAX: u32 = sampan_oci::limits::LAYERS_MAX as u32;
/// Pages of one trace: 1 GiB. What a start reads beyond that is no start any more.
pub const TRACE_PAGES_MAX: usize = 1 << 18;
/// Bytes of a trace, unpacked: every page a run of its own.
pub const TRACE_BYTES_MAX: usize = TRACE_PAGES_MAX * 16 + 64;
/// Bytes of a trace as stored.
pub const TRACE_STORED_BYTES_MAX: u64 = 8 << 20;
/// Command shapes of one image that are remembered.
pub const TRACE_SHAPES_MAX: usize = 16;
/// Images whose traces are remembered, removed ones too: they may come back.
pub const TRACE_IMAGES_MAX: usize = 512;
/// Bytes of a command's shape.
pub const SHAPE_BYTES_MAX: usize = 512;
/// Pages of one start pack: 256 MiB, far more than starts touch.
pub const PACK_PAGES_MAX: usize = 1 << 16;
/// Bytes of a pack's head, as stored and unpacked: every page a run of its own.
pub const PACK_HEAD_BYTES_MAX: u64 = 2 << 20;
/// Frames of a pack that are asked for before the one at hand has come: enough to keep a link busy, and few enough that the
/// first is not slowed down much.
pub const PACK_FRAMES_AHEAD: usize = 1;
/// Descriptions in one artifact: an index for each layer, packs and traces.
pub const PUBLISHED_ENTRIES_MAX: usize = sampan_oci::limits::LAYERS_MAX + 64;
/// Bytes of one description in an index cache.
pub const DESCRIPTION_BYTES_MAX: u64 = 64 << 10;
/// Signatures of one description that are looked at.
pub const SIGNATURES_MAX: usize = 16;
/// Bytes of a published file that are asked for at once; the registry client's own bound.
pub const PUBLISHED_READ_BYTES_MAX: u64 = sampan_registry::limits::RANGE_BYTES_MAX;
/// How long an index cache may take to say whether it has something: a start must not wait long for a dead server.
pub const CACHE_ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long looking for a published index may take, front parts included, before the image is pulled without.
pub const FIND_MAX: Duration = Duration::from_secs(60);

const _: () = assert!(TRACE_STORED_BYTES_MAX > TRACE_BYTES_MAX as u64, "what does not pack may still be stored");
const _: () = assert!(PACK_PAGES_MAX <= TRACE_PAGES_MAX);
