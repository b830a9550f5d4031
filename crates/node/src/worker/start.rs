//! The worker's long errands: sandbox, images, containers, removal. Each is a task that reports back.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use futures_util::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod as PodObject};
use sampan_image::{Image, ImageError, ProgressSender, PullPolicy};
use sampan_kit::error_chain::ErrorChain;
use sampan_runtime::RuntimeError;
use sampan_runtime::pod::Pod;
use sampan_runtime::timeline::Timeline;
use sampan_store::Key;
use serde_json::Value;
use tokio::sync::watch;

use super::{Held, Message, Services, SharedImage, Worker, tell};
use crate::environment::{self, EnvironmentError, Live};
use crate::events::Kind;
use crate::lifecycle::Exit;
use crate::spec::{self, SpecError};

/// What ends a container whose image names no other signal.
const SIGTERM: i32 = 15;

/// A container that runs.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) started_at: Timestamp,
    pub(crate) image: Arc<Image>,
}

/// Why a container does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartFailure {
    #[error(transparent)]
    Image(Arc<ImageError>),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("the pod was stopped before its image had arrived")]
    Stopped,
}

impl Worker {
    /// Begins to fetch every image of a pod that has not run yet, beside the making of its sandbox.
    pub(super) fn prefetch_images(&mut self) {
        if self.lifecycle.stop.is_some() || self.lifecycle.phase().is_final() {
            return;
        }
        let object = Arc::clone(&self.object);
        for (_, container) in object.spec.iter().flat_map(spec::containers) {
            drop(self.image_of(container));
        }
    }

    /// The container's image on its way; a failed one is asked for again by the next start.
    fn image_of(&mut self, container: &Container) -> SharedImage {
        if let Some(image) = self.images.get(&container.name) {
            return image.clone();
        }
        let reference = container.image.clone().unwrap_or_default();
        let policy = spec::pull_policy(container);
        let (services, timeline, wanted) = (Arc::clone(&self.services), self.timeline.clone(), reference.clone());
        let task = tokio::spawn(async move {
            let ensure = services.images.ensure(&wanted, policy, ProgressSender::none());
            timeline.measure("image", ensure).await.map_err(Arc::new)
        });
        let shared =
            async move { task.await.unwrap_or_else(|_panic| Err(Arc::new(ImageError::Stopped { reference }))) };
        let shared = shared.boxed().shared();
        self.images.insert(container.name.clone(), shared.clone());
        shared
    }

    /// After a restart of the service: the images of this pod's containers are in use again.
    pub(super) async fn hold_images(&mut self) {
        let object = Arc::clone(&self.object);
        for (_, container) in object.spec.iter().flat_map(spec::containers) {
            let reference = container.image.as_deref().unwrap_or_default();
            let held = self.services.images.ensure(reference, PullPolicy::Never, ProgressSender::none()).await;
            match held {
                Ok(image) => {
                    self.image_ids.insert(container.name.clone(), image.id.to_string());
                    self.held_images.insert(container.name.clone(), image);
                }
                Err(error) => tracing::debug!(pod = %self.key, reference, %error, "a container's image is not here"),
            }
        }
    }

    pub(super) fn make_sandbox(&mut self) {
        self.held = Held::Making;
        let config = spec::pod_config(&self.object);
        let (services, sender, timeline) = (Arc::clone(&self.services), self.sender.clone(), self.timeline.clone());
        tokio::spawn(async move {
            let made = match config {
                Ok(config) => services.runtime.create(config, &timeline).await.map(Box::new),
                Err(error) => Err(RuntimeError::Refused(error.to_string())),
            };
            tell(&sender, Message::Made(made)).await;
        });
    }

    pub(super) fn remove_sandbox(&mut self, again: bool) {
        let Held::Ready(pod) = std::mem::replace(&mut self.held, Held::Removing { again }) else { return };
        let (services, sender) = (Arc::clone(&self.services), self.sender.clone());
        self.report.forget_acknowledgements();
        tokio::spawn(async move {
            let removed = services.runtime.remove(&pod).await;
            tell(&sender, Message::Removed(removed)).await;
        });
    }

