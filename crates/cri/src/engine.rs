//! What the interface's calls work on: the pods and containers of this node, in memory and in the table.
//!
//! # Concurrency
//! - Reading (status, lists, statistics) takes short locks of its own and waits for nobody.
//! - A pod's or container's making, starting, stopping and removal run in tasks of their own ([`Engine::once`]): a caller
//!   that gives up changes nothing, and one that asks again joins the task under way instead of being told that a name
//!   is taken. A name is taken only by what exists.
//! - Stopping a container takes no lock: a second call with a shorter time is obeyed at once.
//! - Per pod one task follows what its agent tells ([`follow`]); it alone notes ends by themselves.
//!
//! # Crash consistency
//! Journal (runtime), then host, then table; back in the other direction. See [`crate::table`].

mod begin;
mod end;
mod exec;
mod follow;
mod metrics;
mod pods;
mod recovery;
mod stats;
mod status;
mod update;

pub(crate) use metrics::descriptors;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use sampan_image::{Image, ImageStore};
use sampan_runtime::Runtime;
use sampan_runtime::pod::Pod;
use tokio::sync::{broadcast, watch};
use tonic::Status;

use crate::error::CallError;
use crate::limits::EVENTS_BEHIND_MAX;
use crate::proto::v1::{ContainerEventResponse, ContainerEventType, PodSandboxConfig};
use crate::records::{ContainerRecord, Phase, PodRecord};
use crate::streams::Streams;
use crate::table::Table;

/// One pod sandbox, until it is removed.
#[derive(Debug)]
pub(crate) struct PodEntry {
    pub(crate) id: String,
    created_at: i64,
    record: Mutex<PodRecord>,
    /// Its containers, oldest first.
    containers: Mutex<Vec<Weak<ContainerEntry>>>,
    /// As long as it is ready.
    live: Mutex<Option<Arc<Pod>>>,
    /// What its groups said lately.
    figures: stats::Figures,
}

/// One container, until it is removed.
#[derive(Debug)]
pub(crate) struct ContainerEntry {
    pub(crate) id: String,
    created_at: i64,
    pub(crate) pod: Arc<PodEntry>,
    record: watch::Sender<ContainerRecord>,
    /// Writers of the record, one at a time: the table is written before anybody sees the change.
    writing: Mutex<()>,
    /// Its process on the host, since this daemon started it; 0 otherwise.
    pid: AtomicU32,
    /// Its image, and those of its volumes: in use as long as it exists.
    images: Vec<Arc<Image>>,
}

/// What an engine is made of.
pub(crate) struct Parts {
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) images: ImageStore,
    pub(crate) table: Table,
    pub(crate) streams: Arc<Streams>,
    pub(crate) data_dir: PathBuf,
    pub(crate) pinned: HashSet<String>,
}

/// All pods.
#[derive(Debug, Default)]
struct Pods {
    by_id: HashMap<String, Arc<PodEntry>>,
    /// By what their callers call them, so that a name is looked up at the same cost however many there are.
    by_name: HashMap<String, Arc<PodEntry>>,
}

type Call = Shared<BoxFuture<'static, Result<String, Status>>>;

/// See the head of this file.
pub(crate) struct Engine {
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) images: ImageStore,
    table: Table,
    pub(crate) streams: Arc<Streams>,
    /// The service's data folder.
    pub(crate) data_dir: PathBuf,
    /// References whose images the kubelet is not to remove.
    pub(crate) pinned: HashSet<String>,
    events: broadcast::Sender<ContainerEventResponse>,
    pods: Mutex<Pods>,
    containers: Mutex<HashMap<String, Arc<ContainerEntry>>>,
    /// What is being done, by what it is done to.
    calls: Mutex<HashMap<String, Call>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    nanoseconds(jiff::Timestamp::now())
}

pub(crate) fn nanoseconds(time: jiff::Timestamp) -> i64 {
    i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX)
}

/// 64 hexadecimal characters, the form that log collectors look for in the names of files.
fn new_id() -> Result<String, CallError> {
    let part = || sampan_kit::id::short().map_err(CallError::host("drawing a random id"));
    Ok([part()?, part()?, part()?, part()?].concat())
}

