//! Every bound of the store, in one place.

/// Events kept for watches that resume. A busy node makes about ten events a pod, so this is 800 pods' worth.
pub const HISTORY_EVENTS_MAX: usize = 8192;

/// Encoded bytes of values kept in the history, and in memory. A pod has 2 to 4 KiB.
pub const HISTORY_BYTES_MAX: usize = 16 << 20;

/// Events that stay parsed for watches that keep up. Parsed, a pod takes 23 KiB (measured).
pub const HISTORY_PARSED_EVENTS: usize = 256;

/// Bytes of the write-ahead log's file that stay after a checkpoint.
pub const WAL_BYTES_KEPT: i64 = 8 << 20;

/// Rows beyond the limit that may wait before one DELETE removes them together.
pub const HISTORY_SLACK_EVENTS: usize = 256;

/// Changes waiting for the writer; beyond it callers wait for a place.
pub const WRITE_QUEUE_MAX: usize = 1024;

/// Changes in one transaction.
pub const BATCH_CHANGES_MAX: usize = 128;

/// Encoded bytes of one object. etcd refuses requests of 1.5 MiB; the same objects must fit here.
pub const OBJECT_BYTES_MAX: usize = 3 << 20;

/// Events copied to one watcher under one hold of the lock.
pub const WATCH_BATCH_EVENTS: usize = 64;

/// More than any process could commit between two flushes of the write-ahead log.
pub const REVISIONS_SKIPPED_AFTER_BOOT: u64 = 1_000_000;

const _: () = assert!(HISTORY_SLACK_EVENTS < HISTORY_EVENTS_MAX);
const _: () = assert!(HISTORY_PARSED_EVENTS <= HISTORY_EVENTS_MAX);
const _: () = assert!(BATCH_CHANGES_MAX <= WRITE_QUEUE_MAX);
const _: () = assert!(OBJECT_BYTES_MAX < HISTORY_BYTES_MAX, "one object must fit into the history");
