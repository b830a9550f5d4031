//! The store's handle.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use crate::database;
use crate::error::StoreError;
use crate::limits::{HISTORY_BYTES_MAX, HISTORY_EVENTS_MAX, OBJECT_BYTES_MAX, WRITE_QUEUE_MAX};
use crate::memory::Memory;
use crate::object::{Key, Object};
use crate::watch::Watch;
use crate::writer::{Answer, Command, NewValue, Order, Writer, encode_without_revision};

/// How much history a store keeps.
#[derive(Debug, Clone, Copy)]
pub struct StoreOptions {
    /// Events kept for watches that resume.
    pub history_events_max: usize,
    /// Encoded bytes kept for them.
    pub history_bytes_max: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { history_events_max: HISTORY_EVENTS_MAX, history_bytes_max: HISTORY_BYTES_MAX }
    }
}

/// A cheap handle to one open store; the writer thread ends with the last of them.
#[derive(Clone)]
pub struct Store {
    memory: Arc<Memory>,
    commands: mpsc::Sender<Command>,
    revision: watch::Receiver<u64>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("revision", &*self.revision.borrow()).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store in the file `path`, or makes it. Reads everything into memory; blocks meanwhile.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, is in use by another process, or of a newer format.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, StoreOptions::default())
    }

    /// As [`Store::open`], with bounds of the caller's own.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(path: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        let (connection, contents) = database::open(path)?;
        let (revision_sender, revision) = watch::channel(contents.revision);
        let memory = Arc::new(Memory::new(contents));
        let (commands, receiver) = mpsc::channel(WRITE_QUEUE_MAX);
        let writer = Writer { connection, memory: Arc::clone(&memory), revision: revision_sender, options };
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(receiver))
            .map_err(StoreError::Thread)?;
        Ok(Self { memory, commands, revision })
    }

    /// Stores a new object.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`]; [`StoreError::TooLarge`].
    pub async fn create(&self, key: Key, value: Value) -> Answer {
        let new = new_value(&key, value)?;
        self.order(Order::Create { key, new }).await
    }

    /// Reads one object as of the newest commit.
    ///
    /// # Errors
    /// None today; the signature leaves room for stores that are elsewhere.
    pub async fn get(&self, key: &Key) -> Result<Option<Arc<Object>>, StoreError> {
        Ok(self.memory.read().get(key).cloned())
    }

    /// All objects of a resource (in a namespace), ordered by namespace and name, and the revision of that snapshot.
    ///
    /// # Errors
    /// None today; see [`Store::get`].
    pub async fn list(&self, resource: &str, namespace: Option<&str>) -> Result<(Vec<Arc<Object>>, u64), StoreError> {
        Ok(self.snapshot(resource, namespace))
    }

    /// As [`Store::list`], at once: this store is in memory.
    #[must_use]
    pub fn snapshot(&self, resource: &str, namespace: Option<&str>) -> (Vec<Arc<Object>>, u64) {
        let contents = self.memory.read();
        (contents.list(resource, namespace), contents.revision)
    }

    /// Replaces an object, if it is still at the revision `expected` (any, if None).
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Conflict`], [`StoreError::TooLarge`].
    pub async fn update(&self, key: &Key, expected: Option<u64>, value: Value) -> Answer {
        let new = new_value(key, value)?;
        self.order(Order::Update { key: key.clone(), expected, new }).await
    }

    /// Removes an object, if it is still at the revision `expected` (any, if None); returns its last state at the
    /// revision of the removal.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Conflict`].
    pub async fn delete(&self, key: &Key, expected: Option<u64>) -> Answer {
        self.order(Order::Delete { key: key.clone(), expected }).await
    }

    /// Every change of a resource (in a namespace) after a revision, oldest first, and then as they happen.
    ///
    /// # Errors
    /// [`StoreError::Gone`] when that history is no longer kept, [`StoreError::Future`] for a revision not reached yet.
    pub fn watch(&self, resource: &str, namespace: Option<&str>, after_revision: u64) -> Result<Watch, StoreError> {
        let contents = self.memory.read();
        if after_revision < contents.compacted {
            return Err(StoreError::Gone { asked: after_revision, oldest: contents.compacted });
        }
        if after_revision > contents.revision {
            return Err(StoreError::Future { asked: after_revision, current: contents.revision });
        }
        Ok(Watch::new(Arc::clone(&self.memory), self.revision.clone(), resource, namespace, after_revision))
    }

    /// The newest committed revision.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.memory.read().revision
    }

    /// Waits until something newer than a revision is committed; returns the newest.
    ///
    /// # Errors
    /// [`StoreError::Closed`] at shutdown.
    pub async fn changed(&self, after_revision: u64) -> Result<u64, StoreError> {
        let mut revision = self.revision.clone();
        match revision.wait_for(|now| *now > after_revision).await {
            Ok(now) => Ok(*now),
            Err(_) => Err(StoreError::Closed),
        }
    }

    async fn order(&self, order: Order) -> Answer {
        let (answer, result) = oneshot::channel();
        if self.commands.send(Command { order, answer }).await.is_err() {
            return Err(StoreError::Closed);
        }
        result.await.unwrap_or(Err(StoreError::Closed))
    }
}

fn new_value(key: &Key, mut value: Value) -> Result<NewValue, StoreError> {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("resourceVersion");
    }
    let bytes = encode_without_revision(key, &value)?;
    if bytes.len() > OBJECT_BYTES_MAX {
        return Err(StoreError::TooLarge { key: key.clone(), bytes: bytes.len(), limit: OBJECT_BYTES_MAX });
    }
    Ok(NewValue { value, bytes })
}
