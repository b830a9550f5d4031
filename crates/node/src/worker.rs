//! One task per pod: the only owner of its lifecycle, sandbox and status.
//!
//! Everything that takes time (pulling, making, starting, removing) runs in tasks of its own that report back into the
//! worker's queue, so the worker always answers: a stop never waits behind a pull. It loops over
//! *what happened → what is next → act → write the status*.
//!
//! # Failure
//! A worker that dies with the daemon loses nothing that is not in the journal, in the agent or in the stored status.
//!
//! # Cancellation
//! Ends by itself when its pod is deleted and gone from the host, or when its queue is closed at shutdown; then
//! whatever runs in the sandbox stays running.

mod health;
mod image;
mod report;
mod resize;
mod rotation;
pub(crate) mod start;
mod volumes;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, Shared};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod as PodObject;
use sampan_image::{Image, ImageError, ImageStore};
use sampan_kit::backoff::Backoff;
use sampan_runtime::journal::SandboxRow;
use sampan_runtime::pod::Pod;
use sampan_runtime::timeline::Timeline;
use sampan_runtime::{Runtime, RuntimeError};
use sampan_sandbox::SandboxEvent;
use sampan_store::{Key, Object, Store};
use tokio::sync::{mpsc, watch};

use crate::check::Answer;
use crate::events::{Event, Kind, Recorder};
use crate::lifecycle::{Action, Exit, Lifecycle, Sandbox, Slot, State, after};
use crate::limits::{GRACE_DEFAULT, PRESSURE_INTERVAL, RESTART_DELAY_FIRST, RESTART_DELAY_LONGEST, WORKER_QUEUE};
use crate::{probe, projection, spec};

/// Annotation that stops a pod but keeps the object: seconds of grace.
const STOP_ANNOTATION: &str = "sampan.dev/stop";
/// Annotation of pods made by `sampan run`.
const CREATED_BY_ANNOTATION: &str = "sampan.dev/created-by";

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) store: Store,
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) images: ImageStore,
    pub(crate) node_name: String,
    pub(crate) host_ip: String,
    /// What containers without limits may use: thousandths of a core, bytes of memory.
    pub(crate) allocatable: (i64, i64),
    /// Where the node's own seccomp profiles are.
    pub(crate) seccomp_dir: std::path::PathBuf,
    /// Tells who follows a log that there is more.
    pub(crate) log_changes: Arc<crate::logs::changes::Changes>,
}

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// The Pod object is new or changed.
    Changed(Arc<Object>),
    /// The Pod object is no longer there.
    Gone,
    /// The sandbox is there, or is not to be had.
    Made(Result<Box<Pod>, RuntimeError>),
    /// A container was started, or could not be.
    Started(usize, Result<start::Run, start::StartFailure>),
    /// This sandbox reports.
    Happened(Arc<Pod>, SandboxEvent),
    /// The sandbox is taken away.
    Removed(Result<(), RuntimeError>),
    /// A probe of a container's run was answered.
    Probed { index: usize, attempt: u32, kind: probe::Kind, answer: Answer },
    /// The post-start hook of a container's run has ended.
    PostStarted { index: usize, attempt: u32, result: Result<(), String> },
    /// The pre-stop hook of a container's run has ended, or was given up.
    PreStopped { index: usize, attempt: u32 },
    /// An object that the pod's volumes show has changed.
    Projected,
    /// Something has happened to an image.
    Image(sampan_image::ImageEvent),
    /// The limits of running containers were changed, or could not be.
    Resized(Result<(), String>),
    /// A container's log was cut, or could not be.
    Rotated(String),
    /// Something to tell people.
    Told(Event),
}

/// Where one container stands, for those who read its logs or attach to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ContainerView {
    /// Number of its present or last run.
    pub(crate) attempt: u32,
    /// It was started at least once.
    pub(crate) started: bool,
    /// It runs.
    pub(crate) running: bool,
    /// It will never run again.
    pub(crate) over: bool,
}

/// What others may see of a pod.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// The live pod, while its sandbox is there.
    pub(crate) pod: Option<Arc<Pod>>,
    /// Its containers.
    pub(crate) containers: BTreeMap<String, ContainerView>,
}