    pub(super) fn start(&mut self, index: usize) {
        let Held::Ready(pod) = &self.held else { return };
        let pod = Arc::clone(pod);
        self.lifecycle.starting(index);
        let Some((name, attempt)) = self.lifecycle.slots.get(index).map(|slot| (slot.name.clone(), slot.restarts))
        else {
            return;
        };
        let object = Arc::clone(&self.object);
        let containers = object.spec.iter().flat_map(spec::containers);
        let Some(container) = containers.map(|(_, container)| container).find(|container| container.name == name)
        else {
            return;
        };
        let errand = Errand {
            image: self.image_of(container),
            container: container.clone(),
            attempt,
            pod,
            services: Arc::clone(&self.services),
            timeline: if attempt == 0 { self.timeline.clone() } else { Timeline::default() },
            object: Arc::clone(&object),
            stopping: self.stopping.subscribe(),
        };
        self.images.remove(&name);
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let started = errand.run().await;
            tell(&sender, Message::Started(index, started)).await;
        });
    }

    pub(super) fn started(&mut self, index: usize, started: Result<Run, StartFailure>) {
        let now = Timestamp::now();
        let name = self.lifecycle.slots.get(index).map(|slot| slot.name.clone()).unwrap_or_default();
        match started {
            Ok(run) => {
                self.image_ids.insert(name.clone(), run.image.id.to_string());
                self.held_images.insert(name.clone(), run.image);
                self.lifecycle.started(index, run.started_at);
                self.event(Kind::Normal, "Started", format!("started container {name}"));
            }
            Err(failure) => self.start_failed(index, &name, &failure, now),
        }
    }

    fn start_failed(&mut self, index: usize, name: &str, failure: &StartFailure, now: Timestamp) {
        let message = ErrorChain(failure).to_string();
        if matches!(failure, StartFailure::Stopped) {
            self.lifecycle.refused(index, "Stopped", message, now);
            return;
        }
        let reason = match failure {
            StartFailure::Runtime(RuntimeError::Start(error)) => {
                self.event(Kind::Warning, "Failed", format!("container {name}: {message}"));
                let code = error.exit_code();
                let (reason, finished_at) = ("StartError".to_owned(), now);
                let exit = Exit { code, signal: None, reason, message, started_at: None, finished_at };
                self.lifecycle.exited(index, exit);
                return;
            }
            StartFailure::Image(error) if matches!(**error, ImageError::NotPresent { .. }) => "ErrImageNeverPull",
            StartFailure::Image(_) => "ErrImagePull",
            StartFailure::Spec(_)
            | StartFailure::Environment(_)
            | StartFailure::Runtime(RuntimeError::Container(_)) => "CreateContainerConfigError",
            StartFailure::Runtime(_) | StartFailure::Stopped => "CreateContainerError",
        };
        self.event(Kind::Warning, "Failed", format!("container {name}: {message}"));
        self.lifecycle.refused(index, reason, message.clone(), now);
        if self.fails_fast() {
            self.lifecycle.fail(reason, message, now);
        }
    }

    /// Sends a signal, or the container's own stop signal, without waiting for its effect.
    pub(super) fn signal(&mut self, index: usize, signal: Option<i32>) {
        let Held::Ready(pod) = &self.held else { return };
        let Some(name) = self.lifecycle.slots.get(index).map(|slot| slot.name.clone()) else { return };
        let pod = Arc::clone(pod);
        if signal.is_none() {
            self.event(Kind::Normal, "Killing", format!("stopping container {name}"));
        }
        let signal = signal.unwrap_or_else(|| {
            let image = self.held_images.get(&name);
            image.map_or(SIGTERM, |image| signal_number(&image.config.config.stop_signal).unwrap_or(SIGTERM))
        });
        tokio::spawn(async move {
            if let Err(error) = pod.sandbox().signal(&name, signal).await {
                tracing::debug!(sandbox = pod.id(), container = name, signal, %error, "a signal found nobody");
            }
        });
    }
}

