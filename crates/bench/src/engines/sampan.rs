//! Sampan itself: the release binary as a service of its own instance.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Engine, Phase};
use crate::command::must;
use crate::footprint::{end, remove_folder};

const START_DEADLINE: Duration = Duration::from_secs(30);

/// The name that cgroups, interfaces and rules of the measured service begin with.
const INSTANCE: &str = "spbench";
/// The second number of its addresses is from here on, by its process' id, so that it gets on with services beside it.
const ADDRESSES_FROM: u32 = 210;
const ADDRESSES_COUNT: u32 = 40;

/// The addresses for its instances.
pub(crate) fn addresses() -> String {
    format!("10.{}.0.0/16", ADDRESSES_FROM + std::process::id() % ADDRESSES_COUNT)
}

#[derive(Debug)]
pub(crate) struct Sampan {
    program: PathBuf,
    folder: PathBuf,
    registry: String,
    fleet_key: Option<PathBuf>,
    service: Option<Child>,
}

impl Sampan {
    pub(crate) fn new(program: &Path, work: &Path, registry: &str) -> Self {
        Self::named("sampan", program, work, registry)
    }

    /// One in a folder of this name.
    pub(crate) fn named(name: &str, program: &Path, work: &Path, registry: &str) -> Self {
        let (program, registry) = (program.to_owned(), registry.to_owned());
        Self { program, folder: work.join(name), registry, fleet_key: None, service: None }
    }

    /// One that has the fleet's key from this file, as soon as the file is there.
    pub(crate) fn with_fleet_key(mut self, path: PathBuf) -> Self {
        self.fleet_key = Some(path);
        self
    }

    /// Where its own copy of that key lies.
    pub(crate) fn fleet_key(&self) -> PathBuf {
        self.folder.join("data/keys/fleet.key")
    }

    fn copy_fleet_key(&self) -> Result<()> {
        let Some(key) = self.fleet_key.as_ref().filter(|key| key.is_file()) else { return Ok(()) };
        let place = self.fleet_key();
        let folder = place.parent().context("a key lies in a folder")?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        // With its mode, which is its owner's alone.
        fs::copy(key, &place).map(drop).context("copy the fleet's key")
    }

    /// A command of the client.
    pub(crate) fn client(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--socket").arg(self.folder.join("run/sampan.sock"));
        command
    }

    fn spawn(&self) -> Result<Child> {
        let log = File::create(self.folder.join("log"))?;
        let mut command = Command::new(&self.program);
        command
            .arg("serve")
            .arg("--data-dir")
            .arg(self.folder.join("data"))
            .arg("--run-dir")
            .arg(self.folder.join("run"));
        command.args(["--instance", INSTANCE, "--listen", "none", "--pod-cidr4", &addresses()]);
        command.args(["--insecure-registry", &self.registry]);
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().context("start sampan serve")
    }

