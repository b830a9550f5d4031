//! What pods and containers use.
//!
//! A pod's groups are read together, at most every [`STATS_FRESH`]; who asks in between gets the same figures. Reading is
//! short blocking file work, off the event loop, and waits for nothing that the pod does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use sampan_network::Usage;
use sampan_runtime::pod::Pod;
use sampan_sandbox::GroupUsage;

use super::{ContainerEntry, Engine, PodEntry, locked, now};
use crate::error::CallError;
use crate::limits::{STATS_DEADLINE, STATS_FRESH};
use crate::proto::v1::{
    ContainerAttributes, ContainerStats, ContainerStatsFilter, CpuUsage, FilesystemIdentifier, FilesystemUsage,
    LinuxPodSandboxStats, MemoryUsage, NetworkInterfaceUsage, NetworkUsage, PodSandboxAttributes, PodSandboxStats,
    PodSandboxStatsFilter, ProcessUsage, SwapUsage, UInt64Value,
};
use crate::records::Phase;

/// The pod's own interface, as it is called inside.
const INTERFACE: &str = "eth0";

/// One look at a pod.
#[derive(Debug, Clone, Default)]
pub(super) struct Sample {
    /// Nanoseconds since 1970.
    at: i64,
    pod: GroupUsage,
    containers: HashMap<String, GroupUsage>,
    disk_used_bytes: u64,
}

impl Sample {
    /// Reads files of the kernel's; blocks shortly.
    fn of(live: &Pod) -> Result<Self, CallError> {
        let stats = live.sandbox().stats_now()?;
        Ok(Self {
            at: now(),
            pod: stats.pod,
            containers: stats.containers.into_iter().collect(),
            disk_used_bytes: live.disk_usage().map(|(used, _)| used).unwrap_or_default(),
        })
    }
}

/// The newest look at a pod, and the one before it.
type Looks = (Arc<Sample>, Option<Arc<Sample>>);

/// The last looks at a pod, and when the newest was taken.
#[derive(Debug, Default)]
pub(super) struct Figures(Mutex<Option<(Instant, Looks)>>);

impl Figures {
    fn fresh(&self) -> Option<Looks> {
        let kept = locked(&self.0);
        kept.as_ref().filter(|(taken, _)| taken.elapsed() < STATS_FRESH).map(|(_, looks)| looks.clone())
    }

    fn keep(&self, sample: Arc<Sample>) -> Option<Arc<Sample>> {
        let mut kept = locked(&self.0);
        let before = kept.take().map(|(_, (newest, _))| newest);
        *kept = Some((Instant::now(), (sample, before.clone())));
        before
    }
}

fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

/// Cores in use between two looks, in billionths.
fn nano_cores(now: (i64, u64), before: Option<(i64, u64)>) -> Option<u64> {
    let (at, used) = now;
    let (at_before, used_before) = before?;
    let passed = u128::try_from(at.checked_sub(at_before)?).ok().filter(|passed| *passed > 0)?;
    let used = u128::from(used.checked_sub(used_before)?);
    u64::try_from(used * 1_000_000_000 / passed).ok()
}

fn cpu(at: i64, usage: &GroupUsage, before: Option<(i64, &GroupUsage)>) -> CpuUsage {
    let before = before.map(|(at, usage)| (at, usage.cpu_nanoseconds));
    CpuUsage {
        timestamp: at,
        usage_core_nano_seconds: value(usage.cpu_nanoseconds),
        usage_nano_cores: nano_cores((at, usage.cpu_nanoseconds), before).and_then(value),
        psi: None,
    }
}

fn memory(at: i64, usage: &GroupUsage) -> MemoryUsage {
    MemoryUsage {
        timestamp: at,
        working_set_bytes: value(usage.memory_working_set_bytes),
        usage_bytes: value(usage.memory_usage_bytes),
        rss_bytes: value(usage.memory_rss_bytes),
        page_faults: value(usage.page_faults),
        major_page_faults: value(usage.major_page_faults),
        ..MemoryUsage::default()
    }
}

