//! The in-memory copy: all objects, and the newest part of the history.
//!
//! Only the writer thread changes it, after a commit, under one short hold of the lock; everything reads it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::error::StoreError;
use crate::object::{Change, Key, Object, WatchEvent};

/// Objects of one resource by (namespace, name); cluster-scoped ones have the namespace "".
type Table = BTreeMap<(String, String), Arc<Object>>;

/// One remembered change with its encoded size.
pub(crate) struct Remembered {
    pub(crate) event: Arc<WatchEvent>,
    pub(crate) bytes: usize,
}

/// Objects and history at one revision.
pub(crate) struct Contents {
    tables: BTreeMap<String, Table>,
    history: VecDeque<Remembered>,
    history_bytes: usize,
    /// Watches may begin after this revision or any later one.
    pub(crate) compacted: u64,
    /// The newest committed revision.
    pub(crate) revision: u64,
}

impl Contents {
    pub(crate) fn new(revision: u64, compacted: u64) -> Self {
        Self { tables: BTreeMap::new(), history: VecDeque::new(), history_bytes: 0, compacted, revision }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<Object>> {
        let place = (key.namespace.clone().unwrap_or_default(), key.name.clone());
        self.tables.get(&key.resource)?.get(&place)
    }

    pub(crate) fn list(&self, resource: &str, namespace: Option<&str>) -> Vec<Arc<Object>> {
        let Some(table) = self.tables.get(resource) else { return Vec::new() };
        match namespace {
            None => table.values().cloned().collect(),
            Some(namespace) => table
                .range((Bound::Included((namespace.to_owned(), String::new())), Bound::Unbounded))
                .take_while(|(place, _)| place.0 == namespace)
                .map(|(_, object)| Arc::clone(object))
                .collect(),
        }
    }

    /// Puts an object in its place, as found in the database at open.
    pub(crate) fn place(&mut self, object: Arc<Object>) {
        let place = (object.key.namespace.clone().unwrap_or_default(), object.key.name.clone());
        self.tables.entry(object.key.resource.clone()).or_default().insert(place, object);
    }

    /// Remembers a change without applying it, as found in the database at open.
    pub(crate) fn remember(&mut self, event: Arc<WatchEvent>, bytes: usize) {
        self.history_bytes += bytes;
        self.history.push_back(Remembered { event, bytes });
    }

    /// Applies a committed change.
    pub(crate) fn apply(&mut self, event: Arc<WatchEvent>, bytes: usize) {
        self.revision = event.object.revision;
        match event.kind {
            Change::Added | Change::Modified => self.place(Arc::clone(&event.object)),
            Change::Deleted => {
                let key = &event.object.key;
                let place = (key.namespace.clone().unwrap_or_default(), key.name.clone());
                if let Some(table) = self.tables.get_mut(&key.resource) {
                    table.remove(&place);
                }
            }
        }
        self.remember(event, bytes);
    }

    /// The revision up to which the history should be forgotten to obey the limits, if it must be.
    pub(crate) fn excess(&self, events_max: usize, bytes_max: usize) -> Option<u64> {
        let mut events = self.history.len();
        let mut bytes = self.history_bytes;
        let mut last = None;
        for remembered in &self.history {
            if events <= events_max && bytes <= bytes_max {
                break;
            }
            events -= 1;
            bytes -= remembered.bytes;
            last = Some(remembered.event.object.revision);
        }
        last
    }

    /// Forgets changes up to and including `revision`.
    pub(crate) fn compact(&mut self, revision: u64) {
        while let Some(first) = self.history.front()
            && first.event.object.revision <= revision
        {
            self.history_bytes -= first.bytes;
            self.history.pop_front();
        }
        self.compacted = self.compacted.max(revision);
    }

    /// At most `limit` changes after `revision` that `wanted` accepts, and the revision up to which the history was looked at.
    pub(crate) fn after(
        &self,
        revision: u64,
        limit: usize,
        wanted: impl Fn(&Key) -> bool,
    ) -> Result<(Vec<Arc<WatchEvent>>, u64), StoreError> {
        if revision < self.compacted {
            return Err(StoreError::Gone { asked: revision, oldest: self.compacted });
        }
        let start = self.history.partition_point(|remembered| remembered.event.object.revision <= revision);
        let mut events = Vec::new();
        for remembered in self.history.range(start..) {
            if wanted(&remembered.event.object.key) {
                events.push(Arc::clone(&remembered.event));
                if events.len() == limit {
                    return Ok((events, remembered.event.object.revision));
                }
            }
        }
        Ok((events, self.revision.max(revision)))
    }
}

/// The contents behind their lock. A panic while it is held cannot leave them half changed in a way that matters
/// (the writer thread would be dead and the store closed), so poisoning is ignored.
pub(crate) struct Memory(RwLock<Contents>);

impl Memory {
    pub(crate) fn new(contents: Contents) -> Self {
        Self(RwLock::new(contents))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Contents> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Contents> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