/// What is found by a whole id, or by the beginning of only one.
fn find<T>(all: &HashMap<String, Arc<T>>, id: &str) -> Option<Arc<T>> {
    if let Some(found) = all.get(id) {
        return Some(Arc::clone(found));
    }
    let mut fitting = all.iter().filter(|(known, _)| !id.is_empty() && known.starts_with(id));
    match (fitting.next(), fitting.next()) {
        (Some((_, only)), None) => Some(Arc::clone(only)),
        _ => None,
    }
}

impl PodEntry {
    fn new(record: PodRecord, live: Option<Arc<Pod>>) -> Arc<Self> {
        Arc::new(Self {
            id: record.id.clone(),
            created_at: record.created_at,
            record: Mutex::new(record),
            containers: Mutex::default(),
            live: Mutex::new(live),
            figures: stats::Figures::default(),
        })
    }

    /// What its caller calls it; it never changes.
    fn name(&self) -> String {
        self.read(|record| pods::name_of(record.config.as_ref().and_then(|config| config.metadata.as_ref())))
    }

    pub(crate) fn record(&self) -> PodRecord {
        locked(&self.record).clone()
    }

    pub(crate) fn config(&self) -> PodSandboxConfig {
        locked(&self.record).config.clone().unwrap_or_default()
    }

    /// Looks at the record without a copy of all of it.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&PodRecord) -> T) -> T {
        look(&locked(&self.record))
    }

    /// The pod as the runtime has it, while it is ready.
    pub(crate) fn live(&self) -> Option<Arc<Pod>> {
        locked(&self.live).clone()
    }

    fn ready(&self) -> Result<Arc<Pod>, CallError> {
        self.live().ok_or_else(|| CallError::NotNow(format!("pod sandbox {} is not ready", self.id)))
    }
}

impl ContainerEntry {
    fn new(record: ContainerRecord, pod: Arc<PodEntry>, images: Vec<Arc<Image>>) -> Arc<Self> {
        Arc::new(Self {
            id: record.id.clone(),
            created_at: record.created_at,
            pod,
            record: watch::Sender::new(record),
            writing: Mutex::new(()),
            pid: AtomicU32::new(0),
            images,
        })
    }

    pub(crate) fn record(&self) -> ContainerRecord {
        self.record.borrow().clone()
    }

    /// Looks at the record without a copy of all of it.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&ContainerRecord) -> T) -> T {
        look(&self.record.borrow())
    }

    pub(crate) fn phase(&self) -> Phase {
        self.record.borrow().phase()
    }

    /// The name by which the sandbox knows it.
    pub(crate) fn run_name(&self) -> &str {
        ContainerRecord::run_name(&self.id)
    }

    /// The pod in which it runs.
    fn running(&self) -> Result<Arc<Pod>, CallError> {
        match self.phase() {
            Phase::Running => self.pod.ready(),
            Phase::Created => Err(CallError::NotNow(format!("container {} is not started yet", self.id))),
            Phase::Exited => Err(CallError::NotNow(format!("container {} has exited", self.id))),
        }
    }

    /// Waits until it does not run.
    async fn ended(&self) {
        // The sender lives as long as this.
        drop(self.record.subscribe().wait_for(|record| record.phase() != Phase::Running).await);
    }
}