/// Everything one start needs, away from the worker.
struct Errand {
    services: Arc<Services>,
    object: Arc<PodObject>,
    pod: Arc<Pod>,
    container: Container,
    attempt: u32,
    image: SharedImage,
    timeline: Timeline,
    stopping: watch::Receiver<bool>,
}

impl Errand {
    async fn run(mut self) -> Result<Run, StartFailure> {
        let image: Arc<Image> = tokio::select! {
            image = self.image => image.map_err(StartFailure::Image)?,
            _ = self.stopping.wait_for(|stopping| *stopping) => return Err(StartFailure::Stopped),
        };
        let live = Live {
            pod_ips: self.pod.addresses().iter().map(ToString::to_string).collect(),
            host_ip: self.services.host_ip.clone(),
            node_name: self.services.node_name.clone(),
        };
        let referenced = referenced_values(&self.services, &self.object, &self.container).await;
        let lookup = |kind: &'static str, name: &str| referenced.get(&(kind, name.to_owned())).cloned();
        let env = environment::resolve(&self.object, &self.container, &live, &lookup)?;
        let config = spec::container_config(&self.object, &self.container, self.attempt, Arc::clone(&image), env)?;
        let started = self.pod.start_container(&config, &self.services.images, &self.timeline).await?;
        Ok(Run { started_at: started.at, image })
    }
}

type Referenced = BTreeMap<(&'static str, String), BTreeMap<String, String>>;

/// The ConfigMaps and Secrets that the container's environment names, as far as they exist.
async fn referenced_values(services: &Services, pod: &PodObject, container: &Container) -> Referenced {
    let mut names: Vec<(&'static str, String)> = Vec::new();
    for source in container.env_from.iter().flatten() {
        names.extend(source.config_map_ref.iter().map(|reference| ("configmap", reference.name.clone())));
        names.extend(source.secret_ref.iter().map(|reference| ("secret", reference.name.clone())));
    }
    for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        names.extend(source.config_map_key_ref.iter().map(|reference| ("configmap", reference.name.clone())));
        names.extend(source.secret_key_ref.iter().map(|reference| ("secret", reference.name.clone())));
    }
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let mut values = Referenced::new();
    for (kind, name) in names {
        let key = Key::namespaced(format!("{kind}s"), &namespace, &name);
        if let Ok(Some(object)) = services.store.get(&key).await {
            values.insert((kind, name), decoded(kind, &object.value));
        }
    }
    values
}

fn decoded(kind: &str, object: &Value) -> BTreeMap<String, String> {
    let data = object.get("data").and_then(Value::as_object);
    let entries = data.into_iter().flatten().filter_map(|(key, value)| {
        let text = value.as_str()?;
        if kind == "configmap" {
            return Some((key.clone(), text.to_owned()));
        }
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
        Some((key.clone(), String::from_utf8(bytes).ok()?))
    });
    entries.collect()
}

/// The number of a signal as images and users write it: `SIGQUIT`, `QUIT`, `3`, `SIGRTMIN+3`.
pub(crate) fn signal_number(name: &str) -> Option<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    const REAL_TIME_FIRST: i32 = 34;
    const LAST: i32 = 64;
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |rest: &str| rest.strip_prefix('+').map_or(rest.is_empty().then_some(0), |n| n.parse::<i32>().ok());
    let number = short
        .parse::<i32>()
        .ok()
        .or_else(|| NAMES.iter().position(|known| *known == short).and_then(|index| i32::try_from(index + 1).ok()))
        .or_else(|| {
            short.strip_prefix("RTMIN").and_then(real_time).map(|offset| REAL_TIME_FIRST.saturating_add(offset))
        });
    number.filter(|number| (1..=LAST).contains(number))
}

#[cfg(test)]
mod tests {
    #[test]
    fn signals_by_every_name() {
        for (name, number) in [("SIGQUIT", 3), ("term", 15), ("9", 9), ("SIGRTMIN+3", 37), ("RTMIN", 34)] {
            assert_eq!(super::signal_number(name), Some(number), "{name}");
        }
        for name in ["", "SIGNOTHING", "0", "65", "-1", "RTMIN+99"] {
            assert_eq!(super::signal_number(name), None, "{name}");
        }
    }
}
