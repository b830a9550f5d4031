//! Figures under the names that cAdvisor gave them, for kubelets that leave them to the runtime.
//!
//! The interface carries whole numbers only, so that times are whole seconds. Everything is read when it is asked for, from
//! control groups and `/proc`; what the machine does not count is left out.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use sampan_runtime::pod::Pod;
use sampan_sandbox::ProcessSandbox;

use super::{ContainerEntry, Engine, PodEntry, now};
use crate::limits::METRIC_PROCESSES_MAX;
use crate::proto::v1::{ContainerMetrics, Metric, MetricDescriptor, MetricType, PodSandboxMetrics, UInt64Value};
use crate::records::Phase;

/// Labels of every metric, and their order.
const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// Name, help, further labels, and whether it only ever grows.
type Description = (&'static str, &'static str, &'static [&'static str], bool);

const DESCRIPTIONS: [Description; 46] = [
    (
        "container_blkio_device_usage_total",
        "Blkio device bytes usage",
        &["device", "major", "minor", "operation"],
        true,
    ),
    ("container_cpu_cfs_periods_total", "Elapsed enforcement periods", &[], true),
    ("container_cpu_cfs_throttled_periods_total", "Throttled periods", &[], true),
    ("container_cpu_cfs_throttled_seconds_total", "Seconds throttled", &[], true),
    ("container_cpu_system_seconds_total", "System processor seconds", &[], true),
    ("container_cpu_usage_seconds_total", "Processor seconds", &["cpu"], true),
    ("container_cpu_user_seconds_total", "User processor seconds", &[], true),
    ("container_file_descriptors", "Open file descriptors", &[], false),
    ("container_fs_inodes_free", "Inodes left", &["device"], false),
    ("container_fs_inodes_total", "Inodes", &["device"], false),
    ("container_fs_limit_bytes", "Bytes that the writable layer may hold", &["device"], false),
    ("container_fs_reads_bytes_total", "Bytes read", &["device"], true),
    ("container_fs_reads_total", "Reads completed", &["device"], true),
    ("container_fs_usage_bytes", "Bytes that the writable layer holds", &["device"], false),
    ("container_fs_writes_bytes_total", "Bytes written", &["device"], true),
    ("container_fs_writes_total", "Writes completed", &["device"], true),
    ("container_last_seen", "When the container was last seen", &[], false),
    ("container_memory_cache", "Bytes of page cache", &[], false),
    ("container_memory_failcnt", "How often the memory limit was hit", &[], true),
    ("container_memory_failures_total", "Page faults", &["failure_type", "scope"], true),
    ("container_memory_kernel_usage", "Bytes of kernel memory", &[], false),
    ("container_memory_mapped_file", "Bytes of mapped files", &[], false),
    ("container_memory_max_usage_bytes", "The most memory in use so far", &[], false),
    ("container_memory_rss", "Bytes of anonymous memory", &[], false),
    ("container_memory_swap", "Bytes in swap", &[], false),
    ("container_memory_usage_bytes", "Bytes of memory, cache included", &[], false),
    ("container_memory_working_set_bytes", "Bytes of memory that cannot be given back at once", &[], false),
    ("container_network_receive_bytes_total", "Bytes received", &["interface"], true),
    ("container_network_receive_errors_total", "Errors while receiving", &["interface"], true),
    ("container_network_receive_packets_dropped_total", "Packets dropped while receiving", &["interface"], true),
    ("container_network_receive_packets_total", "Packets received", &["interface"], true),
    ("container_network_transmit_bytes_total", "Bytes sent", &["interface"], true),
    ("container_network_transmit_errors_total", "Errors while sending", &["interface"], true),
    ("container_network_transmit_packets_dropped_total", "Packets dropped while sending", &["interface"], true),
    ("container_network_transmit_packets_total", "Packets sent", &["interface"], true),
    ("container_oom_events_total", "Out-of-memory kills", &[], true),
    ("container_processes", "Processes", &[], false),
    ("container_sockets", "Open sockets", &[], false),
    ("container_spec_cpu_period", "Period of the processor limit, in microseconds", &[], false),
    ("container_spec_cpu_quota", "Processor limit, in microseconds a period", &[], false),
    ("container_spec_cpu_shares", "Processor shares", &[], false),
    ("container_spec_memory_limit_bytes", "Memory limit; 0 for none", &[], false),
    ("container_spec_memory_swap_limit_bytes", "Limit of memory and swap; 0 for none", &[], false),
    ("container_start_time_seconds", "When the container began", &[], false),
    ("container_threads", "Threads", &[], false),
    ("container_threads_max", "The most threads that may be; 0 for any number", &[], false),
];

