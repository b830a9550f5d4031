//! The worker's projected volumes: written before a container starts, and again whenever what they show has changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use k8s_openapi::api::core::v1::{Pod as PodObject, Volume};
use sampan_runtime::pod::Pod;
use sampan_store::Key;
use serde_json::Value;
use tokio::sync::Mutex;

use super::{Held, Message, Services, Worker, tell};
use crate::environment::{Live, Values};
use crate::events::Kind;
use crate::projection::{self, Files, Owners, ProjectionError};
use crate::spec;

/// Why a projected volume cannot be shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeFailure {
    #[error(transparent)]
    Projection(#[from] ProjectionError),
    #[error("volume {volume:?} cannot be written")]
    Write {
        volume: String,
        #[source]
        source: std::io::Error,
    },
}

/// What it takes to write a pod's volumes, away from its worker.
pub(crate) struct Writing {
    pub(crate) services: Arc<Services>,
    pub(crate) object: Arc<PodObject>,
    pub(crate) pod: Arc<Pod>,
    /// Only one at a time writes.
    pub(crate) turn: Arc<Mutex<()>>,
}

/// Where a pod's projected volumes are written.
pub(crate) fn folder(services: &Services, uid: &str) -> PathBuf {
    services.runtime.log_folder(uid).join("volumes")
}

/// What the pod's containers may be told of themselves.
pub(crate) fn live(services: &Services, pod: &Pod) -> Live {
    let mut pod_ips: Vec<String> = pod.addresses().iter().map(ToString::to_string).collect();
    if pod_ips.is_empty() {
        // In the host's network.
        pod_ips.push(services.host_ip.clone());
    }
    Live {
        pod_ips,
        host_ip: services.host_ip.clone(),
        node_name: services.node_name.clone(),
        allocatable: services.allocatable,
    }
}

/// The values of a ConfigMap or Secret of the pod's own namespace.
pub(crate) async fn values(services: &Services, namespace: &str, kind: &str, name: &str) -> Option<Values> {
    let key = Key::namespaced(format!("{kind}s"), namespace, name);
    let object = services.store.get(&key).await.ok().flatten()?;
    let decode = |text: &str| base64::engine::general_purpose::STANDARD.decode(text).ok();
    let entries = |field: &str, is_text: bool| {
        let entries = object.value.get(field).and_then(Value::as_object).into_iter().flatten();
        let read = move |(key, value): (&String, &Value)| {
            let text = value.as_str()?;
            Some((key.clone(), if is_text { text.as_bytes().to_vec() } else { decode(text)? }))
        };
        entries.filter_map(read).collect::<Values>()
    };
    let mut values = entries("data", kind == "configmap");
    values.extend(entries("binaryData", false));
    Some(values)
}

impl Writing {
    /// Writes all projected volumes of the pod; those that show the same already are left alone.
    pub(crate) async fn run(self) -> Result<(), VolumeFailure> {
        let spec = self.object.spec.clone().unwrap_or_default();
        let volumes: Vec<Volume> = spec.volumes.into_iter().flatten().filter(spec::is_projected).collect();
        if volumes.is_empty() {
            return Ok(());
        }
        let namespace = self.object.metadata.namespace.clone().unwrap_or_default();
        // Read only when it is our turn: whoever writes last has read last.
        let _turn = self.turn.lock().await;
        let mut referenced = BTreeMap::new();
        for (kind, name) in self.object.spec.iter().flat_map(projection::references) {
            let found = values(&self.services, &namespace, kind, &name).await;
            referenced.insert((kind, name), found);
        }
        let live = live(&self.services, &self.pod);
        let lookup = |kind: &'static str, name: &str| referenced.get(&(kind, name.to_owned())).cloned().flatten();
        let owners = owners(&self.object, &self.pod);
        let uid = self.object.metadata.uid.clone().unwrap_or_default();
        let folder = folder(&self.services, &uid);
        let mut outcome = Ok(());
        for volume in &volumes {
            let written = match projection::project(&self.object, volume, &live, &lookup) {
                Ok(files) => write(&folder, volume.name.clone(), files, owners).await,
                Err(error) => Err(error.into()),
            };
            // One that cannot be shown does not hold the others back.
            outcome = outcome.and(written);
        }
        outcome
    }
}

async fn write(parent: &Path, volume: String, files: Files, owners: Owners) -> Result<(), VolumeFailure> {
    let (parent, place) = (parent.to_owned(), parent.join(&volume));
    let written = tokio::task::spawn_blocking(move || {
        private(&parent)?;
        projection::write(&place, &files, owners)
    });
    let written = written.await.unwrap_or_else(|panic| Err(std::io::Error::other(panic)));
    written.map(drop).map_err(|source| VolumeFailure::Write { volume, source })
}

/// A folder that only the service itself may look into.
fn private(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(folder)?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
}

fn owners(object: &PodObject, pod: &Pod) -> Owners {
    let security = object.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let group = security.and_then(|security| u32::try_from(security.fs_group?).ok());
    let root = pod.sandbox().root_id();
    Owners { user: root, group: root.saturating_add(group.unwrap_or(0)), shared: group.is_some() }
}

impl Worker {
    pub(super) fn writing(&self, pod: &Arc<Pod>) -> Writing {
        Writing {
            services: Arc::clone(&self.services),
            object: Arc::clone(&self.object),
            pod: Arc::clone(pod),
            turn: Arc::clone(&self.volumes_turn),
        }
    }

    /// What the volumes show has changed.
    pub(super) fn refresh_volumes(&mut self) {
        let projects = self.object.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(spec::is_projected);
        let Held::Ready(pod) = &self.held else { return };
        if !projects || self.lifecycle.stop.is_some() || self.lifecycle.phase().is_final() {
            return;
        }
        let (writing, sender) = (self.writing(pod), self.sender.clone());
        tokio::spawn(async move {
            if let Err(failure) = writing.run().await {
                let event = super::pod_event(Kind::Warning, "FailedMount", failed_mount(&failure));
                tell(&sender, Message::Told(event)).await;
            }
        });
    }
}

/// As the kubelet says it.
pub(super) fn failed_mount(failure: &VolumeFailure) -> String {
    format!("MountVolume.SetUp failed: {}", sampan_kit::error_chain::ErrorChain(failure))
}
