//! The worker's long errands: sandbox, images, containers, removal. Each is a task that reports back.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod as PodObject};
use sampan_image::{Image, ImageError, ProgressSender, PullPolicy};
use sampan_kit::error_chain::ErrorChain;
use sampan_registry::{AuthFile, Credentials};
use sampan_runtime::RuntimeError;
use sampan_runtime::container::signal_number;
use sampan_runtime::pod::Pod;
use sampan_runtime::timeline::Timeline;
use tokio::sync::watch;

use super::volumes::{self, VolumeFailure, Writing};
use super::{Held, Message, Services, SharedImage, Worker, container_event, tell};
use crate::environment::{self, EnvironmentError, Values};
use crate::events::Kind;
use crate::lifecycle::Exit;
use crate::limits::SECCOMP_PROFILE_BYTES_MAX;
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
    Volume(#[from] VolumeFailure),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("seccomp profile {path} of this node cannot be read; put it there, or name another")]
    Seccomp {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
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
        let fetch = Fetch {
            services: Arc::clone(&self.services),
            timeline: self.timeline.clone(),
            sender: self.sender.clone(),
            object: Arc::clone(&self.object),
            container: container.name.clone(),
            reference: reference.clone(),
            policy: spec::pull_policy(container),
        };
        let task = tokio::spawn(fetch.run());
        let shared =
            async move { task.await.unwrap_or_else(|_panic| Err(Arc::new(ImageError::Stopped { reference }))) };
        let shared = shared.boxed().shared();
        self.images.insert(container.name.clone(), shared.clone());
        shared
    }

    /// After a restart of the service: the images of this pod's containers are in use again. Nobody is asked whether the pod
    /// may have what it runs already.
    pub(super) fn hold_images(&mut self) {
        let object = Arc::clone(&self.object);
        for (_, container) in object.spec.iter().flat_map(spec::containers) {
            let reference = container.image.as_deref().unwrap_or_default();
            // What it was started from, even if the name means another image by now.
            let known = self.image_ids.get(&container.name).filter(|id| !id.is_empty());
            let held = known.and_then(|id| self.services.images.find(id));
            match held.or_else(|| self.services.images.find(reference)) {
                Some(image) => {
                    self.image_ids.insert(container.name.clone(), image.id.to_string());
                    self.held_images.insert(container.name.clone(), image);
                }
                None => tracing::debug!(pod = %self.key, reference, "a container's image is not here"),
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
        let Some(container) = object.spec.as_ref().and_then(|spec| spec::find(spec, &name)) else { return };
        let errand = Errand {
            image: self.image_of(&container),
            writing: self.writing(&pod),
            sender: self.sender.clone(),
            container,
            attempt,
            pod,
            services: Arc::clone(&self.services),
            timeline: if attempt == 0 { self.timeline.clone() } else { Timeline::default() },
            object: Arc::clone(&object),
            stopping: self.stopping.subscribe(),
        };
        self.images.remove(&name);
        self.starts += 1;
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
                self.container_event(&name, Kind::Normal, "Started", format!("Started container {name}"));
                if self.lifecycle.slots.get(index).is_some_and(crate::lifecycle::Slot::is_hook_pending) {
                    self.post_start(index);
                }
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
                self.container_event(name, Kind::Warning, "Failed", format!("Error: {message}"));
                let code = error.exit_code();
                let (reason, finished_at) = ("StartError".to_owned(), now);
                let exit = Exit { code, signal: None, reason, message, started_at: None, finished_at };
                self.lifecycle.exited(index, exit);
                return;
            }
            StartFailure::Image(error) if matches!(**error, ImageError::NotPresent { .. }) => "ErrImageNeverPull",
            StartFailure::Image(_) => "ErrImagePull",
            StartFailure::Volume(failure) => {
                let told = volumes::failed_mount(failure);
                self.event(Kind::Warning, "FailedMount", told);
                return self.lifecycle.refused(index, VOLUME_MISSING, message, now);
            }
            StartFailure::Spec(_)
            | StartFailure::Seccomp { .. }
            | StartFailure::Environment(_)
            | StartFailure::Runtime(RuntimeError::Container(_)) => "CreateContainerConfigError",
            StartFailure::Runtime(_) | StartFailure::Stopped => "CreateContainerError",
        };
        self.container_event(name, Kind::Warning, "Failed", format!("Error: {reason}: {message}"));
        if reason == "ErrImagePull" && !self.fails_fast() {
            let reference = self.reference(name);
            self.container_event(name, Kind::Normal, "BackOff", format!("Back-off pulling image {reference:?}"));
        }
        self.lifecycle.refused(index, reason, message.clone(), now);
        if self.fails_fast() {
            self.lifecycle.fail(reason, message, now);
        }
    }

    fn reference(&self, container: &str) -> String {
        let found = self.object.spec.as_ref().and_then(|spec| spec::find(spec, container));
        found.and_then(|container| container.image).unwrap_or_default()
    }

    /// Sends a signal, or the container's own stop signal, without waiting for its effect.
    pub(super) fn signal(&mut self, index: usize, signal: Option<i32>) {
        let Held::Ready(pod) = &self.held else { return };
        let Some(name) = self.lifecycle.slots.get(index).map(|slot| slot.name.clone()) else { return };
        let pod = Arc::clone(pod);
        let signal = signal.unwrap_or_else(|| {
            let own = self.object.spec.as_ref().and_then(|spec| spec::find(spec, &name)?.lifecycle?.stop_signal);
            let image = self.held_images.get(&name).map(|image| image.config.config.stop_signal.clone());
            own.or(image).and_then(|signal| signal_number(&signal)).unwrap_or(SIGTERM)
        });
        tokio::spawn(async move {
            if let Err(error) = pod.sandbox().signal(&name, signal).await {
                tracing::debug!(sandbox = pod.id(), container = name, signal, %error, "a signal found nobody");
            }
        });
    }
}

