//! `cargo xtask kubelet`: a stock kubelet, alone, with a static pod on this service.
//!
//! The kubelet and `crictl` come from the `PATH` or from `SAMPAN_PEERS`, as critest does, and the image from the same look-alikes. Checked:
//! the pod becomes Ready by its probe, commands run through the kubelet, its port is forwarded, a container that ends is
//! restarted with its exit code told, and nothing is left when the manifest is gone.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what is seen is the result")]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::critest::{build_service, find, service::Running};

pub(crate) const USAGE: &str = "usage: cargo xtask kubelet [--program FILE]

  --program FILE  the sampan to run, instead of building target/debug/sampan";

const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
const IMAGE: &str = "127.0.0.1:5000/e2e-test-images/busybox:1.29-2";

pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<ExitCode> {
    let program = match arguments {
        [] => None,
        ["--program", file] => Some(PathBuf::from(file)),
        _ => {
            println!("{USAGE}");
            return Ok(ExitCode::SUCCESS);
        }
    };
    let (kubelet, crictl, push) = (find("kubelet")?, find("crictl")?, find("push.py")?);
    for tool in ["docker-registry", "python3", "curl"] {
        find(tool)?;
    }
    let program = program.map_or_else(build_service, Ok)?;
    let service = Running::start(&program, &push)?;
    let node = Node::start(&kubelet, &service)?;
    let outcome = node.scenario(&crictl, &service);
    if outcome.is_err() {
        eprintln!("{}", node.log());
    }
    node.stop()?;
    outcome?;
    let left = service.finish()?;
    for leak in &left {
        println!("kubelet: left behind: {leak}");
    }
    Ok(if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A running kubelet with folders below the service's.
struct Node {
    folder: PathBuf,
    read_only_port: u16,
    port: u16,
    child: Child,
}

impl Node {
    fn start(kubelet: &Path, service: &Running) -> anyhow::Result<Self> {
        let folder = service.folder().join("kubelet");
        for name in ["manifests", "root", "certificates", "plugins", "logs"] {
            fs::create_dir_all(folder.join(name))?;
        }
        let (read_only_port, port, healthz) = (free_port()?, free_port()?, free_port()?);
        let config = folder.join("kubelet.yaml");
        let text = format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://{socket}
staticPodPath: {folder}/manifests
cgroupDriver: cgroupfs
readOnlyPort: {read_only_port}
healthzPort: {healthz}
port: {port}
authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}
authorization: {{mode: AlwaysAllow}}
volumePluginDir: {folder}/plugins
podLogsDir: {folder}/logs
makeIPTablesUtilChains: false
failCgroupV1: false
evictionHard: {{nodefs.available: 0%, imagefs.available: 0%, memory.available: 1Mi}}
",
            socket = service.socket().display(),
            folder = folder.display(),
        );
        fs::write(&config, text)?;
        let log = File::create(folder.join("kubelet.log"))?;
        let mut command = Command::new(kubelet);
        command
            .arg(format!("--config={}", config.display()))
            .arg(format!("--root-dir={}", folder.join("root").display()))
            .arg(format!("--cert-dir={}", folder.join("certificates").display()))
            .args(["--hostname-override=node1", "--node-ip=192.0.2.2"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command.spawn().with_context(|| format!("start {}", kubelet.display()))?;
        let node = Self { folder, read_only_port, port, child };
        node.until("the kubelet answers", || Ok(node.pods().is_ok()))?;
        Ok(node)
    }

    fn scenario(&self, crictl: &Path, service: &Running) -> anyhow::Result<()> {
        let manifest = self.folder.join("manifests/web.yaml");
        let began = Instant::now();
        fs::write(&manifest, manifest_text())?;
        self.until("the pod is Ready", || Ok(self.container()?.is_some_and(|container| container["ready"] == true)))?;
        println!("kubelet: Ready {} ms after its manifest", began.elapsed().as_millis());
        let said = self.command("echo%20hi")?;
        ensure!(said == "hi\n", "kubelet: a command says {said:?}");
        self.forward(crictl, service)?;
        self.command("touch%20/tmp/die")?;
        self.until("the container is restarted and Ready", || {
            let container = self.container()?.unwrap_or_default();
            Ok(container["restartCount"] == 1 && container["ready"] == true)
        })?;
        let last = self.container()?.unwrap_or_default()["lastState"]["terminated"]["exitCode"].clone();
        ensure!(last == 3, "kubelet: the last exit code is told as {last}");
        println!("kubelet: restarted with its exit code told");
        fs::remove_file(manifest)?;
        self.until("the pod is gone", || {
            let endpoint = format!("unix://{}", service.socket().display());
            let pods = Command::new(crictl)
                .args(["--runtime-endpoint", &endpoint, "pods", "-q", "--state", "ready"])
                .output()?;
            Ok(pods.status.success() && pods.stdout.is_empty())
        })?;
        // The kubelet keeps what has ended for a while; nobody else will ask for it.
        let endpoint = format!("unix://{}", service.socket().display());
        let removed = Command::new(crictl).args(["--runtime-endpoint", &endpoint, "rmp", "-a", "-f"]).output()?;
        ensure!(removed.status.success(), "kubelet: ended pods cannot be removed: {removed:?}");
        Ok(())
    }

    /// A port of the pod, through `crictl`.
    fn forward(&self, crictl: &Path, service: &Running) -> anyhow::Result<()> {
        let endpoint = format!("unix://{}", service.socket().display());
        let list =
            Command::new(crictl).args(["--runtime-endpoint", &endpoint, "pods", "-q", "--state", "ready"]).output()?;
        let pod = String::from_utf8(list.stdout)?.trim().to_owned();
        let port = free_port()?;
        let mut forward = Command::new(crictl)
            .args(["--runtime-endpoint", &endpoint, "port-forward", &pod, &format!("{port}:8080")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let page = self
            .until("the port is forwarded", || Ok(get(port, "/index.html").is_ok_and(|page| page.contains("hello"))));
        forward.kill()?;
        forward.wait()?;
        page?;
        println!("kubelet: its port is forwarded");
        Ok(())
    }

    /// A command in the pod's container, through the kubelet.
    fn command(&self, command: &str) -> anyhow::Result<String> {
        let url = format!("https://127.0.0.1:{}/run/default/web-node1/main?cmd={command}", self.port);
        let output = Command::new("curl").args(["-sk", "-X", "POST", &url]).output()?;
        ensure!(output.status.success(), "kubelet: curl ends with {}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    fn pods(&self) -> anyhow::Result<Value> {
        let answer = get(self.read_only_port, "/pods")?;
        let body = answer.split_once("\r\n\r\n").context("kubelet: an answer without a body")?.1;
        Ok(serde_json::from_str(body)?)
    }

    fn container(&self) -> anyhow::Result<Option<Value>> {
        Ok(self.pods()?.pointer("/items/0/status/containerStatuses/0").cloned())
    }

    fn until(&self, what: &str, is_so: impl Fn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let began = Instant::now();
        while !is_so()? {
            ensure!(began.elapsed() < PATIENCE, "kubelet: waited in vain until {what}");
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.join("kubelet.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n")
    }

    fn stop(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        // A kubelet mounts its folder on itself, and leaves that so.
        let unmounted = Command::new("umount").arg(self.folder.join("root")).status().context("run umount")?;
        ensure!(unmounted.success(), "kubelet: its folder stays mounted");
        Ok(())
    }
}

fn manifest_text() -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: web, namespace: default}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {IMAGE}
    command: [sh, -c, 'mkdir -p /www; echo hello > /www/index.html; httpd -p 8080 -h /www; while [ ! -e /tmp/die ]; do sleep 0.1; done; exit 3']
    readinessProbe: {{httpGet: {{path: /index.html, port: 8080}}, periodSeconds: 1}}
    volumeMounts: [{{name: scratch, mountPath: /scratch}}]
  volumes: [{{name: scratch, emptyDir: {{}}}}]
"
    )
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The whole answer to a plain request.
fn get(port: u16, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
