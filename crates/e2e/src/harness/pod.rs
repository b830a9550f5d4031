//! What tests ask of pods, in one place: their state, their conditions, their events.

use anyhow::{Context, Result};
use serde_json::Value;

use super::wait::{eventually, until};
use crate::service::Service;

/// A string inside an object; empty when there is none.
pub fn text<'value>(object: &'value Value, pointer: &str) -> &'value str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The first container's part of the status.
pub fn first_status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

impl Service {
    /// The pod as the API shows it.
    pub fn pod(&self, name: &str) -> Result<Value> {
        self.sampan(["inspect", name]).finish()?.json()
    }

    /// Waits until the pod is as `wanted`.
    pub fn wait_for_pod(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let found = eventually(&format!("{name} is {what}"), || {
            last = self.pod(name)?;
            Ok(wanted(&last).then(|| last.clone()))
        });
        found.with_context(|| format!("its status: {}", last["status"]))
    }

    /// Waits for a phase.
    pub fn wait_for_phase(&self, name: &str, phase: &str) -> Result<Value> {
        self.wait_for_pod(name, phase, |pod| text(pod, "/status/phase") == phase)
    }

    /// Waits for an event about a pod.
    pub fn wait_for_event(&self, pod: &str, reason: &str) -> Result<Value> {
        let selector = format!("involvedObject.name={pod},reason={reason}");
        eventually(&format!("an event {reason} about {pod}"), || {
            let list = self.kubectl(["get", "events", "-o", "json", "--field-selector", &selector]).finish()?.json()?;
            Ok(list["items"].get(0).cloned())
        })
    }

    /// Starts an instance of busybox in the background that does `script`.
    pub fn background(&self, name: &str, script: &str) -> Result<()> {
        let busybox = self.busybox()?;
        self.sampan(["run", "-d", "--name", name, &busybox, "sh", "-c", script]).ok().map(drop)
    }

    /// Runs a shell script inside; gives what it printed.
    pub fn inside(&self, name: &str, script: &str) -> Result<String> {
        self.sampan(["exec", name, "sh", "-c", script]).ok()
    }

    /// Ends and removes instances.
    pub fn remove<'name>(&self, names: impl IntoIterator<Item = &'name str>) -> Result<()> {
        self.sampan(["rm", "-f"].into_iter().chain(names)).ok().map(drop)
    }

    /// Applies a manifest with kubectl.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        self.kubectl(["apply", "-f", "-"]).input(manifest).ok()
    }

    /// Waits until nothing of that name is there.
    pub fn wait_until_gone(&self, name: &str) -> Result<()> {
        until(&format!("{name} is gone"), || Ok(self.sampan(["inspect", name]).finish()?.code != 0))
    }
}