/// Ticks of `cpuacct.stat` in a second (`USER_HZ`, the same on every Linux that matters).
const USER_HZ: u64 = 100;
const NANOSECONDS: u64 = 1_000_000_000;
const MICROSECONDS: u64 = 1_000_000;
/// Limits near the end of the numbers mean none.
const UNLIMITED_FROM: u64 = i64::MAX as u64 / 2;

pub(crate) fn descriptors() -> Vec<MetricDescriptor> {
    let described = DESCRIPTIONS.iter().map(|(name, help, labels, _)| MetricDescriptor {
        name: (*name).to_owned(),
        help: (*help).to_owned(),
        label_keys: LABELS.iter().chain(*labels).map(|label| (*label).to_owned()).collect(),
    });
    described.collect()
}

/// The number behind a name in a file of `name number` lines.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// A file of one number, or `max`.
fn limit(text: &str) -> u64 {
    text.trim().parse().ok().filter(|limit| *limit < UNLIMITED_FROM).unwrap_or_default()
}

/// Collects metrics that bear the same labels.
struct Collector {
    labels: Vec<String>,
    at: i64,
    metrics: Vec<Metric>,
}

impl Collector {
    fn add(&mut self, name: &str, further: &[&str], value: Option<u64>) {
        let Some(value) = value else { return };
        let is_counter = DESCRIPTIONS.iter().any(|(known, _, _, counts)| *known == name && *counts);
        let metric_type = if is_counter { MetricType::Counter } else { MetricType::Gauge };
        let labels = self.labels.iter().cloned().chain(further.iter().map(|label| (*label).to_owned()));
        self.metrics.push(Metric {
            name: name.to_owned(),
            timestamp: self.at,
            metric_type: metric_type.into(),
            label_values: labels.collect(),
            value: Some(UInt64Value { value }),
        });
    }
}

/// A container's control group, as far as it is read here.
struct GroupReader<'a> {
    sandbox: &'a ProcessSandbox,
    container: &'a str,
}

