//! What a pod's agent tells by itself: ends of containers, and its own.

use std::sync::Arc;

use sampan_kit::error_chain::ErrorChain;
use sampan_runtime::pod::Pod;
use sampan_sandbox::SandboxEvent;
use tokio::sync::mpsc;

use super::{Engine, PodEntry, nanoseconds};
use crate::proto::v1::ContainerEventType;

impl Engine {
    /// Follows a pod's events in a task of its own until its sandbox is gone. It holds neither the engine nor the runtime's
    /// half of the pod, whose disk and namespaces go with the last who holds it; the events end then.
    pub(super) fn follow(
        self: &Arc<Self>,
        pod: Arc<PodEntry>,
        live: &Arc<Pod>,
        mut events: mpsc::Receiver<SandboxEvent>,
    ) {
        let (engine, live) = (Arc::downgrade(self), Arc::downgrade(live));
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                // The service may be ending; the next one is told again.
                let Some(engine) = engine.upgrade() else { return };
                let live = live.upgrade();
                if !engine.take(&pod, live.as_deref(), event).await {
                    return;
                }
            }
        });
    }

    /// Notes one event; false after the last one.
    pub(super) async fn take(self: &Arc<Self>, pod: &Arc<PodEntry>, live: Option<&Pod>, event: SandboxEvent) -> bool {
        let exit = match event {
            SandboxEvent::ContainerExited { .. } => event,
            SandboxEvent::AgentLost { reason } => {
                tracing::warn!(pod = pod.id, reason, "a pod has lost its agent and ends");
                let (engine, lost) = (Arc::clone(self), Arc::clone(pod));
                let key = format!("stop {}", pod.id);
                let ended = self.once(key, async move { engine.end_pod(&lost, &reason).await }).await;
                if let Err(error) = ended {
                    tracing::error!(pod = pod.id, %error, "a lost pod cannot be taken away; the next stop tries again");
                }
                return false;
            }
        };
        if let Err(error) = self.note_exit(live, exit).await {
            // Not acknowledged, so that the agent tells it again after the next start of the service.
            tracing::error!(pod = pod.id, error = %ErrorChain(&error), "the end of a container cannot be noted");
        }
        true
    }

    async fn note_exit(&self, live: Option<&Pod>, event: SandboxEvent) -> Result<(), crate::error::CallError> {
        let SandboxEvent::ContainerExited { event_id, container, code, oom_killed, started_at, finished_at, .. } =
            event
        else {
            return Ok(());
        };
        let reason = match (oom_killed, code) {
            (true, _) => "OOMKilled",
            (false, 0) => "Completed",
            _ => "Error",
        };
        // The sandbox knows it by the beginning of its id.
        if let Ok(known) = self.container(&container) {
            self.change(&known, |record| {
                record.started_at = nanoseconds(started_at);
                record.end(code, reason, "", nanoseconds(finished_at));
            })?;
            self.tell(&known.id, ContainerEventType::ContainerStoppedEvent, &known.pod);
        }
        let Some(live) = live else { return Ok(()) };
        if let Err(error) = live.sandbox().acknowledge(event_id).await {
            // The agent has gone with what it would have forgotten.
            tracing::debug!(error = %ErrorChain(&error), "an end that is noted cannot be acknowledged");
        }
        Ok(())
    }
}
