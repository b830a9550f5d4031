//! Hulls of pods kept ready, so that a pod to come need not wait for its namespaces, cable and disk.
//!
//! ```text
//! missing ──background task──> ready ──take──> a pod's, for ever
//!                                └──close, or its agent died──> removed
//! ```
//! A means against waiting, not a foundation: every pod can be made without, by the very same steps, and where the size is 0
//! every pod is. A hull is used once. One that is not taken is of no use to another daemon: its row of the journal says
//! `creating` and nobody's, so that the next one removes it, once it has taken up what is in use.
//!
//! Taking is one `pop` under a lock. Refilling waits a moment for pods that are being made or taken away, and for what their first
//! container needs in between: they need the processors more, and a short-lived pod is gone by then.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sampan_sandbox::Groups;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::journal::SandboxRow;
use crate::limits::{DISK_BYTES_DEFAULT, POOL_CLOSE_PATIENCE, POOL_MAX, POOL_PATIENCE, POOL_QUIET, POOL_RETRY};
use crate::pod::PodConfig;
use crate::runtime::RuntimeError;
use crate::timeline::Timeline;
use crate::workshop::{Hull, Shape, Workshop};

/// The kinds of hull that are kept: everything else about them is as most pods have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// With a user namespace that is not mapped yet.
    OwnUsers,
    /// With the host's users (`hostUsers: true`); kept from the first such pod on.
    HostUsers,
}

impl Kind {
    /// The kind that suits a pod; none where its hull has to know more.
    pub(crate) fn of(config: &PodConfig) -> Option<Self> {
        let usual_network = !config.host_network && config.ports.is_empty() && config.bandwidth.is_unlimited();
        let plain = usual_network && !config.host_pid && !config.host_ipc;
        let usual_disk = matches!(config.disk_bytes, 0 | DISK_BYTES_DEFAULT);
        let kind = if config.shares_users() { Self::HostUsers } else { Self::OwnUsers };
        (plain && usual_disk).then_some(kind)
    }

    fn shape(self, groups: Groups) -> Shape {
        let mut shape = Shape { groups, ..Shape::default() };
        shape.namespaces.own_users = self == Self::OwnUsers;
        shape
    }
}

#[derive(Debug, Default)]
struct Shelf {
    hulls: VecDeque<Hull>,
    wanted: bool,
    /// As the last pod wanted its own: most often the next one will too, and it can be claimed by the others.
    groups: Groups,
}

#[derive(Debug, Default)]
struct Shelves {
    own_users: Shelf,
    host_users: Shelf,
    closed: bool,
}

impl Shelves {
    fn of(&mut self, kind: Kind) -> &mut Shelf {
        match kind {
            Kind::OwnUsers => &mut self.own_users,
            Kind::HostUsers => &mut self.host_users,
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    size: usize,
    shelves: Mutex<Shelves>,
    /// Something was taken, or no more is wanted.
    changed: Notify,
    /// Pods being made or taken away at this moment.
    busy: AtomicUsize,
    /// One of them was begun, or is done.
    stirred: Notify,
}

/// The pool of one service.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    refilling: Mutex<Option<JoinHandle<()>>>,
}

/// Without [`Pool::close`] it is as if the daemon had been killed: what is ready, or half made, is left to the next start.
impl Drop for Pool {
    fn drop(&mut self) {
        let refilling = self.refilling.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(refilling) = refilling.take() {
            refilling.abort();
        }
    }
}

/// A pod is being made or taken away as long as this is held.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Shared>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
        self.0.stirred.notify_one();
    }
}

impl Pool {
    pub(crate) fn new(size: usize) -> Self {
        let shared = Shared { size: size.min(POOL_MAX), ..Shared::default() };
        Self { shared: Arc::new(shared), refilling: Mutex::new(None) }
    }

    /// Begins to keep hulls ready, and to remove those of an earlier daemon; `delay` leaves the processors to those who take up
    /// what that one has made, as long as nobody wants a hull.
    pub(crate) fn open(&self, workshop: &Arc<Workshop>, outdated: Vec<SandboxRow>, delay: Duration) {
        let mut refilling = self.refilling.lock().unwrap_or_else(PoisonError::into_inner);
        if refilling.is_some() || (self.shared.size == 0 && outdated.is_empty()) {
            return;
        }
        self.shared.lock().own_users.wanted = true;
        let (shared, workshop) = (Arc::clone(&self.shared), Arc::clone(workshop));
        *refilling = Some(tokio::spawn(async move {
            tokio::time::timeout(delay, shared.changed.notified()).await.ok();
            for row in outdated {
                workshop.discard(&row.id).await;
            }
            if shared.size > 0 {
                refill(shared, workshop).await;
            }
        }));
    }

    /// How many hulls are ready, of all kinds.
    pub(crate) fn ready(&self) -> usize {
        let shelves = self.shared.lock();
        shelves.own_users.hulls.len().saturating_add(shelves.host_users.hulls.len())
    }

    /// Says that a pod is being made or taken away.
    pub(crate) fn busy(&self) -> Busy {
        self.shared.busy.fetch_add(1, Ordering::AcqRel);
        self.shared.stirred.notify_one();
        Busy(Arc::clone(&self.shared))
    }

