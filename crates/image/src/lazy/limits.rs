//! What lazy loading may take of this machine and its network, and how long anyone waits.

use std::time::Duration;

/// Transfers at one time, over all layers, that readers wait for. Each is a connection, and some 400 KiB of memory.
pub(crate) const DEMAND_AT_ONCE: usize = 64;
/// The same for one layer, so that a dead registry does not hold up the others.
pub(crate) const LAYER_DEMAND_AT_ONCE: usize = 8;
/// Readers for whom nothing has come in this time do not hold up others.
pub(crate) const SILENCE: Duration = Duration::from_secs(3);
/// Transfers at one time of what will probably be read.
pub(crate) const PREFETCH_AT_ONCE: usize = 4;
/// Layers that are completed at one time.
pub(crate) const BACKGROUND_AT_ONCE: usize = 2;
/// How long prefetch is held back between two chunks.
pub(crate) const PREFETCH_PAUSE_MAX: Duration = Duration::from_millis(500);
/// How long readers must have been quiet before the background goes on, and how long it is held back at most.
pub(crate) const BACKGROUND_QUIET: Duration = Duration::from_secs(3);
pub(crate) const BACKGROUND_PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long after its beginning what is read of an image counts as its start: the background waits for readers who find what
/// they read, too.
pub(crate) const START_MAX: Duration = Duration::from_secs(20);
/// How far is read ahead of an image that is still arriving, once its start is over: about one span. Before, nothing: a start
/// touches single pages, and whatever else came with them would have to come first.
pub(crate) const ARRIVING_READ_AHEAD_KIB: u32 = 256;
/// Bytes of the compressed layer that the background asks for at a time, and how many of those ahead of what it unpacks.
pub(crate) const BACKGROUND_PART_BYTES: u64 = 4 << 20;
pub(crate) const BACKGROUND_PARTS_AHEAD: usize = 2;
/// The same while readers have waited for something lately, and what "lately" is: one of them may want what is on its way.
pub(crate) const BACKGROUND_CAREFUL_PART_BYTES: u64 = 256 << 10;
pub(crate) const BACKGROUND_CAREFUL: Duration = Duration::from_secs(10);
/// How soon one who gives way finds out that he need not.
pub(crate) const HURRY_TICK: Duration = Duration::from_millis(50);
/// Two wanted pieces of a compressed layer that are no further apart are fetched as one.
pub(crate) const GAP_BYTES_MAX: u64 = 32 << 10;
/// Compressed bytes of one transfer that was merged from several wishes.
pub(crate) const STRETCH_BYTES_MAX: u64 = 4 << 20;
/// A reader who misses a part of a file gets the rest of it in the same request if that is no more compressed bytes.
pub(crate) const FILE_REST_BYTES_MAX: u64 = 2 << 20;
/// One who reads on, with one of so many spans before his own here already, gets so many more.
pub(crate) const NEAR_SPANS: usize = 4;
pub(crate) const AHEAD_SPANS: usize = 2;
/// Records that are read at a time, from the first that is wanted, and those of a layer that are kept for whoever wants them next.
pub(crate) const RECORDS_READ_BYTES: u64 = 32 << 10;
pub(crate) const RECORDS_KEPT_BYTES_MAX: u64 = 1 << 20;
/// Bytes that go through the inflater at a time.
pub(crate) const DECODE_BYTES: usize = 128 << 10;
/// Pause before a failed piece is asked for again: the first, and the longest.
pub(crate) const RETRY_FIRST: Duration = Duration::from_millis(200);
pub(crate) const RETRY_LONGEST: Duration = Duration::from_secs(5);
/// How long a reader waits unless configured otherwise.
pub(crate) const READ_DEADLINE: Duration = Duration::from_secs(60);
/// How often deadlines are looked at.
pub(crate) const DEADLINE_TICK: Duration = Duration::from_millis(500);
/// How often a piece may unpack to something else than its digests say before its readers are told.
pub(crate) const CORRUPT_MAX: u32 = 2;
/// Touches that are recorded for one layer: 1 GiB of different pages.
pub(crate) const TOUCHES_MAX: usize = 1 << 18;
/// How long a reader waits for a start pack that does not come on, before asking the registry himself.
pub(crate) const PACK_PATIENCE: Duration = Duration::from_secs(2);
/// How long completion pauses after a failure: the first time, and the longest.
pub(crate) const COMPLETION_RETRY_FIRST: Duration = Duration::from_secs(2);
pub(crate) const COMPLETION_RETRY_LONGEST: Duration = Duration::from_secs(120);
/// Compressed bytes that must be missing of an image, in layers that can be read at random, for it to be mounted before it is
/// here. Below, pulling takes no longer than the first readers would wait.
pub(crate) const LAZY_BYTES_MIN: u64 = 16 << 20;
/// A layer of fewer compressed bytes is pulled: its first reader would wait as long.
pub(crate) const LAZY_LAYER_BYTES_MIN: u64 = 128 << 10;
/// Threads that answer the kernel.
pub(crate) const FUSE_THREADS: usize = 4;
/// Bytes of the indexes that are kept of layers that are no longer here, and the least bytes of a blob whose index is worth it.
pub(crate) const KEPT_INDEX_BYTES_MAX: u64 = 256 << 20;
pub(crate) const KEPT_INDEX_BLOB_BYTES_MIN: u64 = 4 << 20;