/// Why a container waits whose volumes have no content yet; also what the lifecycle tries again when they get it.
pub(super) const VOLUME_MISSING: &str = "ContainerCreating";

/// One image being fetched for one container.
struct Fetch {
    services: Arc<Services>,
    timeline: Timeline,
    sender: tokio::sync::mpsc::Sender<Message>,
    object: Arc<PodObject>,
    container: String,
    reference: String,
    policy: PullPolicy,
}

impl Fetch {
    async fn run(self) -> Result<Arc<Image>, Arc<ImageError>> {
        let Self { services, reference, .. } = &self;
        let (credentials, missing) = pull_credentials(services, &self.object).await;
        if !missing.is_empty() {
            let names = missing.join(", ");
            let message = format!(
                "Unable to retrieve some image pull secrets ({names}); attempting to pull the image may not succeed."
            );
            self.told(Kind::Warning, "FailedToRetrieveImagePullSecret", message).await;
        }
        // What is in a file of this machine may have changed.
        let is_local = reference.starts_with("oci:") || reference.starts_with("docker-archive:");
        if self.policy == PullPolicy::IfNotPresent && !is_local {
            let present =
                services.images.ensure_as(reference, PullPolicy::Never, credentials.clone(), ProgressSender::none());
            if let Ok(image) = self.timeline.measure("image", present).await {
                let message = format!("Container image {reference:?} already present on machine");
                self.told(Kind::Normal, "Pulled", message).await;
                return Ok(image);
            }
        }
        if self.policy != PullPolicy::Never {
            self.told(Kind::Normal, "Pulling", format!("Pulling image {reference:?}")).await;
        }
        let began = Instant::now();
        let pulled = services.images.ensure_as(reference, self.policy, credentials, ProgressSender::none());
        match self.timeline.measure("image", pulled).await {
            Ok(image) => {
                let message = if self.policy == PullPolicy::Never {
                    format!("Container image {reference:?} already present on machine")
                } else {
                    let took = format!("{:.3}s", began.elapsed().as_secs_f64());
                    format!("Successfully pulled image {reference:?} in {took} ({took} including waiting)")
                };
                self.told(Kind::Normal, "Pulled", message).await;
                Ok(image)
            }
            Err(error) => {
                if self.policy != PullPolicy::Never {
                    let message = format!("Failed to pull image {reference:?}: {}", ErrorChain(&error));
                    self.told(Kind::Warning, "Failed", message).await;
                }
                Err(Arc::new(error))
            }
        }
    }

    async fn told(&self, kind: Kind, reason: &'static str, message: String) {
        tell(&self.sender, Message::Told(container_event(&self.container, kind, reason, message))).await;
    }
}

/// The logins of the pod's own `imagePullSecrets`, and after them the machine's; and the names of those that are not there.
async fn pull_credentials(services: &Services, object: &PodObject) -> (Credentials, Vec<String>) {
    let wanted = object.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    let namespace = object.metadata.namespace.clone().unwrap_or_default();
    let (mut files, mut missing) = (Vec::new(), Vec::new());
    for name in wanted.map(|reference| reference.name.clone()) {
        let origin = format!("secret {namespace}/{name}");
        let values = volumes::values(services, &namespace, "secret", &name).await.unwrap_or_default();
        let parsed = match (values.get(".dockerconfigjson"), values.get(".dockercfg")) {
            (Some(json), _) => AuthFile::parse(json, &origin).ok(),
            (None, Some(old)) => AuthFile::parse_dockercfg(old, &origin).ok(),
            (None, None) => None,
        };
        match parsed {
            Some(file) => files.push(Arc::new(file)),
            None => missing.push(name),
        }
    }
    (Credentials::secrets(files).or_host(), missing)
}