/// The same limit as the group's, where it has one: what is left of it.
fn with_room(mut memory: MemoryUsage, limit: i64, used: u64) -> MemoryUsage {
    memory.available_bytes =
        u64::try_from(limit).ok().filter(|limit| *limit > 0).and_then(|limit| value(limit.saturating_sub(used)));
    memory
}

impl Engine {
    /// The newest look at a pod, and the one before; a new one where that is old.
    async fn look(&self, pod: &PodEntry, live: &Arc<Pod>) -> Result<Looks, CallError> {
        if let Some(kept) = pod.figures.fresh() {
            return Ok(kept);
        }
        let looked_at = Arc::clone(live);
        let sample = tokio::task::spawn_blocking(move || Sample::of(&looked_at));
        let late = |_elapsed| CallError::Deadline(format!("the figures of pod {} cannot be read in time", pod.id));
        let sample = tokio::time::timeout(STATS_DEADLINE, sample).await.map_err(late)?;
        let sample = Arc::new(sample.map_err(|_panic| CallError::Broken)??);
        let before = pod.figures.keep(Arc::clone(&sample));
        Ok((sample, before))
    }

    /// Looks at many pods in one go; each that cannot be looked at is missed when its turn comes.
    async fn look_at_all(&self, pods: impl Iterator<Item = Arc<PodEntry>>) {
        let old = |pod: &Arc<PodEntry>| pod.figures.fresh().is_none();
        let old: Vec<_> = pods.filter(old).filter_map(|pod| pod.live().map(|live| (pod, live))).collect();
        let looking = tokio::task::spawn_blocking(move || {
            for (pod, live) in old {
                if let Ok(sample) = Sample::of(&live) {
                    pod.figures.keep(Arc::new(sample));
                }
            }
        });
        // What is late or fails here is asked for once more by itself, and says why.
        tokio::time::timeout(STATS_DEADLINE, looking).await.ok();
    }

    /// Figures of a container; none of one that does not run.
    pub(crate) async fn container_stats(&self, container: &ContainerEntry) -> Result<ContainerStats, CallError> {
        let live = container.pod.live().filter(|_| container.phase() == Phase::Running);
        let Some(live) = live else { return Ok(described(container)) };
        let (sample, before) = self.look(&container.pod, &live).await?;
        Ok(self.of_container(container, &sample, before.as_deref()))
    }

    fn of_container(&self, container: &ContainerEntry, sample: &Sample, before: Option<&Sample>) -> ContainerStats {
        let Some(usage) = sample.containers.get(container.run_name()) else { return described(container) };
        let earlier =
            before.and_then(|before| before.containers.get(container.run_name()).map(|usage| (before.at, usage)));
        let limit = container.read(|record| record.resources.as_ref().map_or(0, |limits| limits.memory_limit_in_bytes));
        // Containers of a pod share its disk. A share each adds up to what there is.
        let sharing = u64::try_from(sample.containers.len()).unwrap_or(1).max(1);
        ContainerStats {
            cpu: Some(cpu(sample.at, usage, earlier)),
            memory: Some(with_room(memory(sample.at, usage), limit, usage.memory_working_set_bytes)),
            writable_layer: Some(FilesystemUsage {
                timestamp: sample.at,
                fs_id: Some(FilesystemIdentifier { mountpoint: self.image_folder() }),
                used_bytes: value(sample.disk_used_bytes / sharing),
                inodes_used: value(0),
            }),
            swap: Some(SwapUsage { timestamp: sample.at, swap_usage_bytes: value(0), ..SwapUsage::default() }),
            ..described(container)
        }
    }

    pub(crate) async fn list_container_stats(&self, filter: &ContainerStatsFilter) -> Vec<ContainerStats> {
        let is_wanted = |container: &Arc<ContainerEntry>| {
            container.phase() == Phase::Running
                && container.read(|record| {
                    let none = HashMap::new();
                    let labels = record.config.as_ref().map_or(&none, |config| &config.labels);
                    filter.takes(&container.id, &container.pod.id, labels)
                })
        };
        let wanted: Vec<_> = self.all_containers().into_iter().filter(is_wanted).collect();
        self.look_at_all(wanted.iter().map(|container| Arc::clone(&container.pod))).await;
        let mut all = Vec::with_capacity(wanted.len());
        for container in wanted {
            // One that ends while it is looked at is left out.
            all.extend(self.container_stats(&container).await.ok());
        }
        all
    }

