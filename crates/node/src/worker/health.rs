//! The worker's probes and hooks: sent in tasks of their own, answered through the queue.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Probe};
use sampan_runtime::pod::Pod;

use super::{Held, Message, Worker, seconds, tell};
use crate::check::{self, Answer, Place};
use crate::events::Kind;
use crate::lifecycle::after;
use crate::limits::{POST_START_DEADLINE, TERMINATION_MESSAGE_BYTES_MAX};
use crate::probe;
use crate::spec;

impl Worker {
    /// Sends what is due; when something will be next.
    pub(super) fn send_probes(&mut self, now: Timestamp) -> Option<Timestamp> {
        let Held::Ready(_) = &self.held else { return None };
        let is_stopping = self.lifecycle.stop.is_some();
        let mut wake = None;
        let mut due = Vec::new();
        for (index, slot) in self.lifecycle.slots.iter_mut().enumerate() {
            if !slot.is_running() {
                continue;
            }
            due.extend(slot.probing.due(is_stopping, now).into_iter().map(|kind| (index, slot.restarts, kind)));
            wake = [wake, slot.probing.wake(is_stopping)].into_iter().flatten().min();
        }
        for (index, attempt, kind) in due {
            let Some((container, probe)) = self.probe_of(index, kind) else { continue };
            let Some(place) = self.place() else { return wake };
            let sender = self.sender.clone();
            tokio::spawn(async move {
                let answer = check::ask(&place, &container, &probe).await;
                tell(&sender, Message::Probed { index, attempt, kind, answer }).await;
            });
        }
        wake
    }

    fn container(&self, index: usize) -> Option<Container> {
        let name = &self.lifecycle.slots.get(index)?.name;
        spec::find(self.object.spec.as_ref()?, name)
    }

    fn probe_of(&self, index: usize, kind: probe::Kind) -> Option<(Container, Probe)> {
        let container = self.container(index)?;
        let probe = match kind {
            probe::Kind::Startup => container.startup_probe.clone(),
            probe::Kind::Liveness => container.liveness_probe.clone(),
            probe::Kind::Readiness => container.readiness_probe.clone(),
        };
        Some((container, probe?))
    }

    /// Where the pod's containers are reached.
    fn place(&self) -> Option<Place> {
        let Held::Ready(pod) = &self.held else { return None };
        let address = pod.addresses().first().map_or_else(|| self.services.host_ip.clone(), ToString::to_string);
        Some(Place { pod: Arc::downgrade(pod), address })
    }

    pub(super) fn probed(&mut self, index: usize, attempt: u32, kind: probe::Kind, answer: Answer) {
        let now = Timestamp::now();
        let is_stopping = self.lifecycle.stop.is_some();
        let Some(slot) = self.lifecycle.slots.get_mut(index).filter(|slot| slot.restarts == attempt) else { return };
        let name = slot.name.clone();
        let (is_good, said) = match answer {
            Answer::Good => (true, None),
            Answer::Bad(why) => (false, Some(format!("{} probe failed: {why}", kind.as_str()))),
            Answer::Unasked(why) => {
                slot.probing.lost(kind);
                if slot.is_running() {
                    let message = format!("{} probe errored: {why}", kind.as_str());
                    self.container_event(&name, Kind::Warning, "Unhealthy", message);
                }
                return;
            }
        };
        if !slot.is_running() {
            return;
        }
        let verdict = slot.probing.answered(kind, is_good, now);
        if let Some(message) = said {
            self.container_event(&name, Kind::Warning, "Unhealthy", message);
        }
        if verdict == probe::Verdict::Kill && !is_stopping {
            let probe = self.probe_of(index, kind).map(|(_, probe)| probe);
            let grace = seconds(probe.and_then(|probe| probe.termination_grace_period_seconds));
            let lower = kind.as_str().to_ascii_lowercase();
            let message = format!("Container {name} failed {lower} probe, will be restarted");
            self.container_event(&name, Kind::Normal, "Killing", message);
            self.lifecycle.end_unwell(index, attempt, after(now, grace.unwrap_or(self.lifecycle.grace)));
        }
    }