impl GroupReader<'_> {
    fn text(&self, controller: &str, version1: &str, version2: &str) -> Option<(bool, String)> {
        self.sandbox.group_file(Some(self.container), controller, version1, version2)
    }

    fn number(&self, controller: &str, version1: &str, version2: &str) -> Option<u64> {
        self.text(controller, version1, version2)?.1.trim().parse().ok()
    }

    fn cpu(&self, into: &mut Collector) {
        if let Some((unified, text)) = self.text("cpu", "cpu.stat", "cpu.stat") {
            into.add("container_cpu_cfs_periods_total", &[], Some(field(&text, "nr_periods").unwrap_or_default()));
            let throttled = Some(field(&text, "nr_throttled").unwrap_or_default());
            into.add("container_cpu_cfs_throttled_periods_total", &[], throttled);
            let seconds = if unified {
                field(&text, "throttled_usec").unwrap_or_default() / MICROSECONDS
            } else {
                field(&text, "throttled_time").unwrap_or_default() / NANOSECONDS
            };
            into.add("container_cpu_cfs_throttled_seconds_total", &[], Some(seconds));
        }
        if let Some((unified, text)) = self.text("cpuacct", "cpuacct.stat", "cpu.stat") {
            let seconds = |version1: &str, version2: &str| match unified {
                true => field(&text, version2).map(|microseconds| microseconds / MICROSECONDS),
                false => field(&text, version1).map(|ticks| ticks / USER_HZ),
            };
            let (user, system) = (seconds("user", "user_usec"), seconds("system", "system_usec"));
            into.add("container_cpu_user_seconds_total", &[], user);
            into.add("container_cpu_system_seconds_total", &[], system);
        }
        if let Some((unified, text)) = self.text("cpuacct", "cpuacct.usage", "cpu.stat") {
            let seconds = match unified {
                true => field(&text, "usage_usec").map(|microseconds| microseconds / MICROSECONDS),
                false => text.trim().parse::<u64>().ok().map(|nanoseconds| nanoseconds / NANOSECONDS),
            };
            into.add("container_cpu_usage_seconds_total", &["total"], seconds);
        }
    }

    fn memory(&self, into: &mut Collector) {
        let usage = self.number("memory", "memory.usage_in_bytes", "memory.current");
        into.add("container_memory_usage_bytes", &[], usage);
        let peak = self.number("memory", "memory.max_usage_in_bytes", "memory.peak").or(usage);
        into.add("container_memory_max_usage_bytes", &[], peak);
        let Some((unified, text)) = self.text("memory", "memory.stat", "memory.stat") else { return };
        let of = |version1: &str, version2: &str| field(&text, if unified { version2 } else { version1 }).or(Some(0));
        into.add("container_memory_cache", &[], of("total_cache", "file"));
        into.add("container_memory_rss", &[], of("total_rss", "anon"));
        into.add("container_memory_mapped_file", &[], of("total_mapped_file", "file_mapped"));
        let inactive = of("total_inactive_file", "inactive_file").unwrap_or_default();
        into.add("container_memory_working_set_bytes", &[], usage.map(|usage| usage.saturating_sub(inactive)));
        let swap = self.number("memory", "memory.memsw.usage_in_bytes", "memory.swap.current");
        let swap = swap.map(|swap| if unified { swap } else { swap.saturating_sub(usage.unwrap_or_default()) });
        into.add("container_memory_swap", &[], swap.or(Some(0)));
        for (kind, all, name) in
            [("pgfault", "total_pgfault", "pgfault"), ("pgmajfault", "total_pgmajfault", "pgmajfault")]
        {
            into.add("container_memory_failures_total", &[kind, "container"], of(name, name));
            into.add("container_memory_failures_total", &[kind, "hierarchy"], of(all, name));
        }
        let kernel =
            if unified { field(&text, "kernel") } else { self.number("memory", "memory.kmem.usage_in_bytes", "") };
        into.add("container_memory_kernel_usage", &[], kernel.or(Some(0)));
        let events = self.text("memory", "memory.oom_control", "memory.events").map(|(_, text)| text);
        let kills = events.as_ref().map(|text| field(text, "oom_kill").unwrap_or_default());
        into.add("container_oom_events_total", &[], kills);
        let failures = match &events {
            Some(text) if unified => field(text, "max"),
            _ => self.number("memory", "memory.failcnt", ""),
        };
        into.add("container_memory_failcnt", &[], failures.or(Some(0)));
        let most = self.text("memory", "memory.limit_in_bytes", "memory.max").map(|(_, text)| limit(&text));
        into.add("container_spec_memory_limit_bytes", &[], most);
        let swap = self.text("memory", "memory.memsw.limit_in_bytes", "memory.swap.max");
        into.add("container_spec_memory_swap_limit_bytes", &[], swap.map(|(_, text)| limit(&text)).or(most));
    }

    fn processes(&self, into: &mut Collector) {
        let Some((_, text)) = self.text("pids", "cgroup.procs", "cgroup.procs") else { return };
        let pids: Vec<&str> = text.lines().take(METRIC_PROCESSES_MAX).collect();
        into.add("container_processes", &[], u64::try_from(pids.len()).ok());
        let (mut descriptors, mut sockets) = (0, 0);
        for pid in pids {
            let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
            for entry in entries.flatten() {
                descriptors += 1;
                let target = std::fs::read_link(entry.path()).unwrap_or_default();
                sockets += u64::from(target.to_string_lossy().starts_with("socket:"));
            }
        }
        into.add("container_file_descriptors", &[], Some(descriptors));
        into.add("container_sockets", &[], Some(sockets));
        into.add("container_threads", &[], self.number("pids", "pids.current", "pids.current"));
        let most = self.text("pids", "pids.max", "pids.max").map(|(_, text)| limit(&text));
        into.add("container_threads_max", &[], most);
    }
}

impl Engine {
    /// Every ready pod's figures.
    pub(crate) async fn pod_metrics(self: &Arc<Self>) -> Vec<PodSandboxMetrics> {
        let mut all = Vec::new();
        for pod in self.all_pods() {
            let Some(live) = pod.live() else { continue };
            let interface = match self.runtime.network().attachment(live.id()).await {
                Ok(Some(attachment)) => Some(attachment.host_interface),
                _ => None,
            };
            let engine = Arc::clone(self);
            let read = tokio::task::spawn_blocking(move || engine.read_pod_metrics(&pod, &live, interface.as_deref()));
            all.extend(read.await.ok());
        }
        all
    }