/// Everything one start needs, away from the worker.
struct Errand {
    services: Arc<Services>,
    object: Arc<PodObject>,
    pod: Arc<Pod>,
    container: Container,
    attempt: u32,
    image: SharedImage,
    writing: Writing,
    sender: tokio::sync::mpsc::Sender<Message>,
    timeline: Timeline,
    stopping: watch::Receiver<bool>,
}

impl Errand {
    async fn run(mut self) -> Result<Run, StartFailure> {
        let image: Arc<Image> = tokio::select! {
            image = self.image => image.map_err(StartFailure::Image)?,
            _ = self.stopping.wait_for(|stopping| *stopping) => return Err(StartFailure::Stopped),
        };
        self.writing.run().await?;
        let live = volumes::live(&self.services, &self.pod);
        let referenced = referenced_values(&self.services, &self.object, &self.container).await;
        let lookup = |kind: &'static str, name: &str| referenced.get(&(kind, name.to_owned())).cloned();
        let env = environment::resolve(&self.object, &self.container, &live, &lookup)?;
        let uid = self.object.metadata.uid.clone().unwrap_or_default();
        let materials = spec::Materials {
            image: Arc::clone(&image),
            env,
            projected: &volumes::folder(&self.services, &uid),
            images: volume_images(&self.services, &self.object, &self.container).await?,
            seccomp: seccomp_profile(&self.services, &self.object, &self.container)?,
        };
        let config = spec::container_config(&self.object, &self.container, self.attempt, materials)?;
        let command = command_of(&self.container, &image);
        let name = &self.container.name;
        let created = container_event(name, Kind::Normal, "Created", format!("Created container: {name}"));
        if let Some(outdated) = self.attempt.checked_sub(2) {
            let outdated = self.pod.log_path(name, outdated);
            if let Err(error) = crate::logs::pieces::forget_aside(&outdated) {
                tracing::warn!(path = %outdated.display(), %error, "pieces of an old log stay behind");
            }
        }
        let made = self.pod.create_container(&config, &self.services.images, &self.timeline).await?;
        tell(&self.sender, Message::Told(created)).await;
        let started = self.pod.start_container(made, &self.timeline).await?;
        self.services.images.trace_start(&image, &command);
        Ok(Run { started_at: started.at, image })
    }
}

/// The words of a container's program and its arguments, the image's where the pod gives none.
fn command_of(container: &Container, image: &Image) -> Vec<String> {
    let config = &image.config.config;
    let entry = container.command.clone().filter(|words| !words.is_empty());
    let arguments = container.args.clone().filter(|words| !words.is_empty());
    let rest = match (&entry, arguments) {
        (_, Some(arguments)) => arguments,
        (None, None) => config.cmd.clone(),
        (Some(_), None) => Vec::new(),
    };
    entry.unwrap_or_else(|| config.entrypoint.clone()).into_iter().chain(rest).collect()
}

/// The images that the container's volumes are.
async fn volume_images(
    services: &Services,
    object: &PodObject,
    container: &Container,
) -> Result<BTreeMap<String, Arc<Image>>, StartFailure> {
    let mut images = BTreeMap::new();
    for (name, reference, policy) in object.spec.iter().flat_map(spec::image_volumes) {
        if !container.volume_mounts.iter().flatten().any(|mount| mount.name == name) {
            continue;
        }
        let policy = match policy {
            Some("Always") => PullPolicy::Always,
            Some("Never") => PullPolicy::Never,
            _ => PullPolicy::IfNotPresent,
        };
        let (credentials, _missing) = pull_credentials(services, object).await;
        let image = services.images.ensure_as(reference, policy, credentials, ProgressSender::none()).await;
        images.insert(name.to_owned(), image.map_err(|error| StartFailure::Image(Arc::new(error)))?);
    }
    Ok(images)
}

/// The node's own profile that the container names, bounded.
fn seccomp_profile(
    services: &Services,
    object: &PodObject,
    container: &Container,
) -> Result<Option<Vec<u8>>, StartFailure> {
    let Some(name) = spec::seccomp_profile(object, container)? else { return Ok(None) };
    let path = services.seccomp_dir.join(name);
    let mut bytes = Vec::new();
    let read = std::fs::File::open(&path).and_then(|file| file.take(SECCOMP_PROFILE_BYTES_MAX).read_to_end(&mut bytes));
    read.map_err(|source| StartFailure::Seccomp { path, source })?;
    Ok(Some(bytes))
}

type Referenced = BTreeMap<(&'static str, String), Values>;

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
    let mut found = Referenced::new();
    for (kind, name) in names {
        if let Some(values) = volumes::values(services, &namespace, kind, &name).await {
            found.insert((kind, name), values);
        }
    }
    found
}
