//! A stock kubelet, alone: no API server, static pods from a folder, any service of the Container Runtime Interface below it.
//!
//! It may live in another network namespace, where its pods are. What kubelets leave on a machine (a mount, control groups, links
//! to logs, folders of fixed names) goes with it, as far as it was not there before. Kubelets take each other's control groups
//! away, so that one at a time can run.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{UnmountFlags, unmount};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use crate::claims;

const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);
/// The node's name, which a static pod's name ends with.
const NODE: &str = "node1";
/// An address for documentation (RFC 5737): a kubelet wants one, and nobody asks for it.
const NODE_ADDRESS: &str = "192.0.2.2";
/// Where the pods of [`static_pod`] serve their page.
pub const POD_PORT: u16 = 8080;

/// Paths that every kubelet makes, wherever it is told to live.
const SHARED: [&str; 3] = ["/var/lib/kubelet", "/var/log/containers", "/var/log/pods"];
/// Links to the logs of containers.
const LOG_LINKS: &str = "/var/log/containers";
/// Its control group at the top of every hierarchy.
const GROUP: &str = "kubepods";

/// A running kubelet.
#[derive(Debug)]
pub struct Kubelet {
    folder: PathBuf,
    network: Option<File>,
    read_only_port: u16,
    port: u16,
    child: Child,
    /// What was not there before.
    absent: Vec<PathBuf>,
}

/// A static pod of one container that runs `script`, and is Ready when `page` can be fetched from [`POD_PORT`], which is tried every second.
pub fn static_pod(name: &str, image: &str, script: &str, page: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main",
                "image": image,
                "command": ["sh", "-c", script],
                "readinessProbe": {"httpGet": {"path": page, "port": POD_PORT}, "periodSeconds": 1},
                "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
            }],
            "volumes": [{"name": "scratch", "emptyDir": {}}],
        },
    })
}

