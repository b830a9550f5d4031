//! The writer thread: takes changes from the queue, commits them in groups, publishes them, answers.
//!
//! A change that fails its own precondition (exists, is missing, has moved on) is answered alone. A database error
//! fails the whole group, because the transaction is rolled back; nothing of it is published.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::Connection;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use crate::database;
use crate::error::StoreError;
use crate::limits::{BATCH_CHANGES_MAX, HISTORY_SLACK_EVENTS};
use crate::memory::Memory;
use crate::object::{Change, Key, Object, WatchEvent, stamp};
use crate::store::StoreOptions;

/// A new value, and its encoding without a revision, made by the caller so that the one writer has less to do.
pub(crate) struct NewValue {
    pub(crate) value: Value,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) enum Order {
    Create { key: Key, new: NewValue },
    Update { key: Key, expected: Option<u64>, new: NewValue },
    Delete { key: Key, expected: Option<u64> },
}

pub(crate) type Answer = Result<Arc<Object>, StoreError>;

pub(crate) struct Command {
    pub(crate) order: Order,
    pub(crate) answer: oneshot::Sender<Answer>,
}

/// One accepted change of the current group.
struct Accepted {
    event: Arc<WatchEvent>,
    bytes: Vec<u8>,
    answer: oneshot::Sender<Answer>,
}

/// The objects as the current group sees them.
type Overlay = HashMap<Key, Option<Arc<Object>>>;

pub(crate) struct Writer {
    pub(crate) connection: Connection,
    pub(crate) memory: Arc<Memory>,
    pub(crate) revision: watch::Sender<u64>,
    pub(crate) options: StoreOptions,
}

impl Writer {
    /// Runs until every sender of commands is gone.
    pub(crate) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut group = Vec::with_capacity(BATCH_CHANGES_MAX);
        while let Some(first) = commands.blocking_recv() {
            group.push(first);
            while group.len() < BATCH_CHANGES_MAX {
                match commands.try_recv() {
                    Ok(next) => group.push(next),
                    Err(_) => break,
                }
            }
            self.commit(group.drain(..));
        }
    }

    fn commit(&mut self, group: impl Iterator<Item = Command>) {
        let mut next = self.memory.read().revision;
        let mut overlay = Overlay::new();
        let mut accepted = Vec::new();
        for command in group {
            match decide(&self.memory, &overlay, command.order, next + 1) {
                Ok((event, bytes)) => {
                    next += 1;
                    let after = (event.kind != Change::Deleted).then(|| Arc::clone(&event.object));
                    overlay.insert(event.object.key.clone(), after);
                    accepted.push(Accepted { event: Arc::new(event), bytes, answer: command.answer });
                }
                Err(error) => reply(command.answer, Err(error)),
            }
        }
        if accepted.is_empty() {
            return;
        }
        match self.write(&accepted) {
            Ok(()) => self.publish(accepted),
            Err(source) => {
                let source = Arc::new(source);
                tracing::error!(error = %source, changes = accepted.len(), "the database refuses changes");
                for change in accepted {
                    reply(change.answer, Err(StoreError::Database(Arc::clone(&source))));
                }
            }
        }
    }

    fn write(&mut self, accepted: &[Accepted]) -> Result<(), rusqlite::Error> {
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        for change in accepted {
            database::write_change(&transaction, change.event.kind, &change.event.object, &change.bytes)?;
        }
        transaction.commit()
    }

    fn publish(&mut self, accepted: Vec<Accepted>) {
        let mut answers = Vec::with_capacity(accepted.len());
        let excess;
        {
            let mut contents = self.memory.write();
            for change in accepted {
                answers.push((change.answer, Arc::clone(&change.event.object)));
                contents.apply(change.event, change.bytes.into());
            }
            self.revision.send_replace(contents.revision);
            let slack = HISTORY_SLACK_EVENTS.min(self.options.history_events_max);
            excess = contents
                .excess(self.options.history_events_max + slack, self.options.history_bytes_max)
                .and_then(|_| contents.excess(self.options.history_events_max, self.options.history_bytes_max));
        }
        for (answer, object) in answers {
            reply(answer, Ok(object));
        }
        if let Some(revision) = excess {
            self.compact(revision);
        }
    }

    /// After the answers, so that no caller waits for it. A failure is harmless: the next group tries again.
    fn compact(&mut self, revision: u64) {
        let result = self.connection.transaction().and_then(|transaction| {
            database::compact(&transaction, revision)?;
            transaction.commit()
        });
        match result {
            Ok(()) => self.memory.write().compact(revision),
            Err(error) => tracing::warn!(%error, "cannot compact the history"),
        }
    }
}

/// Checks an order against what is stored and makes the event that it will be.
fn decide(
    memory: &Memory,
    overlay: &Overlay,
    order: Order,
    revision: u64,
) -> Result<(WatchEvent, Vec<u8>), StoreError> {
    let current = |key: &Key| match overlay.get(key) {
        Some(known) => known.clone(),
        None => memory.read().get(key).cloned(),
    };
    let expect = |key: &Key, expected: Option<u64>| {
        let object = current(key).ok_or_else(|| StoreError::NotFound(key.clone()))?;
        match expected {
            Some(expected) if expected != object.revision => {
                Err(StoreError::Conflict { key: key.clone(), expected, actual: object.revision })
            }
            _ => Ok(object),
        }
    };
    match order {
        Order::Create { key, new } => {
            if current(&key).is_some() {
                return Err(StoreError::AlreadyExists(key));
            }
            Ok(event(Change::Added, key, new, None, revision))
        }
        Order::Update { key, expected, new } => {
            let previous = expect(&key, expected)?;
            Ok(event(Change::Modified, key, new, Some(previous), revision))
        }
        Order::Delete { key, expected } => {
            let previous = expect(&key, expected)?;
            let bytes = encode_without_revision(&key, &previous.value)?;
            let new = NewValue { value: previous.value.clone(), bytes };
            Ok(event(Change::Deleted, key, new, Some(previous), revision))
        }
    }
}

fn event(kind: Change, key: Key, new: NewValue, previous: Option<Arc<Object>>, revision: u64) -> (WatchEvent, Vec<u8>) {
    let mut value = new.value;
    stamp(&mut value, revision);
    (WatchEvent { kind, object: Arc::new(Object { key, revision, value }), previous }, new.bytes)
}

/// The stored form of a value. The revision is a column of its own, so that it can be given after encoding.
pub(crate) fn encode_without_revision(key: &Key, value: &Value) -> Result<Vec<u8>, StoreError> {
    if !value.is_object() {
        return Err(StoreError::NotAnObject(key.clone()));
    }
    serde_json::to_vec(value).map_err(|source| StoreError::Damaged { key: key.clone(), source })
}

fn reply(answer: oneshot::Sender<Answer>, result: Answer) {
    // A caller that has gone away does not want its answer; the change stands.
    drop(answer.send(result));
}
