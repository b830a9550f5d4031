//! What this machine is: the Node object.

use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use jiff::Timestamp;
use serde_json::{Value, json};

/// Share of the machine's memory that pods may not reserve, for kernel and service.
const MEMORY_RESERVED_BYTES: u64 = 256 << 20;

/// The machine, as far as the scheduler and users care.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    /// The node's name: the host name, as Kubernetes allows names.
    pub(crate) name: String,
    /// The address others reach it at.
    pub(crate) address: IpAddr,
    cpus: u64,
    memory_bytes: u64,
    disk_bytes: u64,
    kernel: String,
    operating_system: String,
    boot_id: String,
}

impl Machine {
    /// Looks at the machine; `data_dir` tells whose disk counts.
    pub(crate) fn look(name: Option<&str>, data_dir: &std::path::Path) -> io::Result<Self> {
        let uname = rustix::system::uname();
        let hostname = uname.nodename().to_string_lossy().to_ascii_lowercase();
        let cleaned: String =
            hostname.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '-' }).collect();
        let cleaned = cleaned.trim_matches(['-', '.']);
        let fallback = if cleaned.is_empty() { "node" } else { cleaned };
        let disk = rustix::fs::statvfs(data_dir)?;
        let meminfo = std::fs::read_to_string("/proc/meminfo")?;
        let memory_kib =
            meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
        let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let system = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        Ok(Self {
            name: name.unwrap_or(fallback).to_owned(),
            address: own_address(),
            cpus: std::thread::available_parallelism()?.get() as u64,
            memory_bytes: memory_kib.unwrap_or(0_u64) * 1024,
            disk_bytes: disk.f_blocks.saturating_mul(disk.f_frsize),
            kernel: uname.release().to_string_lossy().into_owned(),
            operating_system: system.unwrap_or("Linux").trim_matches('"').to_owned(),
            boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
        })
    }

    /// What it has for pods: thousandths of a core, bytes of memory.
    pub(crate) fn allocatable(&self) -> (i64, i64) {
        let memory = self.memory_bytes.saturating_sub(MEMORY_RESERVED_BYTES);
        let signed = |amount: u64| i64::try_from(amount).unwrap_or(i64::MAX);
        (signed(self.cpus.saturating_mul(1000)), signed(memory))
    }

    /// The Node object; an existing one keeps its identity and labels.
    #[must_use]
    pub(crate) fn object(&self, existing: Option<&Value>, now: Timestamp) -> Value {
        let time = format!("{now:.0}");
        let mut node = existing.cloned().unwrap_or_else(|| {
            json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {
                    "name": self.name, "creationTimestamp": time, "uid": sampan_kit::id::uuid().unwrap_or_default(),
                    "labels": {
                        "kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux",
                        "kubernetes.io/arch": architecture(),
                    },
                },
                "spec": {},
            })
        });
        let capacity = |memory: u64| {
            json!({
                "cpu": self.cpus.to_string(), "memory": format!("{}Ki", memory / 1024),
                "ephemeral-storage": format!("{}Ki", self.disk_bytes / 1024), "pods": "4000",
            })
        };
        let status = json!({
            "capacity": capacity(self.memory_bytes),
            "allocatable": capacity(self.memory_bytes.saturating_sub(MEMORY_RESERVED_BYTES)),
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "NodeReady", "message": "the service runs",
                "lastHeartbeatTime": time, "lastTransitionTime": time,
            }],
            "addresses": [
                {"type": "InternalIP", "address": self.address.to_string()},
                {"type": "Hostname", "address": self.name},
            ],
            "nodeInfo": {
                "machineID": "", "systemUUID": "", "bootID": self.boot_id, "kernelVersion": self.kernel,
                "osImage": self.operating_system, "containerRuntimeVersion": format!("sampan://{}", env!("CARGO_PKG_VERSION")),
                "kubeletVersion": format!("v{}", env!("CARGO_PKG_VERSION")), "kubeProxyVersion": "",
                "operatingSystem": "linux", "architecture": architecture(),
            },
        });
        if let Some(fields) = node.as_object_mut() {
            fields.insert("status".into(), status);
        }
        node
    }
}

/// The architecture's name in the image world.
#[must_use]
pub(crate) const fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// The source address of the default route. Connecting a datagram socket sends nothing.
fn own_address() -> IpAddr {
    let ask = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    ask().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}