impl Kubelet {
    /// Starts one with all its own things in `folder` above the service that listens at `socket`, in the network namespace `network` or in ours.
    pub fn start(program: &Path, folder: &Path, socket: &Path, network: Option<File>) -> Result<Self> {
        let absent = SHARED.iter().map(PathBuf::from).chain(groups()).filter(|path| !path.exists()).collect();
        for name in ["manifests", "root", "certificates", "plugins", "logs"] {
            fs::create_dir_all(folder.join(name))?;
        }
        let (read_only_port, port, healthz) = (claims::port()?, claims::port()?, claims::port()?);
        let config = folder.join("kubelet.yaml");
        fs::write(&config, configuration(folder, socket, [read_only_port, port, healthz]))?;
        let log = File::create(folder.join("kubelet.log"))?;
        let mut command = match &network {
            None => Command::new(program),
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd()));
                command.arg("--").arg(program);
                command
            }
        };
        command
            .arg(format!("--config={}", config.display()))
            .arg(format!("--root-dir={}", folder.join("root").display()))
            .arg(format!("--cert-dir={}", folder.join("certificates").display()))
            .arg(format!("--hostname-override={NODE}"))
            .arg(format!("--node-ip={NODE_ADDRESS}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command.spawn().with_context(|| format!("start {}", program.display()))?;
        let mut kubelet = Self { folder: folder.to_owned(), network, read_only_port, port, child, absent };
        match kubelet.wait_until_it_answers() {
            Ok(()) => Ok(kubelet),
            Err(error) => {
                let error = error.context(kubelet.log());
                kubelet.stop()?;
                Err(error)
            }
        }
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let begin = Instant::now();
        while self.pods().is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("the kubelet ended at once ({status})");
            }
            ensure!(begin.elapsed() < PATIENCE, "the kubelet does not answer");
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// The port of its API, behind TLS, open to everybody.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Gives it a manifest, whole from the first moment on.
    pub fn add(&self, name: &str, manifest: &Value) -> Result<()> {
        // A name that begins so is none of its business.
        let unfinished = self.folder.join("manifests").join(format!(".{name}.json"));
        fs::write(&unfinished, manifest.to_string())?;
        fs::rename(unfinished, self.manifest(name)).context("give the kubelet a manifest")
    }

    /// Takes it away again.
    pub fn remove(&self, name: &str) -> Result<()> {
        fs::remove_file(self.manifest(name)).context("take a manifest away")
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.folder.join("manifests").join(format!("{name}.json"))
    }

    fn pods(&self) -> Result<Value> {
        let answer = self.inside(|| get(self.read_only_port, "/pods"))?;
        let body = answer.split_once("\r\n\r\n").context("an answer without a body")?.1;
        Ok(serde_json::from_str(body)?)
    }

    /// The status of a static pod's first container, as soon as it has one.
    pub fn container(&self, pod: &str) -> Result<Option<Value>> {
        Ok(container(&self.pods()?, pod).cloned())
    }

    /// Waits until the first container of a static pod is Ready after so many restarts.
    pub fn until_ready(&self, pod: &str, restarts: u64) -> Result<()> {
        self.until(&format!("{pod} is Ready"), || {
            let container = self.container(pod)?.unwrap_or_default();
            Ok(container["ready"] == true && container["restartCount"] == restarts)
        })
    }

    /// Asks again and again, for a minute at most.
    pub fn until(&self, what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
        let begin = Instant::now();
        while !is_so()? {
            ensure!(begin.elapsed() < PATIENCE, "the kubelet: waited in vain until {what}");
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// The last it has said.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.join("kubelet.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n")
    }

    /// Ends it, and takes away what it leaves; its folder stays.
    pub fn stop(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let paths = mounts.lines().rev().filter_map(|line| line.split(' ').nth(1));
        for path in paths.filter(|path| Path::new(path).starts_with(&self.folder)) {
            unmount(path, UnmountFlags::DETACH).with_context(|| format!("unmount {path}"))?;
        }
        for link in fs::read_dir(LOG_LINKS).into_iter().flatten().flatten() {
            if fs::read_link(link.path()).is_ok_and(|target| target.starts_with(&self.folder)) {
                fs::remove_file(link.path())?;
            }
        }
        for path in self.absent.iter().filter(|path| path.exists()) {
            if path.ends_with(GROUP) {
                remove_group(path);
            } else {
                fs::remove_dir_all(path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// Does something where its network is. A thread that has entered a namespace ends with its work.
    fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let Some(network) = &self.network else { return work() };
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

fn configuration(folder: &Path, socket: &Path, [read_only_port, port, healthz]: [u16; 3]) -> String {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{}", socket.display()),
        "staticPodPath": folder.join("manifests"),
        "cgroupDriver": "cgroupfs",
        "readOnlyPort": read_only_port,
        "healthzPort": healthz,
        "port": port,
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "volumePluginDir": folder.join("plugins"),
        "podLogsDir": folder.join("logs"),
        "makeIPTablesUtilChains": false,
        "failCgroupV1": false,
        "evictionHard": {"nodefs.available": "0%", "imagefs.available": "0%", "memory.available": "1Mi"},
    })
    .to_string()
}

fn container<'a>(pods: &'a Value, pod: &str) -> Option<&'a Value> {
    let name = format!("{pod}-{NODE}");
    let pod = pods["items"].as_array()?.iter().find(|item| item["metadata"]["name"] == name)?;
    pod.pointer("/status/containerStatuses/0")
}

/// Where its control groups would be, whatever the versions of the hierarchies.
fn groups() -> Vec<PathBuf> {
    let top = PathBuf::from("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(&top).into_iter().flatten().flatten().map(|entry| entry.path());
    let places = hierarchies.chain([top]).filter(|path| path.join("cgroup.procs").exists());
    places.map(|path| path.join(GROUP)).collect()
}

/// Removes an empty group with the empty ones in it; one with processes in it belongs to somebody.
fn remove_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_group(&entry.path());
        }
    }
    drop(fs::remove_dir(group));
}

/// The whole answer to a plain request to this machine.
pub fn get(port: u16, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_found_by_its_pods_name() {
        let pod = |name: &str, status: Value| json!({"metadata": {"name": name}, "status": status});
        let pods = json!({"items": [
            pod("other-node1", json!({"containerStatuses": [{"ready": false}]})),
            pod("web-node1", json!({"containerStatuses": [{"ready": true}]})),
            pod("new-node1", json!({})),
        ]});
        assert_eq!(container(&pods, "web"), Some(&json!({"ready": true})));
        assert_eq!(container(&pods, "new"), None);
        assert_eq!(container(&json!({"items": null}), "web"), None);
    }

    #[test]
    fn a_pod_is_ready_by_its_page() {
        let pod = static_pod("web", "image:1", "true", "/page");
        let probe = pod.pointer("/spec/containers/0/readinessProbe").unwrap();
        assert_eq!(probe, &json!({"httpGet": {"path": "/page", "port": POD_PORT}, "periodSeconds": 1}));
    }
}