/// The way to a worker.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    pub(crate) queue: mpsc::Sender<Message>,
    pub(crate) view: watch::Receiver<View>,
    /// The pod's namespace, and the ConfigMaps and Secrets of it that its volumes show.
    pub(crate) shows: Arc<(String, BTreeSet<(&'static str, String)>)>,
}

type SharedImage = Shared<BoxFuture<'static, Result<Arc<Image>, Arc<ImageError>>>>;

/// The sandbox as the worker holds it.
enum Held {
    Absent,
    Making,
    Refused { until: Timestamp },
    Ready(Arc<Pod>),
    Removing { again: bool },
    Removed,
}

pub(crate) struct Worker {
    services: Arc<Services>,
    key: Key,
    uid: String,
    object: Arc<PodObject>,
    lifecycle: Lifecycle,
    held: Held,
    refusal: Option<(String, String)>,
    refusal_delay: Backoff,
    images: HashMap<String, SharedImage>,
    image_ids: BTreeMap<String, String>,
    /// Id and addresses of the present or last sandbox.
    known_sandbox: (Option<String>, Vec<String>),
    /// The images of running containers: held, they are in use and not to be removed.
    held_images: HashMap<String, Arc<Image>>,
    timeline: Timeline,
    start_time: Timestamp,
    queue: mpsc::Receiver<Message>,
    sender: mpsc::Sender<Message>,
    view: watch::Sender<View>,
    recorder: Recorder,
    pending_events: Vec<Event>,
    /// The last restart of each container whose back-off was told of.
    backed_off: HashMap<String, u32>,
    /// What the containers may use, as far as it is so.
    resources: BTreeMap<String, k8s_openapi::api::core::v1::ResourceRequirements>,
    /// The containers whose logs are being cut.
    rotating: BTreeSet<String>,
    /// Only one errand at a time writes the projected volumes.
    volumes_turn: Arc<tokio::sync::Mutex<()>>,
    report: report::Report,
    /// Tells errands that wait for an image to give up.
    stopping: watch::Sender<bool>,
    object_gone: bool,
    deleting: bool,
    /// Errands that start a container: they make files of the pod's.
    starts: usize,
    disk_full_told: bool,
}

/// What is known of a pod's sandbox when its worker begins.
pub(crate) enum Found {
    /// Nothing: a new pod, or one whose sandbox is gone.
    Nothing,
    /// One that outlived the daemon.
    Row(SandboxRow),
}

impl Worker {
    /// Starts the worker of a pod.
    pub(crate) fn spawn(services: Arc<Services>, object: Arc<Object>, pod: PodObject, found: Found) -> Handle {
        let (sender, queue) = mpsc::channel(WORKER_QUEUE);
        let (view_sender, view) = watch::channel(View::default());
        let spec = pod.spec.as_ref();
        let shows =
            (object.key.namespace.clone().unwrap_or_default(), spec.map(projection::references).unwrap_or_default());
        let handle = Handle { queue: sender.clone(), view, shows: Arc::new(shows) };
        let worker = Self::new(services, &object, pod, sender, queue, view_sender);
        tokio::spawn(worker.run(found));
        handle
    }

    fn new(
        services: Arc<Services>,
        object: &Object,
        pod: PodObject,
        sender: mpsc::Sender<Message>,
        queue: mpsc::Receiver<Message>,
        view: watch::Sender<View>,
    ) -> Self {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let spec = pod.spec.clone().unwrap_or_default();
        let mut slots = spec::slots(&spec);
        let status = pod.status.clone().unwrap_or_default();
        crate::status::restore(&mut slots, &status);
        let grace = seconds(spec.termination_grace_period_seconds).unwrap_or(GRACE_DEFAULT);
        let recorder =
            Recorder::for_pod(services.store.clone(), &services.node_name, &namespace, &object.key.name, &uid);
        Self {
            lifecycle: Lifecycle::new(spec::restart_policy(&spec), slots, grace),
            key: object.key.clone(),
            uid,
            timeline: report::stored_timeline(&pod),
            start_time: status.start_time.as_ref().map_or_else(Timestamp::now, |time| time.0),
            object: Arc::new(pod),
            held: Held::Absent,
            refusal: None,
            refusal_delay: Backoff::new(RESTART_DELAY_FIRST, RESTART_DELAY_LONGEST),
            images: HashMap::new(),
            image_ids: status
                .container_statuses
                .iter()
                .flatten()
                .chain(status.init_container_statuses.iter().flatten())
                .map(|container| (container.name.clone(), container.image_id.clone()))
                .collect(),
            known_sandbox: report::stored_sandbox(&status),
            held_images: HashMap::new(),
            queue,
            sender,
            view,
            recorder,
            pending_events: Vec::new(),
            backed_off: HashMap::new(),
            resources: BTreeMap::new(),
            rotating: BTreeSet::new(),
            volumes_turn: Arc::default(),
            report: report::Report::default(),
            stopping: watch::Sender::new(false),
            object_gone: false,
            deleting: false,
            starts: 0,
            disk_full_told: false,
            services,
        }
    }

    async fn run(mut self, found: Found) {
        self.take_up(found).await;
        let mut pressure = tokio::time::interval(PRESSURE_INTERVAL);
        pressure.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let now = Timestamp::now();
            self.check_deadline(now);
            self.stopping.send_replace(self.lifecycle.stop.is_some());
            let next = self.lifecycle.next(self.sandbox(), now);
            let (removals, actions): (Vec<Action>, Vec<Action>) =
                next.actions.into_iter().partition(|action| *action == Action::RemoveSandbox);
            for action in actions {
                self.act(action);
            }
            self.tell_of_back_off();
            let probes_at = self.send_probes(now);
            self.publish();
            let report_at = self.report(now).await;
            // How containers ended only their agent knows until it is written; what could not be written keeps the sandbox.
            if report_at.is_none() {
                removals.into_iter().for_each(|removal| self.act(removal));
            }
            if self.is_finished().await {
                return;
            }
            let wake = [next.wake, probes_at, report_at, self.active_deadline()].into_iter().flatten().min();
            let wait =
                wake.map_or(Duration::MAX, |at| at.duration_since(Timestamp::now()).try_into().unwrap_or_default());
            tokio::select! {
                message = self.queue.recv() => {
                    let Some(message) = message else { return };
                    self.handle(message).await;
                    while let Ok(message) = self.queue.try_recv() {
                        self.handle(message).await;
                    }
                }
                () = tokio::time::sleep(wait.min(Duration::from_secs(86_400))) => {}
                _ = pressure.tick(), if matches!(self.held, Held::Ready(_)) => {
                    self.check_pressure();
                    self.rotate_logs();
                }
            }
        }
    }

    /// Begins: with a sandbox found on the host, or with what the stored status tells.
    async fn take_up(&mut self, found: Found) {
        let object = Arc::clone(&self.object);
        self.apply_object(&object);
        self.note_resources();
        match found {
            Found::Row(row) => self.adopt(row).await,
            Found::Nothing => {
                if self.lifecycle.phase().is_final() {
                    self.held = Held::Removed;
                }
                (0..self.lifecycle.slots.len()).for_each(|index| self.lifecycle.unstarted(index));
                let lost = "the sandbox ended while the service did not watch it";
                self.lifecycle.sandbox_lost("ContainerStatusUnknown", lost, Timestamp::now());
                self.prefetch_images();
            }
        }
    }

    async fn adopt(&mut self, row: SandboxRow) {
        let adopted = match spec::pod_config(&self.object) {
            Ok(config) => self.services.runtime.adopt(row.clone(), config).await,
            Err(error) => Err(RuntimeError::Refused(error.to_string())),
        };
        let adopted = match adopted {
            Ok(pod) => self.resume(pod).await,
            Err(error) => Err(error),
        };
        match adopted {
            Ok(()) => {}
            Err(error) => {
                let message = sampan_kit::error_chain::ErrorChain(&error).to_string();
                tracing::warn!(pod = %self.key, sandbox = %row.id, error = message, "a sandbox cannot be taken up again");
                self.lifecycle.sandbox_lost("ContainerStatusUnknown", &message, Timestamp::now());
                self.held = Held::Removing { again: true };
                let (services, sender) = (Arc::clone(&self.services), self.sender.clone());
                tokio::spawn(async move {
                    let removed = services.runtime.remove_row(&row).await;
                    tell(&sender, Message::Removed(removed)).await;
                });
            }
        }
    }

    /// Learns from the agent what has become of every container, before anything is decided: what ran while nobody looked must not run
    /// again.
    async fn resume(&mut self, pod: Pod) -> Result<(), RuntimeError> {
        let pod = Arc::new(pod);
        let mut events = pod.sandbox().events();
        for (name, since) in pod.running_containers().await? {
            let Some(index) = self.lifecycle.index(&name) else { continue };
            self.note_unwritten_start(index);
            let (was_started, was_ready) = crate::status::health(self.object.status.as_ref(), &name);
            self.lifecycle.resumed(index, since, was_started, was_ready);
        }
        self.hold_images();
        self.sandbox_ready(Arc::clone(&pod));
        // Every end before that answer is told by now.
        while let Ok(event) = events.try_recv() {
            if let SandboxEvent::ContainerExited { container, .. } = &event
                && let Some(index) = self.lifecycle.index(container)
                && self.lifecycle.slots.get(index).is_some_and(|slot| slot.state == State::Fresh)
            {
                self.lifecycle.starting(index);
            }
            self.happened(&pod, event);
        }
        (0..self.lifecycle.slots.len()).for_each(|index| self.lifecycle.unstarted(index));
        self.follow(&pod, events);
        Ok(())
    }

    /// A container runs whose start nobody wrote down.
    fn note_unwritten_start(&mut self, index: usize) {
        let slot = self.lifecycle.slots.get(index);
        if slot.is_some_and(|slot| !slot.is_running() && slot.state != State::Starting) {
            self.lifecycle.starting(index);
        }
    }

    fn sandbox(&self) -> Sandbox {
        match &self.held {
            Held::Absent => Sandbox::Absent,
            Held::Making => Sandbox::Making,
            Held::Refused { until } => Sandbox::Refused { until: *until },
            Held::Ready(_) => Sandbox::Ready,
            Held::Removing { .. } => Sandbox::Removing,
            Held::Removed => Sandbox::Removed,
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::MakeSandbox => self.make_sandbox(),
            Action::Start(index) => self.start(index),
            Action::PreStop(index, deadline) => {
                self.tell_of_stop(index);
                self.pre_stop(index, deadline);
            }
            Action::Terminate(index) => {
                self.tell_of_stop(index);
                self.signal(index, None);
            }
            Action::Kill(index) => self.signal(index, Some(9)),
            Action::RemoveSandbox => self.remove_sandbox(false),
        }
    }

    async fn handle(&mut self, message: Message) {
        match message {
            Message::Changed(object) => match serde_json::from_value::<PodObject>(object.value.clone()) {
                Ok(pod) => {
                    let pod = Arc::new(pod);
                    self.apply_object(&pod);
                    self.report.compare(&object);
                    let (old, new) = (&self.object.metadata, &pod.metadata);
                    let relabelled = old.labels != new.labels || old.annotations != new.annotations;
                    let before = std::mem::replace(&mut self.object, pod);
                    self.take_ephemeral();
                    self.resize(&before);
                    if relabelled {
                        self.refresh_volumes();
                    }
                }
                Err(error) => tracing::error!(pod = %self.key, %error, "the stored pod cannot be read"),
            },
            Message::Gone => {
                self.object_gone = true;
                self.lifecycle.request_stop(Timestamp::now());
            }
            Message::Made(made) => self.made(made),
            Message::Started(index, started) => {
                self.starts -= 1;
                self.started(index, started);
            }
            Message::Happened(reporting, event) => self.happened(&reporting, event),
            Message::Removed(removed) => self.removed(removed),
            Message::Probed { index, attempt, kind, answer } => self.probed(index, attempt, kind, answer),
            Message::PostStarted { index, attempt, result } => self.post_started(index, attempt, result),
            Message::PreStopped { index, attempt } => self.lifecycle.pre_stopped(index, attempt),
            Message::Projected => {
                self.lifecycle.retry(start::VOLUME_MISSING, Timestamp::now());
                self.refresh_volumes();
            }
            Message::Image(event) => self.image_event(&event),
            Message::Resized(done) => self.resized(done),
            Message::Rotated(container) => drop(self.rotating.remove(&container)),
            Message::Told(event) => self.pending_events.push(event),
        }
    }

    /// Containers that somebody has put into the pod since.
    fn take_ephemeral(&mut self) {
        let object = Arc::clone(&self.object);
        for slot in object.spec.iter().flat_map(spec::ephemeral_slots) {
            if self.lifecycle.index(&slot.name).is_none() {
                self.lifecycle.slots.push(slot);
            }
        }
    }

    /// Takes over what users changed: deletion, and our own stop annotation.
    fn apply_object(&mut self, pod: &PodObject) {
        let now = Timestamp::now();
        if let Some(deletion) = &pod.metadata.deletion_timestamp {
            self.deleting = true;
            let grace = seconds(pod.metadata.deletion_grace_period_seconds).unwrap_or(self.lifecycle.grace);
            // The timestamp has whole seconds, cut off; it counts only where it comes earlier than the full grace from now,
            // as after a restart of the service.
            self.lifecycle.request_stop(after(deletion.0, Duration::from_secs(1)).min(after(now, grace)));
        }
        let annotations = pod.metadata.annotations.as_ref();
        if let Some(grace) = annotations.and_then(|annotations| annotations.get(STOP_ANNOTATION))
            && self.lifecycle.stop.is_none()
        {
            let grace = grace.parse().map_or(self.lifecycle.grace, Duration::from_secs);
            self.lifecycle.request_stop(after(now, grace));
        }
    }

    fn made(&mut self, made: Result<Box<Pod>, RuntimeError>) {
        match made {
            Ok(pod) => {
                self.refusal = None;
                let pod = Arc::new(*pod);
                let events = pod.sandbox().events();
                self.sandbox_ready(Arc::clone(&pod));
                self.follow(&pod, events);
            }
            Err(error) => {
                let message = sampan_kit::error_chain::ErrorChain(&error).to_string();
                self.event(Kind::Warning, "FailedCreatePodSandBox", message.clone());
                if self.fails_fast() {
                    self.held = Held::Absent;
                    self.lifecycle.fail("FailedCreatePodSandBox", message, Timestamp::now());
                } else {
                    self.held = Held::Refused { until: after(Timestamp::now(), self.refusal_delay.fail()) };
                    self.refusal = Some(("FailedCreatePodSandBox".to_owned(), message));
                }
            }
        }
    }

    fn sandbox_ready(&mut self, pod: Arc<Pod>) {
        let addresses = pod.addresses().iter().map(ToString::to_string).collect();
        self.known_sandbox = (Some(pod.id().to_owned()), addresses);
        self.held = Held::Ready(pod);
    }

    /// Has what the agent tells come to the queue.
    fn follow(&self, pod: &Arc<Pod>, mut events: mpsc::Receiver<SandboxEvent>) {
        let (sender, reporting) = (self.sender.clone(), Arc::downgrade(pod));
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let Some(pod) = reporting.upgrade() else { return };
                tell(&sender, Message::Happened(pod, event)).await;
            }
        });
    }

    fn happened(&mut self, reporting: &Arc<Pod>, event: SandboxEvent) {
        // A sandbox that is being taken away has nothing more to say, least of all about the one after it.
        let Held::Ready(pod) = &self.held else { return };
        if !Arc::ptr_eq(pod, reporting) {
            return;
        }
        match event {
            SandboxEvent::ContainerExited {
                event_id,
                container,
                code,
                signal,
                oom_killed,
                started_at,
                finished_at,
            } => {
                let pod = Arc::clone(pod);
                if let Some(index) = self.lifecycle.index(&container) {
                    let reason = match (oom_killed, code) {
                        (true, _) => "OOMKilled",
                        (false, 0) => "Completed",
                        _ => "Error",
                    };
                    if oom_killed {
                        let message = format!("container {container} was killed: its memory limit was reached");
                        self.event(Kind::Warning, "OOMKilled", message);
                    }
                    let exit = Exit {
                        code,
                        signal,
                        reason: reason.to_owned(),
                        message: self.last_words(&pod, index, code),
                        started_at: Some(started_at),
                        finished_at,
                    };
                    self.lifecycle.exited(index, exit);
                }
                self.check_pressure();
                self.report.acknowledge_after_write(pod, event_id);
            }
            SandboxEvent::AgentLost { reason } => {
                let message = format!("the pod's agent is gone: {reason}");
                self.event(Kind::Warning, "SandboxLost", message.clone());
                self.lifecycle.sandbox_lost("SandboxLost", &message, Timestamp::now());
                self.remove_sandbox(true);
            }
        }
    }

    fn removed(&mut self, removed: Result<(), RuntimeError>) {
        self.lifecycle.sandbox_lost(
            "SandboxLost",
            "it did not end and was taken away with its sandbox",
            Timestamp::now(),
        );
        if let Err(error) = removed {
            let message = sampan_kit::error_chain::ErrorChain(&error).to_string();
            tracing::error!(pod = %self.key, error = message, "a sandbox is not wholly removed; the next start of the service tries again");
            self.event(Kind::Warning, "FailedKillPod", message);
        }
        let again = matches!(self.held, Held::Removing { again: true });
        if again && self.lifecycle.stop.is_none() && !self.lifecycle.phase().is_final() {
            self.held = Held::Absent;
            self.prefetch_images();
        } else {
            self.held_images.clear();
            self.held = Held::Removed;
        }
    }

    /// `sampan run` wants to hear what is wrong now, not after the fifth back-off.
    fn fails_fast(&self) -> bool {
        let annotations = self.object.metadata.annotations.as_ref();
        let by_run = annotations.is_some_and(|annotations| annotations.contains_key(CREATED_BY_ANNOTATION));
        by_run && self.lifecycle.policy == crate::lifecycle::RestartPolicy::Never
    }

    fn active_deadline(&self) -> Option<Timestamp> {
        let seconds = self.object.spec.as_ref()?.active_deadline_seconds?;
        if self.lifecycle.stop.is_some() || self.lifecycle.phase().is_final() {
            return None;
        }
        Some(after(self.start_time, Duration::from_secs(u64::try_from(seconds).unwrap_or(0))))
    }

    fn check_deadline(&mut self, now: Timestamp) {
        if self.active_deadline().is_some_and(|deadline| deadline <= now) {
            let message = "the pod was active on the node longer than its activeDeadlineSeconds".to_owned();
            self.event(Kind::Normal, "DeadlineExceeded", message.clone());
            self.lifecycle.fail("DeadlineExceeded", message, now);
        }
    }

    /// Tells once when the writable layer is full.
    fn check_pressure(&mut self) {
        let Held::Ready(pod) = &self.held else { return };
        match pod.disk_is_full() {
            Ok(true) if !self.disk_full_told => {
                self.disk_full_told = true;
                let message = "the pod's writable layer is full: writes fail with ENOSPC; give it a larger \
                               ephemeral-storage limit (sampan run --disk)";
                self.event(Kind::Warning, "EphemeralStorageFull", message.to_owned());
            }
            Ok(true) => {}
            Ok(false) => self.disk_full_told = false,
            Err(error) => tracing::warn!(pod = %self.key, %error, "the writable layer cannot be looked at"),
        }
    }

    fn event(&mut self, kind: Kind, reason: &'static str, message: String) {
        self.pending_events.push(pod_event(kind, reason, message));
    }

    fn container_event(&mut self, container: &str, kind: Kind, reason: &'static str, message: String) {
        let mut event = container_event(container, kind, reason, message);
        let is_role = |slot: &&Slot| slot.name == container;
        event.field = self.lifecycle.slots.iter().find(is_role).map(|slot| field_of(slot.role, container));
        self.pending_events.push(event);
    }

    /// Says once of each stop that it begins. One that is not well was told of when it was found so.
    fn tell_of_stop(&mut self, index: usize) {
        let Some(slot) = self.lifecycle.slots.get_mut(index) else { return };
        if !slot.announce_stop() {
            return;
        }
        let name = slot.name.clone();
        self.container_event(&name, Kind::Normal, "Killing", format!("Stopping container {name}"));
    }

    /// Says once of each restart that has to wait that it does.
    fn tell_of_back_off(&mut self) {
        let waits = |slot: &Slot| matches!(&slot.state, State::Waiting { reason, .. } if reason == "CrashLoopBackOff");
        let waiting: Vec<(String, u32)> = self
            .lifecycle
            .slots
            .iter()
            .filter(|slot| waits(slot))
            .map(|slot| (slot.name.clone(), slot.restarts))
            .collect();
        for (name, restarts) in waiting {
            if self.backed_off.insert(name.clone(), restarts) != Some(restarts) {
                let namespace = self.key.namespace.clone().unwrap_or_default();
                let pod = format!("{}_{namespace}({})", self.key.name, self.uid);
                let message = format!("Back-off restarting failed container {name} in pod {pod}");
                self.container_event(&name, Kind::Warning, "BackOff", message);
            }
        }
    }

    /// Shows others where the pod stands.
    fn publish(&self) {
        let is_over = self.lifecycle.phase().is_final();
        let containers = self.lifecycle.slots.iter().map(|slot| {
            let view = ContainerView {
                attempt: slot.restarts,
                started: slot.ever_started && slot.state != State::Starting || slot.restarts > 0,
                running: slot.is_running(),
                over: is_over && !slot.is_running(),
            };
            (slot.name.clone(), view)
        });
        let containers: BTreeMap<String, ContainerView> = containers.collect();
        let pod = if let Held::Ready(pod) = &self.held { Some(Arc::clone(pod)) } else { None };
        self.view.send_if_modified(|view| {
            let same = view.containers == containers && view.pod.is_some() == pod.is_some();
            *view = View { pod, containers };
            !same
        });
    }

    /// The pod is deleted and nothing of it is left on the host.
    async fn is_finished(&mut self) -> bool {
        let gone_from_host = matches!(self.held, Held::Removed | Held::Absent | Held::Refused { .. });
        if !(self.object_gone || self.deleting) || !gone_from_host || self.starts > 0 {
            return false;
        }
        if !self.object_gone && !self.delete_object().await {
            return false;
        }
        if let Err(error) = self.services.runtime.forget(&self.uid) {
            let error = sampan_kit::error_chain::ErrorChain(&error);
            tracing::warn!(pod = %self.key, %error, "the logs of a deleted pod stay behind");
        }
        true
    }
}

/// An event about the pod as a whole.
pub(crate) fn pod_event(kind: Kind, reason: &'static str, message: String) -> Event {
    Event { kind, reason, message, field: None }
}

/// An event about one of its containers.
pub(crate) fn container_event(container: &str, kind: Kind, reason: &'static str, message: String) -> Event {
    Event { field: Some(field_of(crate::lifecycle::Role::Main, container)), ..pod_event(kind, reason, message) }
}

fn field_of(role: crate::lifecycle::Role, container: &str) -> String {
    let list = match role {
        crate::lifecycle::Role::Init | crate::lifecycle::Role::Sidecar => "initContainers",
        crate::lifecycle::Role::Main => "containers",
        crate::lifecycle::Role::Ephemeral => "ephemeralContainers",
    };
    format!("spec.{list}{{{container}}}")
}

/// Sends to a worker; one that has ended no longer wants to know.
pub(crate) async fn tell(sender: &mpsc::Sender<Message>, message: Message) {
    if sender.send(message).await.is_err() {
        tracing::debug!("a pod's worker ended before it heard of its pod");
    }
}

fn seconds(value: Option<i64>) -> Option<Duration> {
    Some(Duration::from_secs(u64::try_from(value?).unwrap_or(0)))
}
