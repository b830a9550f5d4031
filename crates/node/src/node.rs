//! The node: takes up what survived, then follows the pods bound to it, one worker each.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod as PodObject;
use sampan_image::ImageStore;
use sampan_kit::error_chain::ErrorChain;
use sampan_runtime::journal::SandboxRow;
use sampan_runtime::{Runtime, RuntimeError};
use sampan_store::{Change, Key, Object, Store, StoreError};
use serde_json::Value;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

use crate::limits::MEND_INTERVAL;
use crate::machine::Machine;
use crate::worker::{Found, Handle, Message, Services, Worker, tell};

/// Why the node cannot run.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The runtime failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The store failed.
    #[error("the store cannot be used")]
    Store(#[from] StoreError),
    /// The machine cannot be looked at.
    #[error("this machine cannot be looked at")]
    Machine(#[source] std::io::Error),
}

/// How the node is named and where its data is.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The node's name; the host name when not given.
    pub name: Option<String>,
    /// The service's data folder.
    pub data_dir: PathBuf,
}

/// The node.
#[derive(Debug, Clone)]
pub struct Node {
    pub(crate) services: Arc<Services>,
    /// By the UID of their pods.
    workers: Arc<watch::Sender<HashMap<String, Handle>>>,
}

impl Node {
    /// Looks at the machine and registers its Node object.
    pub async fn open(
        config: &NodeConfig,
        store: Store,
        runtime: Arc<Runtime>,
        images: ImageStore,
    ) -> Result<Self, NodeError> {
        let machine = Machine::look(config.name.as_deref(), &config.data_dir).map_err(NodeError::Machine)?;
        let key = Key::cluster("nodes", &machine.name);
        let existing = store.get(&key).await?;
        let object = machine.object(existing.as_ref().map(|object| &object.value), Timestamp::now());
        match existing {
            Some(existing) => store.update(&key, Some(existing.revision), object).await?,
            None => store.create(key, object).await?,
        };
        let host_ip = machine.address.to_string();
        let allocatable = machine.allocatable();
        let seccomp_dir = config.data_dir.join("seccomp");
        let node_name = machine.name;
        let log_changes = Arc::default();
        let services = Services { store, runtime, images, node_name, host_ip, allocatable, seccomp_dir, log_changes };
        let services = Arc::new(services);
        Ok(Self { services, workers: Arc::default() })
    }

    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.services.node_name
    }

    /// Takes up what survived the last run, then follows changes until the store closes. What was removed from the host
    /// because nobody owned it is logged.
    pub async fn run(self) -> Result<(), NodeError> {
        let mut rows = self.recover().await?;
        let (pods, mut revision) = self.services.store.list("pods", None).await?;
        let uids: HashSet<String> = pods.iter().filter_map(|object| uid(&object.value)).collect();
        for leftover in self.services.runtime.forget_pods_except(&uids)? {
            tracing::info!(leftover, "removed what no pod owns");
        }
        for object in pods {
            self.deliver(object, &mut rows).await;
        }
        // They end with this, when it does.
        let mut followers = tokio::task::JoinSet::new();
        for kind in ["configmap", "secret"] {
            followers.spawn(self.clone().follow(kind));
        }
        followers.spawn(self.clone().follow_images());
        for (_, row) in rows.drain() {
            tracing::info!(
                sandbox = row.id,
                pod = row.pod_name,
                "removing the sandbox of a pod that is no longer there"
            );
            if let Err(error) = self.services.runtime.remove_row(&row).await {
                // One that resists must not keep all other pods from being served.
                tracing::error!(sandbox = row.id, error = %ErrorChain(&error),
                    "a sandbox is not wholly removed; the next start of the service tries again");
            }
        }
        loop {
            let watch = self.services.store.watch("pods", None, revision);
            match watch {
                Ok(mut watch) => loop {
                    match watch.next().await {
                        Ok(event) if event.kind == Change::Deleted => self.vanished(&event.object).await,
                        Ok(event) => self.deliver(Arc::clone(&event.object), &mut rows).await,
                        Err(StoreError::Closed) => return Ok(()),
                        Err(error) => {
                            tracing::warn!(error = %ErrorChain(&error), "the watch of pods broke; reading them again");
                            break;
                        }
                    }
                },
                Err(StoreError::Closed) => return Ok(()),
                Err(error) => {
                    tracing::warn!(error = %ErrorChain(&error), "pods cannot be watched from here; reading them again")
                }
            }
            revision = self.resync(&mut rows).await?;
        }
    }

    /// Tells workers whose volumes show a ConfigMap or Secret when it changes.
    async fn follow(self, kind: &'static str) {
        let resource = format!("{kind}s");
        let mut revision = self.services.store.revision();
        loop {
            match self.services.store.watch(&resource, None, revision) {
                Ok(mut watch) => loop {
                    match watch.next().await {
                        Ok(event) => self.tell_readers(kind, Some(&event.object.key)).await,
                        Err(StoreError::Closed) => return,
                        Err(error) => {
                            tracing::warn!(kind, error = %ErrorChain(&error), "a watch broke; showing everything anew");
                            break;
                        }
                    }
                },
                Err(StoreError::Closed) => return,
                Err(error) => tracing::warn!(kind, error = %ErrorChain(&error), "changes cannot be watched from here"),
            }
            revision = self.services.store.revision();
            self.tell_readers(kind, None).await;
        }
    }

    /// Passes on what happens to images; each worker knows which ones are its own.
    async fn follow_images(self) {
        let mut events = self.services.images.events();
        loop {
            match events.recv().await {
                Ok(event) => {
                    for (_, handle) in self.all_workers() {
                        tell(&handle.queue, Message::Image(event.clone())).await;
                    }
                }
                Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "events of images were lost"),
                Err(RecvError::Closed) => return,
            }
        }
    }

    async fn tell_readers(&self, kind: &'static str, changed: Option<&Key>) {
        for (_, handle) in self.all_workers() {
            let (namespace, shown) = &*handle.shows;
            let is_shown = match changed {
                Some(key) => key.namespace.as_ref() == Some(namespace) && shown.contains(&(kind, key.name.clone())),
                None => shown.iter().any(|(known, _)| *known == kind),
            };
            if is_shown {
                tell(&handle.queue, Message::Projected).await;
            }
        }
    }

    /// Reads all pods again after a broken watch.
    async fn resync(&self, rows: &mut HashMap<String, SandboxRow>) -> Result<u64, NodeError> {
        let (pods, revision) = self.services.store.list("pods", None).await?;
        let present: HashSet<String> = pods.iter().filter_map(|object| uid(&object.value)).collect();
        for object in pods {
            self.deliver(object, rows).await;
        }
        let gone: Vec<Handle> = {
            let workers = self.workers.borrow();
            workers.iter().filter(|(uid, _)| !present.contains(*uid)).map(|(_, handle)| handle.clone()).collect()
        };
        for handle in gone {
            tell(&handle.queue, Message::Gone).await;
        }
        Ok(revision)
    }

    async fn recover(&self) -> Result<HashMap<String, SandboxRow>, NodeError> {
        let recovered = self.services.runtime.recover().await?;
        for leftover in &recovered.removed {
            tracing::info!(leftover, "removed what a killed service left half done");
        }
        let ours = recovered.ready.iter().filter(|row| !row.is_cri());
        Ok(ours.map(|row| (row.pod_uid.clone(), row.clone())).collect())
    }

    /// Hands a pod to its worker, which is made when there is none.
    async fn deliver(&self, object: Arc<Object>, rows: &mut HashMap<String, SandboxRow>) {
        let bound_to = object.value.pointer("/spec/nodeName").and_then(Value::as_str);
        let Some(uid) = uid(&object.value) else { return };
        if bound_to != Some(self.name()) {
            return;
        }
        if let Some(handle) = self.worker(&uid) {
            if handle.queue.send(Message::Changed(Arc::clone(&object))).await.is_ok() {
                return;
            }
            self.workers.send_modify(|workers| drop(workers.remove(&uid)));
            rows.extend(self.live_row(&uid).map(|row| (uid.clone(), row)));
        }
        match serde_json::from_value::<PodObject>(object.value.clone()) {
            Ok(pod) => {
                let found = rows.remove(&uid).map_or(Found::Nothing, Found::Row);
                let handle = Worker::spawn(Arc::clone(&self.services), object, pod, found);
                self.workers.send_modify(|workers| drop(workers.insert(uid, handle)));
            }
            Err(error) => tracing::error!(pod = %object.key, %error, "a stored pod cannot be read"),
        }
    }

    /// The sandbox of a pod whose worker broke, so that the next worker takes it up instead of making another.
    fn live_row(&self, uid: &str) -> Option<SandboxRow> {
        self.services.runtime.live_row(uid).unwrap_or_else(|error| {
            tracing::error!(error = %ErrorChain(&error), "the journal cannot be asked for a pod's sandbox");
            None
        })
    }

    async fn vanished(&self, object: &Object) {
        let Some(uid) = uid(&object.value) else { return };
        let mut handle = None;
        self.workers.send_modify(|workers| handle = workers.remove(&uid));
        if let Some(handle) = handle
            && handle.queue.send(Message::Gone).await.is_err()
        {
            tracing::trace!(pod = %object.key, "its worker had already ended");
        }
    }

    /// Keeps the host's side in order while the service runs: what other programs took away is put back.
    pub async fn mend(self) {
        let mut ticks = tokio::time::interval(MEND_INTERVAL);
        loop {
            ticks.tick().await;
            if let Err(error) = self.services.runtime.mend().await {
                tracing::warn!(error = %ErrorChain(&error), "the network cannot be put back in order; trying again");
            }
        }
    }

    /// The worker of a pod.
    fn worker(&self, uid: &str) -> Option<Handle> {
        self.workers.borrow().get(uid).cloned()
    }

    /// The worker of a pod of this node, which has it soon: after the service's start, or after the pod was made.
    pub(crate) async fn worker_to_come(&self, uid: &str) -> Option<Handle> {
        let mut workers = self.workers.subscribe();
        let workers = workers.wait_for(|workers| workers.contains_key(uid)).await.ok()?;
        workers.get(uid).cloned()
    }

    /// Every pod that has a worker.
    pub(crate) fn all_workers(&self) -> Vec<(String, Handle)> {
        self.workers.borrow().iter().map(|(uid, handle)| (uid.clone(), handle.clone())).collect()
    }
}

fn uid(object: &Value) -> Option<String> {
    object.pointer("/metadata/uid").and_then(Value::as_str).map(str::to_owned)
}
