//! The ends of pods and containers, wished for or not.

use std::sync::Arc;
use std::time::Duration;

use sampan_kit::error_chain::ErrorChain;
use sampan_sandbox::SandboxError;
use tonic::Status;

use super::{ContainerEntry, Engine, PodEntry, locked, now};
use crate::error::CallError;
use crate::limits::{KILL_DEADLINE, POD_STOP_GRACE, STOP_TIMEOUT_MAX};
use crate::proto::v1::{ContainerEventType, Signal};
use crate::records::Phase;
use crate::translate::signal_number;

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;
/// What a shell says of a process that SIGKILL ended.
const KILLED: i32 = 128 + SIGKILL;

impl Engine {
    /// Asks a container to end and kills it when the time is over. One that is not known, or does not run, is no failure.
    pub(crate) async fn stop_container(&self, id: &str, timeout_seconds: i64) -> Result<(), CallError> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        let grace = Duration::from_secs(u64::try_from(timeout_seconds).unwrap_or_default()).min(STOP_TIMEOUT_MAX);
        if !grace.is_zero() && self.signal(&container, self.stop_signal(&container)).await? {
            // Over or not: the next step tells.
            drop(tokio::time::timeout(grace, container.ended()).await);
        }
        self.kill(&container).await
    }

    /// Kills a container and waits until it is gone.
    pub(super) async fn kill(&self, container: &ContainerEntry) -> Result<(), CallError> {
        if !self.signal(container, SIGKILL).await? {
            return Ok(());
        }
        let ended = tokio::time::timeout(KILL_DEADLINE, container.ended()).await;
        ended.map_err(|_elapsed| {
            let seconds = KILL_DEADLINE.as_secs();
            CallError::Deadline(format!("container {} was killed and is still there after {seconds} s", container.id))
        })
    }

    /// Whether there was anything to signal.
    async fn signal(&self, container: &ContainerEntry, signal: i32) -> Result<bool, CallError> {
        let Some(live) = container.pod.live().filter(|_| container.phase() == Phase::Running) else { return Ok(false) };
        match live.sandbox().signal(container.run_name(), signal).await {
            Ok(()) => Ok(true),
            // It has just ended; its end is about to be told.
            Err(SandboxError::NoSuchContainer { .. } | SandboxError::AgentGone) => {
                Ok(container.phase() == Phase::Running)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The container's, else its image's, else SIGTERM.
    pub(super) fn stop_signal(&self, container: &ContainerEntry) -> i32 {
        let record = container.record();
        let wanted = record.config.as_ref().map_or(Signal::RuntimeDefault, |config| config.stop_signal());
        if wanted != Signal::RuntimeDefault {
            return signal_number(wanted.as_str_name()).unwrap_or(SIGTERM);
        }
        let image = container.images.first().map(|image| image.config.config.stop_signal.clone());
        image.and_then(|name| signal_number(&name)).unwrap_or(SIGTERM)
    }

    /// Removes a container, killing it first. One that is not known is no failure.
    pub(crate) async fn remove_container(self: &Arc<Self>, id: &str) -> Result<(), Status> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        let engine = Arc::clone(self);
        let key = format!("remove {}", container.id);
        let work = async move {
            engine.kill(&container).await?;
            engine.table.remove_container(&container.id)?;
            locked(&engine.containers).remove(&container.id);
            engine.tell(&container.id, ContainerEventType::ContainerDeletedEvent, &container.pod);
            Ok(String::new())
        };
        self.once(key, work).await.map(drop)
    }

    /// Takes a pod's sandbox away with whatever runs in it. The pod and its containers stay known.
    pub(super) async fn end_pod(self: Arc<Self>, pod: &Arc<PodEntry>, why: &str) -> Result<String, CallError> {
        let Some(live) = pod.live() else { return Ok(String::new()) };
        let containers = self.containers_of(pod);
        let running: Vec<_> = containers.iter().filter(|one| one.phase() == Phase::Running).collect();
        if !running.is_empty() {
            match live.sandbox().kill_all().await {
                Ok(()) => {
                    // How they ended is worth a moment; the sandbox goes in any case.
                    let all = async {
                        for container in &running {
                            container.ended().await;
                        }
                    };
                    drop(tokio::time::timeout(POD_STOP_GRACE, all).await);
                }
                Err(error) => {
                    tracing::debug!(pod = pod.id, error = %ErrorChain(&error), "a pod's containers end with their agent");
                }
            }
        }
        self.runtime.remove(&live).await?;
        for container in running {
            self.note_lost(container, why)?;
        }
        {
            let mut record = locked(&pod.record);
            let ended = crate::records::PodRecord { ready: false, ..record.clone() };
            self.table.put_pod(&ended)?;
            *record = ended;
        }
        locked(&pod.live).take();
        self.tell(&pod.id, ContainerEventType::ContainerStoppedEvent, pod);
        Ok(String::new())
    }

    /// Notes the end of a container that nobody saw end.
    pub(super) fn note_lost(&self, container: &ContainerEntry, why: &str) -> Result<(), CallError> {
        if container.phase() != Phase::Running {
            return Ok(());
        }
        self.change(container, |record| record.end(KILLED, "Error", why, now()))?;
        self.tell(&container.id, ContainerEventType::ContainerStoppedEvent, &container.pod);
        Ok(())
    }
}