    fn wait_until_it_answers(&self, service: &mut Child) -> Result<()> {
        let begin = Instant::now();
        while !self.client().arg("ps").output()?.status.success() {
            let log = || fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            if let Some(status) = service.try_wait()? {
                bail!("sampan serve ended at once ({status}): {}", log());
            }
            ensure!(begin.elapsed() < START_DEADLINE, "sampan serve does not answer: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// One answer of the service's.
    fn get(&self, path: &str) -> Result<String> {
        let mut stream = UnixStream::connect(self.folder.join("run/sampan.sock"))?;
        write!(stream, "GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
        ensure!(head.split(' ').nth(1) == Some("200"), "{path}: {head}");
        Ok(body.to_owned())
    }

    fn metrics(&self) -> Result<String> {
        let nodes: serde_json::Value = serde_json::from_str(&self.get("/api/v1/nodes")?)?;
        let name = nodes["items"][0]["metadata"]["name"].as_str().context("a service without a node")?;
        self.get(&format!("/api/v1/nodes/{name}/proxy/metrics"))
    }

    /// Whether all of an image is here.
    pub(crate) fn has_whole(&self, reference: &str) -> Result<bool> {
        let answer = self.client().args(["image", "inspect", "--output", "json", reference]).output()?;
        ensure!(answer.status.success(), "{reference}: {}", String::from_utf8_lossy(&answer.stderr));
        let image: serde_json::Value = serde_json::from_slice(&answer.stdout)?;
        let layers = image["layers"].as_array().context("an image without layers")?;
        Ok(layers.iter().all(|layer| layer["complete"] == true))
    }

    /// The process that does the work: neither the supervisor nor what clones agents.
    pub(crate) fn daemon(&self) -> Result<u32> {
        let folder = self.folder.as_os_str().as_encoded_bytes();
        let is_meant = |line: &[u8]| {
            let mut words = line.split(|byte| *byte == 0).skip(1);
            let is_daemon = words.next() == Some(b"internal") && words.next() == Some(b"daemon");
            is_daemon && line.windows(folder.len()).any(|window| window == folder)
        };
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // Processes end while we look at them.
            if fs::read(entry.path().join("cmdline")).is_ok_and(|line| is_meant(&line)) {
                return Ok(pid);
            }
        }
        bail!("the daemon of {} is not to be seen", self.folder.display())
    }

    fn remove_instances(&self) -> Result<()> {
        let names = self.client().args(["ps", "--all", "--quiet"]).output()?;
        let names = String::from_utf8_lossy(&names.stdout).into_owned();
        if names.split_whitespace().next().is_some() {
            must(self.client().args(["rm", "--force"]).args(names.split_whitespace()))?;
        }
        Ok(())
    }
}

impl Engine for Sampan {
    fn name(&self) -> &str {
        "sampan"
    }

    fn programs(&self) -> Vec<PathBuf> {
        vec![self.program.clone()]
    }

    fn start(&mut self) -> Result<()> {
        self.stop()?;
        fs::create_dir_all(&self.folder)?;
        self.copy_fleet_key()?;
        let mut service = self.spawn()?;
        let answers = self.wait_until_it_answers(&mut service);
        self.service = Some(service);
        answers
    }

    fn stop(&mut self) -> Result<()> {
        if let Some(mut service) = self.service.take() {
            let mut removed = self.remove_instances();
            if removed.is_err() && service.try_wait()?.is_some() {
                // Instances outlive their service; another one takes them away.
                service = self.spawn()?;
                removed = self.wait_until_it_answers(&mut service).and_then(|()| self.remove_instances());
            }
            end(&mut service)?;
            removed.context("remove what was run")?;
        }
        remove_folder(&self.folder)
    }

    fn pull(&self, reference: &str) -> Command {
        let mut command = self.client();
        command.args(["pull", reference]);
        command
    }

    fn run(&self, reference: &str, name: &str, words: &[&str]) -> Command {
        let mut command = self.client();
        command.args(["run", "--rm", "--name", name, reference]).args(words);
        command
    }

    fn pull_and_run(&self, reference: &str, name: &str, words: &[&str]) -> Vec<Command> {
        vec![self.run(reference, name, words)]
    }

    fn phases(&self, reference: &str, name: &str, words: &[&str]) -> Vec<(Phase, Command)> {
        // Not removed at its end, so that it can still be asked what took how long.
        let mut command = self.client();
        command.args(["run", "--name", name, reference]).args(words);
        vec![(Phase::Start, command)]
    }

    fn parts(&self, name: &str) -> Option<(Duration, Duration)> {
        let answer = self.client().args(["timeline", "--output", "json", name]).output().ok()?;
        let phases: serde_json::Value = serde_json::from_slice(&answer.stdout).ok()?;
        let sum = |names: &[&str]| {
            let chosen = phases.as_array()?.iter().filter(|phase| names.iter().any(|name| phase["phase"] == *name));
            Some(Duration::from_secs_f64(chosen.filter_map(|phase| phase["ms"].as_f64()).sum::<f64>() / 1e3))
        };
        // Sandbox, network and disk are made while the image comes; what is made after it is the container's root.
        Some((sum(&["image"])?, sum(&["rootfs"])?))
    }

    fn account(&self) -> Vec<(String, f64)> {
        match self.metrics() {
            Ok(text) => accounts(&text),
            Err(error) => {
                drop(crate::peers::announce(&format!("sampan does not tell what it fetched: {error:#}")));
                Vec::new()
            }
        }
    }
}

/// Bytes by why, waits of readers and their seconds, out of the service's metrics.
fn accounts(metrics: &str) -> Vec<(String, f64)> {
    let value = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        let name = match name {
            "sampan_image_reads_total{result=\"miss\"}" => "waits",
            "sampan_image_stall_seconds_total" => "waited",
            _ => name.strip_prefix("sampan_image_fetched_bytes_total{class=\"")?.strip_suffix("\"}")?,
        };
        Some((name.to_owned(), value.parse().ok()?))
    };
    metrics.lines().filter_map(value).collect()
}

impl Drop for Sampan {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            drop(crate::peers::announce(&format!("sampan is not quite gone: {error:#}")));
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_account_is_found_among_the_metrics() {
        let metrics = "# HELP sampan_image_reads_total Reads.\nsampan_image_reads_total{result=\"hit\"} 7\n\
                       sampan_image_reads_total{result=\"miss\"} 3\nsampan_image_stall_seconds_total 0.25\n\
                       sampan_image_fetched_bytes_total{class=\"pack\"} 4096\nsampan_pods{sandbox=\"live\"} 1\n";
        let expected = [("waits", 3.0), ("waited", 0.25), ("pack", 4096.0)];
        assert_eq!(super::accounts(metrics), expected.map(|(name, value)| (name.to_owned(), value)));
    }
}
