//! The kubelet's Summary (`k8s.io/kubelet/pkg/apis/stats/v1alpha1`) and Prometheus metrics of the node.

use std::fmt::Write as _;
use std::sync::Arc;

use jiff::Timestamp;
use sampan_network::Usage;
use sampan_runtime::pod::Pod;
use sampan_sandbox::{GroupUsage, SandboxStats};
use serde_json::{Value, json};

use crate::node::Node;
use crate::worker::View;

/// One running pod with what it uses.
struct Measured {
    pod: Arc<Pod>,
    stats: SandboxStats,
    network: Usage,
    disk: (u64, u64),
}

impl Node {
    async fn measure(&self) -> Vec<Measured> {
        let pods: Vec<Arc<Pod>> =
            self.all_workers().iter().filter_map(|(_, handle)| handle.view.borrow().pod.clone()).collect();
        let network = self.services.runtime.network().usage_of_all().await.unwrap_or_default();
        let mut measured = Vec::with_capacity(pods.len());
        for pod in pods {
            // A pod that ends while it is measured is left out.
            let Ok(stats) = pod.sandbox().stats().await else { continue };
            let network = network.get(pod.id()).copied().unwrap_or_default();
            let disk = pod.disk_usage().unwrap_or_default();
            measured.push(Measured { pod, stats, network, disk });
        }
        measured
    }

    pub(super) async fn stats_summary(&self) -> Value {
        let time = format!("{:.0}", Timestamp::now());
        let pods: Vec<Value> = self.measure().await.iter().map(|one| summary(one, &time)).collect();
        json!({"node": {"nodeName": self.name()}, "pods": pods})
    }

    /// Prometheus text: pods by state, and what each container uses.
    pub(super) async fn metrics(&self) -> String {
        let mut text = String::from(
            "# HELP sampan_pods Pods on this node by whether their sandbox is there.\n# TYPE sampan_pods gauge\n",
        );
        let live = |view: &View| view.pod.is_some();
        let (mut running, mut other) = (0_u64, 0_u64);
        for (_, handle) in self.all_workers() {
            *(if live(&handle.view.borrow()) { &mut running } else { &mut other }) += 1;
        }
        let mut line = |args: std::fmt::Arguments<'_>| {
            if text.write_fmt(args).is_err() {
                tracing::error!("metrics could not be formatted");
            }
        };
        line(format_args!("sampan_pods{{sandbox=\"live\"}} {running}\nsampan_pods{{sandbox=\"none\"}} {other}\n"));
        line(format_args!("{}", self.services.images.counters()));
        line(format_args!(
            "# HELP sampan_container_cpu_seconds_total CPU time used.\n# TYPE sampan_container_cpu_seconds_total counter\n\
             # HELP sampan_container_memory_working_set_bytes Memory that cannot be reclaimed.\n\
             # TYPE sampan_container_memory_working_set_bytes gauge\n"
        ));
        for one in self.measure().await {
            let config = one.pod.config();
            for (container, usage) in &one.stats.containers {
                let labels =
                    format!("namespace=\"{}\",pod=\"{}\",container=\"{container}\"", config.namespace, config.name);
                let seconds = usage.cpu_nanoseconds as f64 / 1e9;
                line(format_args!("sampan_container_cpu_seconds_total{{{labels}}} {seconds}\n"));
                let bytes = usage.memory_working_set_bytes;
                line(format_args!("sampan_container_memory_working_set_bytes{{{labels}}} {bytes}\n"));
            }
        }
        text
    }
}

fn summary(one: &Measured, time: &str) -> Value {
    let config = one.pod.config();
    let containers: Vec<Value> = one
        .stats
        .containers
        .iter()
        .map(|(name, usage)| {
            let mut value = usage_of(usage, time);
            if let Some(fields) = value.as_object_mut() {
                fields.insert("name".into(), name.as_str().into());
            }
            value
        })
        .collect();
    let mut value = usage_of(&one.stats.pod, time);
    if let Some(fields) = value.as_object_mut() {
        let reference = json!({"name": config.name, "namespace": config.namespace, "uid": config.uid});
        fields.insert("podRef".into(), reference);
        fields.insert("containers".into(), containers.into());
        let network = json!({"time": time, "name": "eth0", "rxBytes": one.network.received_bytes, "txBytes": one.network.sent_bytes});
        fields.insert("network".into(), network);
        let (used, capacity) = one.disk;
        fields.insert("ephemeral-storage".into(), json!({"time": time, "usedBytes": used, "capacityBytes": capacity}));
    }
    value
}

fn usage_of(usage: &GroupUsage, time: &str) -> Value {
    json!({
        "cpu": {"time": time, "usageCoreNanoSeconds": usage.cpu_nanoseconds},
        "memory": {
            "time": time, "usageBytes": usage.memory_usage_bytes, "workingSetBytes": usage.memory_working_set_bytes,
        },
        "process_stats": {"process_count": usage.pids},
    })
}
