//! `cargo xtask kubelet`: a stock kubelet, alone, with a static pod on this service.
//!
//! The kubelet and `crictl` come from the `PATH` or from `SAMPAN_PEERS`, as critest does, and the image from the same look-alikes. Checked:
//! the pod becomes Ready by its probe, commands run through the kubelet, its port is forwarded, a container that ends is
//! restarted with its exit code told, and nothing is left when the manifest is gone.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what is seen is the result")]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use sampan_e2e::claims;
use sampan_e2e::kubelet::{Kubelet, POD_PORT, get, static_pod};

use crate::critest::{build_service, find, service::Running};

pub(crate) const USAGE: &str = "usage: cargo xtask kubelet [--program FILE]

  --program FILE  the sampan to run, instead of building target/debug/sampan";

const IMAGE: &str = "127.0.0.1:5000/e2e-test-images/busybox:1.29-2";
const POD: &str = "web";
/// Serves a page until it is told to end with [`EXIT_CODE`].
const SCRIPT: &str = "mkdir -p /www; echo hello > /www/index.html; httpd -p 8080 -h /www; while [ ! -e /tmp/die ]; do sleep 0.1; done; exit 3";
const EXIT_CODE: u8 = 3;
const PAGE: &str = "/index.html";

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
    let service = Running::start(&program, &push, &[])?;
    let kubelet = Kubelet::start(&kubelet, &service.folder().join("kubelet"), &service.socket(), None)?;
    let outcome = Scenario { kubelet: &kubelet, crictl: &crictl, service: &service }.play();
    if outcome.is_err() {
        eprintln!("{}", kubelet.log());
    }
    kubelet.stop()?;
    outcome?;
    let left = service.finish()?;
    for leak in &left {
        println!("kubelet: left behind: {leak}");
    }
    Ok(if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Scenario<'a> {
    kubelet: &'a Kubelet,
    crictl: &'a Path,
    service: &'a Running,
}

impl Scenario<'_> {
    fn play(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        self.kubelet.add(POD, &static_pod(POD, IMAGE, SCRIPT, PAGE))?;
        self.kubelet.until_ready(POD, 0)?;
        println!("kubelet: Ready {} ms after its manifest", began.elapsed().as_millis());
        let said = self.command("echo%20hi")?;
        ensure!(said == "hi\n", "kubelet: a command says {said:?}");
        println!("kubelet: a command runs");
        self.forward()?;
        self.command("touch%20/tmp/die")?;
        self.kubelet.until_ready(POD, 1)?;
        let last = self.kubelet.container(POD)?.unwrap_or_default()["lastState"]["terminated"]["exitCode"].clone();
        ensure!(last == EXIT_CODE, "kubelet: the last exit code is told as {last}");
        println!("kubelet: restarted with its exit code told");
        self.kubelet.remove(POD)?;
        self.kubelet.until("the pod is gone", || Ok(self.ready_pods()?.is_empty()))?;
        println!("kubelet: gone with its manifest");
        // The kubelet keeps what has ended for a while; nobody else will ask for it.
        let removed = self.crictl(&["rmp", "-a", "-f"])?;
        ensure!(removed.status.success(), "kubelet: ended pods cannot be removed: {removed:?}");
        Ok(())
    }

    /// A port of the pod, through `crictl`.
    fn forward(&self) -> anyhow::Result<()> {
        let (pod, port) = (self.ready_pods()?, claims::port()?);
        let mut forward = Command::new(self.crictl)
            .args(["--runtime-endpoint", &self.endpoint(), "port-forward", &pod, &format!("{port}:{POD_PORT}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let page = self
            .kubelet
            .until("the port is forwarded", || Ok(get(port, PAGE).is_ok_and(|page| page.contains("hello"))));
        forward.kill()?;
        forward.wait()?;
        page?;
        println!("kubelet: its port is forwarded");
        Ok(())
    }

    /// A command in the pod's container, through the kubelet.
    fn command(&self, command: &str) -> anyhow::Result<String> {
        let url = format!("https://127.0.0.1:{}/run/default/{POD}-node1/main?cmd={command}", self.kubelet.port());
        let output = Command::new("curl").args(["-sk", "-X", "POST", &url]).output()?;
        ensure!(output.status.success(), "kubelet: curl ends with {}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The ids of pods that are ready.
    fn ready_pods(&self) -> anyhow::Result<String> {
        let list = self.crictl(&["pods", "-q", "--state", "ready"])?;
        ensure!(list.status.success(), "kubelet: pods cannot be listed: {list:?}");
        Ok(String::from_utf8(list.stdout)?.trim().to_owned())
    }

    fn crictl(&self, words: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(self.crictl);
        command.args(["--runtime-endpoint", &self.endpoint()]).args(words);
        command.output().context("kubelet: run crictl")
    }

    fn endpoint(&self) -> String {
        format!("unix://{}", self.service.socket().display())
    }
}
