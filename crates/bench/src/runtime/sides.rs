//! How either side is started: Sampan below a kubelet, and containerd 2 with runc and a bridge by CNI plug-ins.
//!
//! containerd lives in a network namespace of its own, so that its bridge and its rules go with it and meet nobody else's; it has
//! no way out there, which none of its pods needs.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::node::Kind;
use crate::peers;

/// The name that cgroups, interfaces and rules of ours begin with.
pub(super) const INSTANCE: &str = "spbenchr";

/// Sampan with the Container Runtime Interface alone.
pub(super) struct Sampan {
    pub(super) program: PathBuf,
    pub(super) registry: String,
}

impl Kind for Sampan {
    fn name(&self) -> &'static str {
        "sampan"
    }

    fn programs(&self) -> Vec<PathBuf> {
        vec![self.program.clone()]
    }

    fn socket(&self, folder: &Path) -> PathBuf {
        folder.join("run/cri.sock")
    }

    fn prepare(&mut self, _folder: &Path) -> Result<()> {
        Ok(())
    }

    fn service(&self, folder: &Path) -> Result<Command> {
        let mut command = Command::new(&self.program);
        command.args(["serve", "--role", "cri", "--instance", INSTANCE, "--insecure-registry", &self.registry]);
        command.arg("--data-dir").arg(folder.join("data")).arg("--run-dir").arg(folder.join("run"));
        command.args(["--pod-cidr4", &crate::engines::sampan::addresses()]);
        Ok(command)
    }

    fn is_daemon(&self, line: &str) -> bool {
        line.contains(" internal daemon ")
    }

    fn comes_back(&self) -> bool {
        true
    }
}

/// containerd 2, its own default runtime, overlayfs.
pub(super) struct Containerd {
    /// The folder with its programs.
    pub(super) programs: PathBuf,
    pub(super) runc: PathBuf,
    pub(super) plugins: PathBuf,
    pub(super) image: String,
    pub(super) pause: String,
    /// Its network namespace, once it has one.
    pub(super) network: Option<File>,
}

impl Containerd {
    fn config(&self, folder: &Path) -> String {
        let quoted = |path: &Path| format!("{:?}", path.display().to_string());
        format!(
            r#"version = 3
root = {root}
state = {state}
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp", "io.containerd.nri.v1.nri"]
[grpc]
address = {socket}
[ttrpc]
address = {ttrpc}
[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = {pause:?}
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = [{plugins}]
conf_dir = {cni}
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = {runc}
[plugins."io.containerd.grpc.v1.cri"]
disable_tcp_service = true
"#,
            root = quoted(&folder.join("root")),
            state = quoted(&folder.join("state")),
            socket = quoted(&self.socket(folder)),
            ttrpc = quoted(&folder.join("socket.ttrpc")),
            pause = self.pause,
            plugins = quoted(&self.plugins),
            cni = quoted(&folder.join("cni")),
            runc = quoted(&self.runc),
        )
    }
}

/// What kind and Kubernetes' own tests configure: a bridge with masquerading, and host ports.
fn network(folder: &Path) -> String {
    serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "sampan-bench",
        "plugins": [
            {
                "type": "bridge", "bridge": "spbench0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": folder.join("leases"),
                    "ranges": [[{"subnet": "10.88.0.0/16"}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
    .to_string()
}

impl Kind for Containerd {
    fn name(&self) -> &'static str {
        "containerd2"
    }

    fn programs(&self) -> Vec<PathBuf> {
        ["containerd", "containerd-shim-runc-v2"].map(|name| self.programs.join(name)).into()
    }

    fn socket(&self, folder: &Path) -> PathBuf {
        folder.join("socket")
    }

    fn prepare(&mut self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder.join("cni"))?;
        fs::write(folder.join("cni/10-bench.conflist"), network(folder))?;
        Ok(fs::write(folder.join("config.toml"), self.config(folder))?)
    }

    fn service(&self, folder: &Path) -> Result<Command> {
        let mut command = match &self.network {
            None => {
                let mut command = Command::new("unshare");
                command.args(["--net", "--", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]);
                command
            }
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd())).arg("--");
                command
            }
        };
        command.arg(self.programs.join("containerd")).arg("--config").arg(folder.join("config.toml"));
        command.env("PATH", peers::search_path());
        Ok(command)
    }

    fn started(&mut self, pid: u32) -> Result<()> {
        let namespace = File::open(format!("/proc/{pid}/ns/net")).context("the network namespace of containerd")?;
        self.network.get_or_insert(namespace);
        Ok(())
    }

    fn network(&self) -> Option<&File> {
        self.network.as_ref()
    }

    fn bring(&self, folder: &Path) -> Vec<Command> {
        let pull = |image: &str| {
            let mut command = Command::new(self.programs.join("ctr"));
            command.arg("--address").arg(self.socket(folder)).args(["--namespace", "k8s.io"]);
            // By ctr itself, which is not in a namespace without a way to the registry.
            command.args(["images", "pull", "--local", "--plain-http", image]);
            command
        };
        vec![pull(&self.image), pull(&self.pause)]
    }

    fn is_daemon(&self, line: &str) -> bool {
        line.contains("/containerd --config ")
    }

    fn comes_back(&self) -> bool {
        false
    }
}
