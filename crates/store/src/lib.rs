//! Objects with revisions on SQLite: compare-and-swap, list, watch, compaction.
//!
//! What: the one place where desired and observed state lives. Every change gets the next number of one global,
//! ever rising *revision*; a reader takes a list at a revision and a watch after it and misses nothing.
//!
//! How: one writer thread owns the SQLite connection and commits whatever has queued up as one transaction (group
//! commit); what is committed is then published, in order, to an in-memory copy from which every read is answered.
//!
//! ```text
//! create/update/delete ─▶ bounded queue ─▶ writer thread ─▶ SQLite (WAL) ─▶ memory: objects + history ─▶ get, list
//!                                                                                          └─ new revision ─▶ watches
//! ```
//!
//! Invariants:
//! - Nothing is visible to a reader before it is committed; an error to the caller means that nothing happened.
//! - A list and its revision are one snapshot.
//! - History is bounded by rows and bytes; who asks for what has been compacted, or falls behind that far, is told
//!   [`StoreError::Gone`] and must list again. A watcher has no queue of its own: it reads the shared history at its own pace.
//! - `metadata.resourceVersion` of a value handed out is its revision.
//!
//! Durability: WAL with `synchronous = NORMAL`. A commit survives the death of this process at any moment; a power
//! failure may take the last commits (never consistency). That is the right bargain here, because the pods that those
//! commits describe die in the same moment, and it saves one flush of the disk a commit, which is most of the time
//! between a request and a running pod. So that no client can hold a revision from a lost future, the first open
//! after a boot skips [`limits::REVISIONS_SKIPPED_AFTER_BOOT`] revisions and declares the history compacted.

mod database;
mod error;
pub mod limits;
mod memory;
mod object;
mod store;
mod watch;
mod writer;

pub use error::StoreError;
pub use object::{Change, Key, Object, WatchEvent};
pub use store::{Store, StoreOptions};
pub use watch::Watch;