    fn read_pod_metrics(&self, pod: &PodEntry, live: &Pod, interface: Option<&str>) -> PodSandboxMetrics {
        let metadata = pod.config().metadata.unwrap_or_default();
        let labels = ["", &pod.id, "", live.id(), &metadata.namespace, &metadata.name].map(str::to_owned);
        let mut collector = Collector { labels: labels.into(), at: now(), metrics: Vec::new() };
        if let Some(interface) = interface {
            network(interface, &mut collector);
        }
        let running = self.containers_of(pod).into_iter().filter(|one| one.phase() == Phase::Running);
        PodSandboxMetrics {
            pod_sandbox_id: pod.id.clone(),
            metrics: collector.metrics,
            container_metrics: running
                .map(|container| ContainerMetrics {
                    container_id: container.id.clone(),
                    metrics: read_container(&container, live, &metadata.namespace, &metadata.name),
                })
                .collect(),
        }
    }
}

fn read_container(container: &ContainerEntry, live: &Pod, namespace: &str, pod: &str) -> Vec<Metric> {
    let record = container.record();
    let name = record.config.as_ref().and_then(|config| config.metadata.as_ref()).map(|metadata| metadata.name.clone());
    let name = name.unwrap_or_default();
    let labels = [&name, &container.id, &record.image_ref, container.run_name(), namespace, pod].map(str::to_owned);
    let mut into = Collector { labels: labels.into(), at: now(), metrics: Vec::new() };
    let group = GroupReader { sandbox: live.sandbox(), container: container.run_name() };
    group.cpu(&mut into);
    group.memory(&mut into);
    group.processes(&mut into);
    let seconds = |nanoseconds: i64| u64::try_from(nanoseconds).ok().map(|nanoseconds| nanoseconds / NANOSECONDS);
    into.add("container_last_seen", &[], seconds(into.at));
    into.add("container_start_time_seconds", &[], seconds(record.started_at));
    let resources = record.resources.unwrap_or_default();
    let asked =
        |number: i64, otherwise: u64| Some(u64::try_from(number).ok().filter(|it| *it > 0).unwrap_or(otherwise));
    into.add("container_spec_cpu_period", &[], asked(resources.cpu_period, 100_000));
    into.add("container_spec_cpu_shares", &[], asked(resources.cpu_shares, 1024));
    into.add("container_spec_cpu_quota", &[], u64::try_from(resources.cpu_quota).ok().filter(|quota| *quota > 0));
    if let Ok(disk) = live.disk_figures() {
        into.add("container_fs_limit_bytes", &["disk"], Some(disk.total_bytes));
        into.add("container_fs_usage_bytes", &["disk"], Some(disk.used_bytes));
        into.add("container_fs_inodes_total", &["disk"], Some(disk.total_inodes));
        into.add("container_fs_inodes_free", &["disk"], Some(disk.free_inodes));
    }
    into.metrics
}

/// What the host's end of the pod's cable counts, seen from the other end.
fn network(interface: &str, into: &mut Collector) {
    let folder = Path::new("/sys/class/net").join(interface).join("statistics");
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
    let kinds: HashMap<&str, &str> =
        [("bytes", "bytes"), ("errors", "errors"), ("packets", "packets"), ("packets_dropped", "dropped")].into();
    for (metric, file) in kinds {
        for (inside, outside) in [("receive", "tx"), ("transmit", "rx")] {
            let name = format!("container_network_{inside}_{metric}_total");
            into.add(&name, &["eth0"], read(&format!("{outside}_{file}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_described_once_and_in_cadvisors_way() {
        let mut names: Vec<&str> = DESCRIPTIONS.iter().map(|(name, ..)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DESCRIPTIONS.len());
        assert!(names.iter().all(|name| name.starts_with("container_")));
    }

    #[test]
    fn no_limit_is_zero() {
        assert_eq!(limit("max\n"), 0);
        assert_eq!(limit("9223372036854771712\n"), 0);
        assert_eq!(limit("67108864\n"), 64 << 20);
    }
}
