//! The ends of pods and containers, wished for or not.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sampan_kit::error_chain::ErrorChain;
use sampan_runtime::container::signal_number;
use sampan_sandbox::SandboxError;
use tonic::Status;

use super::{ContainerEntry, Engine, PodEntry, locked, now};
use crate::error::CallError;
use crate::limits::{BEGINNING, BEGINNING_PAUSE, KILL_DEADLINE, POD_STOP_GRACE, STOP_TIMEOUT_MAX};
use crate::proto::v1::{ContainerEventType, Signal};
use crate::records::Phase;

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;
/// What a shell says of a process that SIGKILL ended.
const KILLED: i32 = 128 + SIGKILL;

/// The kernel drops signals that the first process of a pid namespace does not handle (pid_namespaces(7)). A program that
/// began only a moment ago is given another to say that it does; asked too early, it would not hear of it and be killed in
/// the end. One that never does loses nothing by that.
async fn until_heard(container: &ContainerEntry, signal: i32) {
    let pid = container.pid.load(Ordering::Relaxed);
    let age = || Duration::from_nanos(u64::try_from(now() - container.record.borrow().started_at).unwrap_or(u64::MAX));
    while pid != 0 && age() < BEGINNING && container.phase() == Phase::Running {
        // One that cannot be looked at is gone.
        let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return };
        if is_heard(&status, signal) {
            return;
        }
        tokio::time::sleep(BEGINNING_PAUSE).await;
    }
}

/// Whether a signal reaches a process of which this is `/proc/PID/status`: it is not the first of its namespace, or it
/// catches, ignores or blocks the signal. What is blocked waits for it, as for whoever reads signals from a descriptor.
fn is_heard(status: &str, signal: i32) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let mask = |name: &str| u64::from_str_radix(field(name), 16).unwrap_or_default();
    let bit = u32::try_from(signal - 1).ok().and_then(|place| 1_u64.checked_shl(place)).unwrap_or_default();
    let is_first = field("NSpid:").split_whitespace().next_back() == Some("1");
    !is_first || (mask("SigCgt:") | mask("SigIgn:") | mask("SigBlk:")) & bit != 0
}

impl Engine {
    /// Asks a container to end and kills it when the time is over. One that is not known, or does not run, is no failure.
    pub(crate) async fn stop_container(&self, id: &str, timeout_seconds: i64) -> Result<(), CallError> {
        let Ok(container) = self.container(id) else { return Ok(()) };
        let grace = Duration::from_secs(u64::try_from(timeout_seconds).unwrap_or_default()).min(STOP_TIMEOUT_MAX);
        let signal = self.stop_signal(&container);
        let asked = async {
            until_heard(&container, signal).await;
            if self.signal(&container, signal).await? {
                container.ended().await;
            }
            Ok::<(), CallError>(())
        };
        if !grace.is_zero()
            && let Ok(asked) = tokio::time::timeout(grace, asked).await
        {
            asked?;
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
            engine.drop_container(&container);
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
        // One whose start was under way may be noted as running only now; who notes that later sees that the pod is gone.
        for container in self.containers_of(pod) {
            self.note_lost(&container, why)?;
        }
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

#[cfg(test)]
mod tests {
    use super::is_heard;

    #[test]
    fn who_hears_a_signal() {
        let status = |pids: &str, blocked: &str, ignored: &str, caught: &str| {
            format!(
                "Name:\tsh\nNSpid:\t{pids}\nSigPnd:\t0\nSigBlk:\t{blocked}\nSigIgn:\t{ignored}\nSigCgt:\t{caught}\n"
            )
        };
        let term = "0000000000004000";
        for (blocked, ignored, caught) in [(term, "0", "0"), ("0", term, "0"), ("0", "0", term)] {
            let status = status("4711\t1", blocked, ignored, caught);
            assert!(is_heard(&status, 15) && !is_heard(&status, 3), "{status}");
        }
        assert!(!is_heard(&status("4711\t1", "0", "0", "0"), 15), "the first of its namespace, which does not say");
        assert!(is_heard(&status("4711\t12", "0", "0", "0"), 15), "one among others");
        assert!(is_heard(&status("4711\t1", "0", "0", "8000000000000000"), 64), "the last signal");
    }
}
