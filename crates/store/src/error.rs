//! What can go wrong with the store.

use std::path::PathBuf;

use crate::object::Key;

/// Why a read, a change or a watch of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is an object of that key.
    #[error("{0} already exists")]
    AlreadyExists(Key),
    /// There is no object of that key.
    #[error("{0} not found")]
    NotFound(Key),
    /// The object is not at the revision that the caller expected. The caller reads again and retries.
    #[error("{key} was changed: revision {expected} expected, {actual} found")]
    Conflict {
        /// Whose revision differs.
        key: Key,
        /// The caller's revision.
        expected: u64,
        /// The stored revision.
        actual: u64,
    },
    /// The history after that revision is no longer kept. The watcher lists again.
    #[error("revision {asked} is too old: history begins at {oldest}")]
    Gone {
        /// What the watcher asked for.
        asked: u64,
        /// The oldest revision after which a watch may begin.
        oldest: u64,
    },
    /// A revision that this store has not reached.
    #[error("revision {asked} is in the future: the store is at {current}")]
    Future {
        /// What the watcher asked for.
        asked: u64,
        /// The store's revision.
        current: u64,
    },
    /// The value is larger than [`crate::limits::OBJECT_BYTES_MAX`].
    #[error("{key} is {bytes} bytes long, {limit} are allowed")]
    TooLarge {
        /// The object's key.
        key: Key,
        /// The encoded length.
        bytes: usize,
        /// The allowed length.
        limit: usize,
    },
    /// The value is not an object, or cannot be encoded.
    #[error("{0} is not a JSON object")]
    NotAnObject(Key),
    /// The database refused a change: nothing of it happened.
    #[error("the database refuses the change")]
    Database(#[source] std::sync::Arc<rusqlite::Error>),
    /// The database file cannot be opened or read.
    #[error("cannot open the database {path}")]
    Open {
        /// The database file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// A stored value is not what this store writes.
    #[error("the database holds a damaged record of {key}")]
    Damaged {
        /// Which record.
        key: Key,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The database was written by a newer version.
    #[error("the database has format {found}, this version knows {known}: start the newer version again")]
    Format {
        /// The format in the file.
        found: i64,
        /// The format of this code.
        known: i64,
    },
    /// The writer thread cannot be started.
    #[error("cannot start the store's writer")]
    Thread(#[source] std::io::Error),
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}
