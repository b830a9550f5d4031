//! One watcher: a position in the shared history.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::Stream;
use tokio::sync::watch;

use crate::error::StoreError;
use crate::limits::WATCH_BATCH_EVENTS;
use crate::memory::{Memory, Taken};
use crate::object::{Key, WatchEvent};

/// Changes of one resource in order, none left out. Costs nothing while nothing happens.
pub struct Watch {
    memory: Arc<Memory>,
    revision: watch::Receiver<u64>,
    resource: String,
    namespace: Option<String>,
    /// Everything up to here has been taken from the history.
    position: u64,
    taken: VecDeque<Taken>,
}

impl Watch {
    pub(crate) fn new(
        memory: Arc<Memory>,
        revision: watch::Receiver<u64>,
        resource: &str,
        namespace: Option<&str>,
        position: u64,
    ) -> Self {
        Self {
            memory,
            revision,
            resource: resource.to_owned(),
            namespace: namespace.map(str::to_owned),
            position,
            taken: VecDeque::new(),
        }
    }

    /// The next change; waits for it. May be dropped at any await without losing one.
    ///
    /// # Errors
    /// [`StoreError::Gone`] for a watcher that fell behind the kept history, [`StoreError::Closed`] at shutdown. Both are final.
    pub async fn next(&mut self) -> Result<Arc<WatchEvent>, StoreError> {
        loop {
            if let Some(event) = self.try_next()? {
                return Ok(event);
            }
            if self.revision.changed().await.is_err() {
                return Err(StoreError::Closed);
            }
        }
    }

    /// The next change if there is one now.
    ///
    /// # Errors
    /// [`StoreError::Gone`]; [`StoreError::Damaged`] for a record that cannot be read back.
    pub fn try_next(&mut self) -> Result<Option<Arc<WatchEvent>>, StoreError> {
        if self.taken.is_empty() {
            // Seen before the look at the history: a commit in between is noticed again, never missed.
            self.revision.mark_unchanged();
            let wanted = |key: &Key| {
                key.resource == self.resource && (self.namespace.is_none() || key.namespace == self.namespace)
            };
            let (events, position) = self.memory.read().after(self.position, WATCH_BATCH_EVENTS, wanted)?;
            self.taken.extend(events);
            self.position = position;
        }
        self.taken.pop_front().map(Taken::parse).transpose()
    }

    /// A revision up to which this watcher has been given everything; what a bookmark may carry.
    #[must_use]
    pub fn progress(&self) -> u64 {
        match self.taken.front() {
            Some(event) => event.revision().saturating_sub(1),
            None => self.position,
        }
    }

    /// The changes as a stream that ends after its first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Arc<WatchEvent>, StoreError>> + Send {
        futures_util::stream::unfold(Some(self), |watch| async {
            let mut watch = watch?;
            match watch.next().await {
                Ok(event) => Some((Ok(event), Some(watch))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }
}