    pub(crate) async fn pod_stats(&self, pod: &PodEntry, usage: Option<Usage>) -> Result<PodSandboxStats, CallError> {
        let attributes = pod.read(|record| {
            let config = record.config.as_ref();
            PodSandboxAttributes {
                id: pod.id.clone(),
                metadata: config.and_then(|config| config.metadata.clone()),
                labels: config.map(|config| config.labels.clone()).unwrap_or_default(),
                annotations: config.map(|config| config.annotations.clone()).unwrap_or_default(),
            }
        });
        let Some(live) = pod.live() else {
            return Ok(PodSandboxStats { attributes: Some(attributes), ..PodSandboxStats::default() });
        };
        let (sample, before) = self.look(pod, &live).await?;
        let usage = match usage {
            Some(usage) => Some(usage),
            None if pod.read(|record| record.addresses.is_empty()) => None,
            None => self.runtime.network().usage(live.id()).await.ok(),
        };
        let running = self.containers_of(pod).into_iter().filter(|one| one.phase() == Phase::Running);
        let linux = LinuxPodSandboxStats {
            cpu: Some(cpu(sample.at, &sample.pod, before.as_ref().map(|before| (before.at, &before.pod)))),
            memory: Some(memory(sample.at, &sample.pod)),
            network: usage.map(|usage| network(sample.at, usage)),
            process: Some(ProcessUsage { timestamp: sample.at, process_count: value(sample.pod.pids) }),
            containers: running.map(|one| self.of_container(&one, &sample, before.as_deref())).collect(),
            io: None,
        };
        Ok(PodSandboxStats { attributes: Some(attributes), linux: Some(linux), windows: None })
    }

    pub(crate) async fn list_pod_stats(&self, filter: &PodSandboxStatsFilter) -> Vec<PodSandboxStats> {
        let network = self.runtime.network().usage_of_all().await.unwrap_or_default();
        let is_wanted = |pod: &Arc<PodEntry>| {
            pod.read(|record| {
                let none = HashMap::new();
                filter.takes(&pod.id, record.config.as_ref().map_or(&none, |config| &config.labels))
            })
        };
        let wanted: Vec<_> = self.all_pods().into_iter().filter(is_wanted).collect();
        self.look_at_all(wanted.iter().cloned()).await;
        let mut all = Vec::with_capacity(wanted.len());
        for pod in wanted {
            let Some(live) = pod.live() else { continue };
            all.extend(self.pod_stats(&pod, network.get(live.id()).copied()).await.ok());
        }
        all
    }
}

fn network(at: i64, usage: Usage) -> NetworkUsage {
    let interface = NetworkInterfaceUsage {
        name: INTERFACE.to_owned(),
        rx_bytes: value(usage.received_bytes),
        rx_errors: value(0),
        tx_bytes: value(usage.sent_bytes),
        tx_errors: value(0),
    };
    NetworkUsage { timestamp: at, default_interface: Some(interface.clone()), interfaces: vec![interface] }
}

fn described(container: &ContainerEntry) -> ContainerStats {
    let attributes = container.read(|record| {
        let config = record.config.as_ref();
        ContainerAttributes {
            id: container.id.clone(),
            metadata: config.and_then(|config| config.metadata.clone()),
            labels: config.map(|config| config.labels.clone()).unwrap_or_default(),
            annotations: config.map(|config| config.annotations.clone()).unwrap_or_default(),
        }
    });
    ContainerStats { attributes: Some(attributes), ..ContainerStats::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_in_use_need_two_looks_in_order() {
        let second = 1_000_000_000;
        assert_eq!(nano_cores((2 * second, 700_000_000), Some((second, 200_000_000))), Some(500_000_000));
        assert_eq!(nano_cores((second, 5), None), None);
        assert_eq!(nano_cores((second, 5), Some((second, 1))), None);
        assert_eq!(nano_cores((2 * second, 5), Some((second, 9))), None);
    }
}