impl Engine {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let Parts { runtime, images, table, streams, data_dir, pinned } = parts;
        Arc::new(Self {
            runtime,
            images,
            table,
            streams,
            data_dir,
            pinned,
            events: broadcast::Sender::new(EVENTS_BEHIND_MAX),
            pods: Mutex::default(),
            containers: Mutex::default(),
            calls: Mutex::default(),
        })
    }

    pub(crate) fn pod(&self, id: &str) -> Result<Arc<PodEntry>, CallError> {
        find(&locked(&self.pods).by_id, id).ok_or_else(|| CallError::pod(id))
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<ContainerEntry>, CallError> {
        find(&locked(&self.containers), id).ok_or_else(|| CallError::container(id))
    }

    /// Makes a pod known.
    fn add_pod(&self, pod: &Arc<PodEntry>) {
        let name = pod.name();
        let mut pods = locked(&self.pods);
        pods.by_name.insert(name, Arc::clone(pod));
        pods.by_id.insert(pod.id.clone(), Arc::clone(pod));
    }

    /// Makes it unknown.
    fn drop_pod(&self, pod: &PodEntry) {
        let name = pod.name();
        let mut pods = locked(&self.pods);
        pods.by_id.remove(&pod.id);
        if pods.by_name.get(&name).is_some_and(|named| named.id == pod.id) {
            pods.by_name.remove(&name);
        }
    }

    /// Makes a container known, which is younger than all of its pod's.
    fn add_container(&self, container: &Arc<ContainerEntry>) {
        locked(&container.pod.containers).push(Arc::downgrade(container));
        locked(&self.containers).insert(container.id.clone(), Arc::clone(container));
    }

    /// Makes it unknown.
    fn drop_container(&self, container: &ContainerEntry) {
        locked(&container.pod.containers).retain(|known| known.upgrade().is_some_and(|known| known.id != container.id));
        locked(&self.containers).remove(&container.id);
    }

    /// All pods, oldest first.
    pub(crate) fn all_pods(&self) -> Vec<Arc<PodEntry>> {
        let mut all: Vec<_> = locked(&self.pods).by_id.values().cloned().collect();
        all.sort_by_key(|pod| pod.created_at);
        all
    }

    /// All containers, oldest first.
    pub(crate) fn all_containers(&self) -> Vec<Arc<ContainerEntry>> {
        let mut all: Vec<_> = locked(&self.containers).values().cloned().collect();
        all.sort_by_key(|container| container.created_at);
        all
    }

    /// The containers of a pod, oldest first.
    pub(crate) fn containers_of(&self, pod: &PodEntry) -> Vec<Arc<ContainerEntry>> {
        locked(&pod.containers).iter().filter_map(Weak::upgrade).collect()
    }

    /// Does something in a task of its own, unless it is being done already: then waits for that. `key` names what is done
    /// to what.
    async fn once(
        self: &Arc<Self>,
        key: String,
        work: impl Future<Output = Result<String, CallError>> + Send + 'static,
    ) -> Result<String, Status> {
        /// Whatever becomes of the work, its name is free afterwards.
        struct Named(Arc<Engine>, String);
        impl Drop for Named {
            fn drop(&mut self) {
                locked(&self.0.calls).remove(&self.1);
            }
        }
        let call = {
            let mut calls = locked(&self.calls);
            match calls.get(&key) {
                Some(call) => call.clone(),
                None => {
                    let named = Named(Arc::clone(self), key.clone());
                    let task = tokio::spawn(async move {
                        let _named = named;
                        work.await.map_err(Status::from)
                    });
                    let joined = async move { task.await.unwrap_or_else(|_panic| Err(CallError::Broken.into())) };
                    let call = joined.boxed().shared();
                    calls.insert(key, call.clone());
                    call
                }
            }
        };
        call.await
    }

    /// Changes a container's record: the table first. What cannot be written is not changed.
    fn change(&self, container: &ContainerEntry, change: impl FnOnce(&mut ContainerRecord)) -> Result<(), CallError> {
        let _one = locked(&container.writing);
        let mut record = container.record();
        change(&mut record);
        self.table.put_container(&record)?;
        container.record.send_replace(record);
        Ok(())
    }

    /// What happens from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<ContainerEventResponse> {
        self.events.subscribe()
    }

    /// Tells those who follow, if there are any.
    fn tell(&self, id: &str, kind: ContainerEventType, pod: &PodEntry) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let event = ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: now(),
            pod_sandbox_status: Some(self.pod_status(pod)),
            containers_statuses: self.containers_of(pod).iter().map(|one| self.container_status(one)).collect(),
        };
        // The last follower may just have gone.
        drop(self.events.send(event));
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Engine").finish_non_exhaustive()
    }
}