    /// Waits until no pod is being made or taken away. Only once it is closed: the one who refills waits for the same.
    pub(crate) async fn until_idle(&self) {
        loop {
            let stirred = self.shared.stirred.notified();
            if self.shared.busy.load(Ordering::Acquire) == 0 {
                return;
            }
            stirred.await;
        }
    }

    /// A hull of this kind, if one is ready, for a pod with such groups.
    pub(crate) async fn take(&self, kind: Kind, groups: Groups, workshop: &Arc<Workshop>) -> Option<Hull> {
        if self.shared.size == 0 {
            return None;
        }
        loop {
            let taken = {
                let mut shelves = self.shared.lock();
                let shelf = shelves.of(kind);
                (shelf.wanted, shelf.groups) = (true, groups);
                shelf.hulls.pop_front()
            };
            self.shared.changed.notify_one();
            match taken {
                Some(hull) if !hull.sandbox.is_alive() => workshop.discard(&hull.row.id).await,
                taken => return taken,
            }
        }
    }

    /// Keeps no more, and takes away what is ready.
    pub(crate) async fn close(&self, workshop: &Arc<Workshop>) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
        let refilling = self.refilling.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut refilling) = refilling
            // It ends with the hull that it is making; that it panicked is for the next start to clean up.
            && tokio::time::timeout(POOL_CLOSE_PATIENCE, &mut refilling).await.is_err()
        {
            // No zygote makes it any more, for example: what there is of it is left to the next start.
            refilling.abort();
        }
        let hulls: Vec<Hull> = {
            let mut shelves = self.shared.lock();
            let own_users = std::mem::take(&mut shelves.own_users.hulls);
            own_users.into_iter().chain(std::mem::take(&mut shelves.host_users.hulls)).collect()
        };
        for Hull { row, sandbox, attachment: _, disk } in hulls {
            drop((sandbox, disk));
            workshop.discard(&row.id).await;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Shelves> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to make next; `Err` when no more is wanted at all.
    fn missing(&self) -> Result<Option<(Kind, Groups)>, Closed> {
        let mut shelves = self.lock();
        if shelves.closed {
            return Err(Closed);
        }
        let short = |kind: &Kind| {
            let shelf = shelves.of(*kind);
            shelf.wanted && shelf.hulls.len() < self.size
        };
        let kind = [Kind::OwnUsers, Kind::HostUsers].into_iter().find(short);
        Ok(kind.map(|kind| (kind, shelves.of(kind).groups)))
    }

    /// Waits until no pod has been begun or made for a while, but not for long.
    async fn wait_for_idleness(&self) {
        let quiet = async {
            loop {
                let stirred = self.stirred.notified();
                if self.busy.load(Ordering::Acquire) > 0 {
                    stirred.await;
                } else if tokio::time::timeout(POOL_QUIET, stirred).await.is_err() {
                    return;
                }
            }
        };
        // That they go on and on is no reason to keep nothing ready.
        tokio::time::timeout(POOL_PATIENCE, quiet).await.ok();
    }
}

/// The pool is closed.
struct Closed;

async fn refill(shared: Arc<Shared>, workshop: Arc<Workshop>) {
    loop {
        let (kind, groups) = match shared.missing() {
            Err(Closed) => return,
            Ok(None) => {
                shared.changed.notified().await;
                continue;
            }
            Ok(Some(wanted)) => wanted,
        };
        shared.wait_for_idleness().await;
        match make(&workshop, kind, groups).await {
            Ok(hull) => shared.lock().of(kind).hulls.push_back(hull),
            Err(error) => {
                tracing::warn!(error = %sampan_kit::error_chain::ErrorChain(&error), "no sandbox can be kept ready");
                // Whatever changes meanwhile, trying again at once would only fail again.
                tokio::time::timeout(POOL_RETRY, shared.changed.notified()).await.ok();
            }
        }
    }
}

async fn make(workshop: &Workshop, kind: Kind, groups: Groups) -> Result<Hull, RuntimeError> {
    let id = sampan_kit::id::short().map_err(RuntimeError::host("draw a random id"))?;
    let row = workshop.journal.begin(&id, "", "nobody's yet", kind == Kind::OwnUsers)?;
    let made = workshop.make_hull(&row, &kind.shape(groups), &Timeline::default()).await;
    if made.is_err() {
        workshop.discard(&row.id).await;
    }
    made
}

#[cfg(test)]
mod tests {
    use super::{Kind, PodConfig};

    #[test]
    fn only_usual_pods_are_served_from_the_pool() {
        let plain = PodConfig::default();
        assert_eq!(Kind::of(&plain), Some(Kind::OwnUsers));
        assert_eq!(Kind::of(&PodConfig { host_users: true, ..plain.clone() }), Some(Kind::HostUsers));
        assert_eq!(Kind::of(&PodConfig { host_network: true, ..plain.clone() }), None);
        assert_eq!(Kind::of(&PodConfig { disk_bytes: 1 << 30, ..plain }), None);
    }
}
