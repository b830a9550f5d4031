//! The in-memory copy: all objects, and the newest part of the history.
//!
//! Only the writer thread changes it, after a commit, under one short hold of the lock; everything reads it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::error::StoreError;
use crate::limits::HISTORY_PARSED_EVENTS;
use crate::object::{Change, Key, Object, WatchEvent};

/// Objects of one resource by (namespace, name); cluster-scoped ones have the namespace "".
type Table = BTreeMap<(String, String), Arc<Object>>;

/// One remembered change. The newest ones keep their parsed form, which is ten times the size of the encoded one.
pub(crate) struct Remembered {
    pub(crate) kind: Change,
    pub(crate) key: Key,
    pub(crate) revision: u64,
    /// The revision of the object before the change.
    pub(crate) previous: Option<u64>,
    /// The value without its revision.
    pub(crate) bytes: Arc<[u8]>,
    pub(crate) parsed: Option<Arc<WatchEvent>>,
}

/// A change as taken from the history; old ones are parsed by whoever wants them, without holding the lock.
pub(crate) enum Taken {
    Parsed(Arc<WatchEvent>),
    Encoded { kind: Change, key: Key, revision: u64, bytes: Arc<[u8]>, previous: Option<(u64, Arc<[u8]>)> },
}

impl Taken {
    pub(crate) fn revision(&self) -> u64 {
        match self {
            Self::Parsed(event) => event.object.revision,
            Self::Encoded { revision, .. } => *revision,
        }
    }

    pub(crate) fn parse(self) -> Result<Arc<WatchEvent>, StoreError> {
        match self {
            Self::Parsed(event) => Ok(event),
            Self::Encoded { kind, key, revision, bytes, previous } => {
                let previous =
                    previous.map(|(revision, bytes)| Object::parse(key.clone(), revision, &bytes)).transpose()?;
                let object = Arc::new(Object::parse(key, revision, &bytes)?);
                Ok(Arc::new(WatchEvent { kind, object, previous: previous.map(Arc::new) }))
            }
        }
    }
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
    pub(crate) fn remember(&mut self, remembered: Remembered) {
        self.history_bytes += remembered.bytes.len();
        self.history.push_back(remembered);
        if let Some(older) =
            self.history.len().checked_sub(HISTORY_PARSED_EVENTS + 1).and_then(|at| self.history.get_mut(at))
        {
            older.parsed = None;
        }
    }

    /// Applies a committed change.
    pub(crate) fn apply(&mut self, event: Arc<WatchEvent>, bytes: Arc<[u8]>) {
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
        self.remember(Remembered {
            kind: event.kind,
            key: event.object.key.clone(),
            revision: event.object.revision,
            previous: event.previous.as_ref().map(|previous| previous.revision),
            bytes,
            parsed: Some(event),
        });
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
            bytes -= remembered.bytes.len();
            last = Some(remembered.revision);
        }
        last
    }

    /// Forgets changes up to and including `revision`.
    pub(crate) fn compact(&mut self, revision: u64) {
        while let Some(first) = self.history.front()
            && first.revision <= revision
        {
            self.history_bytes -= first.bytes.len();
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
    ) -> Result<(Vec<Taken>, u64), StoreError> {
        if revision < self.compacted {
            return Err(StoreError::Gone { asked: revision, oldest: self.compacted });
        }
        let start = self.history.partition_point(|remembered| remembered.revision <= revision);
        let mut events = Vec::new();
        for remembered in self.history.range(start..) {
            if wanted(&remembered.key) {
                events.push(self.take(remembered));
                if events.len() == limit {
                    return Ok((events, remembered.revision));
                }
            }
        }
        Ok((events, self.revision.max(revision)))
    }

    fn take(&self, remembered: &Remembered) -> Taken {
        if let Some(event) = &remembered.parsed {
            return Taken::Parsed(Arc::clone(event));
        }
        let bytes_at = |revision: u64| {
            let at = self.history.partition_point(|one| one.revision < revision);
            let found = self.history.get(at).filter(|one| one.revision == revision)?;
            Some((revision, Arc::clone(&found.bytes)))
        };
        Taken::Encoded {
            kind: remembered.kind,
            key: remembered.key.clone(),
            revision: remembered.revision,
            bytes: Arc::clone(&remembered.bytes),
            previous: remembered.previous.and_then(bytes_at),
        }
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
