//! New limits for containers that run: in place, or by another run where the container's spec wants one.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod as PodObject, ResourceRequirements};
use sampan_kit::error_chain::ErrorChain;
use sampan_runtime::RuntimeError;
use sampan_runtime::pod::Pod;
use sampan_sandbox::Resources;

use super::{Held, Message, Worker, tell};
use crate::events::Kind;
use crate::lifecycle::after;
use crate::spec;

/// What is to be changed, away from the worker.
struct Resize {
    pod: Arc<Pod>,
    /// The pod's cap before and after.
    whole: (Resources, Resources),
    containers: Vec<(String, Resources)>,
}

impl Resize {
    async fn run(self) -> Result<(), RuntimeError> {
        let (before, now) = &self.whole;
        // A container's share may never be larger than the pod's, not for a moment: cgroup v1 refuses it.
        let grows = now.cpu_limit_millis.is_none_or(|now| before.cpu_limit_millis.is_some_and(|before| now >= before));
        if grows {
            self.pod.update_resources(None, now).await?;
        }
        for (name, resources) in &self.containers {
            self.pod.update_resources(Some(name), resources).await?;
        }
        self.pod.update_resources(None, now).await
    }
}

impl Worker {
    /// Takes over new limits; `old` is the pod as it was.
    pub(super) fn resize(&mut self, old: &PodObject) {
        if old.spec == self.object.spec {
            return;
        }
        let (Some(before), Some(now)) = (old.spec.clone(), self.object.spec.clone()) else { return };
        let Held::Ready(pod) = &self.held else { return };
        let pod = Arc::clone(pod);
        let mut containers = Vec::new();
        let mut restarts = Vec::new();
        for (_, container) in spec::containers(&now) {
            let was = spec::containers(&before).map(|(_, was)| was).find(|was| was.name == container.name);
            let Some(was) = was.filter(|was| was.resources != container.resources) else { continue };
            if wants_another_run(was, container) {
                restarts.push(container.name.clone());
                continue;
            }
            match container.resources.as_ref().map_or(Ok(Resources::default()), spec::resources) {
                Ok(resources) => containers.push((container.name.clone(), resources)),
                Err(error) => return self.event(Kind::Warning, "ResizeError", error.to_string()),
            }
        }
        if containers.is_empty() && restarts.is_empty() {
            return;
        }
        let (Ok(was), Ok(is)) = (spec::pod_resources(&before), spec::pod_resources(&now)) else { return };
        containers.retain(|(name, _)| self.lifecycle.slots.iter().any(|slot| slot.name == *name && slot.is_running()));
        let (resize, sender) = (Resize { pod, whole: (was, is), containers }, self.sender.clone());
        tokio::spawn(async move {
            let done = resize.run().await.map_err(|error| ErrorChain(&error).to_string());
            tell(&sender, Message::Resized(done)).await;
        });
        let deadline = after(Timestamp::now(), self.lifecycle.grace);
        for name in restarts {
            let Some((index, slot)) = self.lifecycle.slots.iter().enumerate().find(|(_, slot)| slot.name == name)
            else {
                continue;
            };
            let attempt = slot.restarts;
            let message = format!("Container {name} resize requires restart");
            self.container_event(&name, Kind::Normal, "Killing", message);
            self.lifecycle.end_unwell(index, attempt, deadline);
        }
    }

    /// The limits of the containers are those of the spec, or could not be set.
    pub(super) fn resized(&mut self, done: Result<(), String>) {
        match done {
            Ok(()) => self.note_resources(),
            Err(why) => self.event(Kind::Warning, "ResizeError", why),
        }
    }

    /// What the containers may use from now on, for the status.
    pub(super) fn note_resources(&mut self) {
        let spec = self.object.spec.clone().unwrap_or_default();
        let named = |container: &Container| {
            let resources =
                container.resources.clone().filter(|resources| *resources != ResourceRequirements::default());
            Some((container.name.clone(), resources?))
        };
        self.resources = spec::containers(&spec).filter_map(|(_, container)| named(container)).collect();
    }
}

/// Whether one of the amounts that change is one that the program has to be started anew for.
fn wants_another_run(was: &Container, now: &Container) -> bool {
    let amounts = |container: &Container, name: &str| {
        let resources = container.resources.clone().unwrap_or_default();
        let of = |map: Option<std::collections::BTreeMap<String, _>>| map.and_then(|mut map| map.remove(name));
        (of(resources.limits), of(resources.requests))
    };
    let policies = now.resize_policy.iter().flatten();
    policies
        .filter(|policy| policy.restart_policy == "RestartContainer")
        .any(|policy| amounts(was, &policy.resource_name) != amounts(now, &policy.resource_name))
}