    /// What a run has left to say: its termination message, or the end of its log where that may stand for it.
    pub(super) fn last_words(&self, pod: &Pod, index: usize, code: i32) -> String {
        let Some(slot) = self.lifecycle.slots.get(index) else { return String::new() };
        let written = pod.termination_message(&slot.name, slot.restarts, TERMINATION_MESSAGE_BYTES_MAX);
        let written = written.unwrap_or_else(|error| {
            tracing::warn!(pod = %self.key, container = slot.name, %error, "a termination message cannot be read");
            Vec::new()
        });
        let falls_back = || {
            let container = self.container(index);
            container
                .and_then(|container| container.termination_message_policy)
                .is_some_and(|how| how == "FallbackToLogsOnError")
        };
        if written.is_empty() && code != 0 && falls_back() {
            return crate::logs::last_words(&pod.log_path(&slot.name, slot.restarts)).unwrap_or_default();
        }
        String::from_utf8_lossy(&written).into_owned()
    }

    fn hook_of(
        &self,
        index: usize,
        of: fn(&k8s_openapi::api::core::v1::Lifecycle) -> &Option<LifecycleHandler>,
    ) -> Option<(Container, LifecycleHandler)> {
        let container = self.container(index)?;
        let handler = of(container.lifecycle.as_ref()?).clone()?;
        Some((container, handler))
    }

    /// Runs the hook of a container that has just started.
    pub(super) fn post_start(&mut self, index: usize) {
        let Some(attempt) = self.lifecycle.slots.get(index).map(|slot| slot.restarts) else { return };
        let hook = self.hook_of(index, |hooks| &hooks.post_start).zip(self.place());
        let Some(((container, handler), place)) = hook else {
            return self.lifecycle.hooked(index, attempt, Timestamp::now());
        };
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let result = check::hook(&place, &container, &handler, POST_START_DEADLINE).await;
            tell(&sender, Message::PostStarted { index, attempt, result }).await;
        });
    }

    pub(super) fn post_started(&mut self, index: usize, attempt: u32, result: Result<(), String>) {
        let now = Timestamp::now();
        let Some(slot) = self.lifecycle.slots.get(index).filter(|slot| slot.restarts == attempt && slot.is_running())
        else {
            return;
        };
        let name = slot.name.clone();
        match result {
            Ok(()) => self.lifecycle.hooked(index, attempt, now),
            Err(why) => {
                self.container_event(
                    &name,
                    Kind::Warning,
                    "FailedPostStartHook",
                    format!("PostStartHook failed: {why}"),
                );
                self.container_event(&name, Kind::Normal, "Killing", "FailedPostStartHook".to_owned());
                self.lifecycle.end_unwell(index, attempt, after(now, self.lifecycle.grace));
            }
        }
    }

    /// Runs the hook of a container that is about to be stopped, for no longer than there is grace.
    pub(super) fn pre_stop(&mut self, index: usize, deadline: Timestamp) {
        let Some(slot) = self.lifecycle.slots.get(index) else { return };
        let (attempt, name) = (slot.restarts, slot.name.clone());
        let hook = self.hook_of(index, |hooks| &hooks.pre_stop).zip(self.place());
        let sender = self.sender.clone();
        let Some(((container, handler), place)) = hook else {
            return self.lifecycle.pre_stopped(index, attempt);
        };
        let at_most = Duration::try_from(deadline.duration_since(Timestamp::now())).unwrap_or_default();
        tokio::spawn(async move {
            if let Err(why) = check::hook(&place, &container, &handler, at_most).await {
                let message = format!("PreStopHook failed: {why}");
                let event = super::container_event(&name, Kind::Warning, "FailedPreStopHook", message);
                tell(&sender, Message::Told(event)).await;
            }
            tell(&sender, Message::PreStopped { index, attempt }).await;
        });
    }
}
