//! The service and the registry that a run is made with.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use sampan_e2e::leaks::Traces;
use tempfile::TempDir;

/// Where critest looks for its images.
const REGISTRY_PORT: u16 = 5000;
/// Where nobody listens (RFC 863): what would go to the world ends there.
const NOWHERE: &str = "http://127.0.0.1:9";
/// How long anything may take to begin or to end.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

/// Both, until they are finished with.
pub(crate) struct Running {
    folder: TempDir,
    instance: String,
    before: Traces,
    registry: Option<Child>,
    service: Option<Child>,
}

impl Running {
    /// Starts both. The registries `mirrored` are answered for by ours, and cannot be reached themselves.
    pub(crate) fn start(program: &Path, push: &Path, mirrored: &[&str]) -> anyhow::Result<Self> {
        let taken = TcpStream::connect((Ipv4Addr::LOCALHOST, REGISTRY_PORT)).is_ok();
        ensure!(!taken, "critest: 127.0.0.1:{REGISTRY_PORT} is in use, where the images have to be; end what uses it");
        let folder = tempfile::Builder::new().prefix("sampan-critest-").tempdir()?;
        let instance = format!("critest-{}", std::process::id());
        let mut running = Self { before: Traces::global()?, folder, instance, registry: None, service: None };
        running.start_registry(push)?;
        running.start_service(program, mirrored)?;
        Ok(running)
    }

    fn log(&self, name: &str) -> anyhow::Result<File> {
        Ok(File::create(self.folder.path().join(name))?)
    }

    fn start_registry(&mut self, push: &Path) -> anyhow::Result<()> {
        let storage = self.folder.path().join("registry");
        let config = self.folder.path().join("registry.yml");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:{REGISTRY_PORT}}}\n",
                storage.display()
            ),
        )?;
        let log = self.log("registry.log")?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let registry = self.registry.insert(command.spawn().context("critest: start docker-registry")?);
        until(registry, "the registry answers", || TcpStream::connect((Ipv4Addr::LOCALHOST, REGISTRY_PORT)).is_ok())?;
        let pushed = Command::new("python3").arg(push).stdout(Stdio::null()).status()?;
        ensure!(pushed.success(), "critest: the images cannot be pushed: {pushed}");
        Ok(())
    }

    fn start_service(&mut self, program: &Path, mirrored: &[&str]) -> anyhow::Result<()> {
        let log = self.log("serve.log")?;
        let socket = self.socket();
        let mut command = Command::new(program);
        command
            .args(["serve", "--role", "cri", "--instance", &self.instance])
            .arg("--data-dir")
            .arg(self.folder.path().join("data"))
            .arg("--run-dir")
            .arg(self.folder.path().join("run"))
            .args(["--insecure-registry", "127.0.0.1:5000", "--insecure-registry", "localhost:5000"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        for registry in mirrored {
            command.arg("--registry-mirror").arg(format!("{registry}=127.0.0.1:{REGISTRY_PORT}"));
        }
        if !mirrored.is_empty() {
            command.env("HTTPS_PROXY", NOWHERE).env("HTTP_PROXY", NOWHERE);
        }
        let service = self.service.insert(command.spawn().with_context(|| format!("start {}", program.display()))?);
        until(service, "the service is ready", || socket.exists())
            .with_context(|| fs::read_to_string(self.folder.path().join("serve.log")).unwrap_or_default())
    }

    /// What the service has complained of.
    pub(crate) fn complaints(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("serve.log")).unwrap_or_default();
        let said = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR"));
        said.collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("run/cri.sock")
    }

    /// Ends both and says what of them is still there.
    pub(crate) fn finish(mut self) -> anyhow::Result<Vec<String>> {
        self.end()?;
        let marks = [self.instance.clone(), self.folder.path().display().to_string()];
        let began = Instant::now();
        loop {
            let now = Traces::global()?;
            // The files go with their folder.
            let ours = |trace: &&String| !trace.starts_with("file: ") && marks.iter().any(|mark| trace.contains(mark));
            let left: Vec<String> = now.0.difference(&self.before.0).filter(ours).cloned().collect();
            if left.is_empty() || began.elapsed() > PATIENCE {
                return Ok(left);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn end(&mut self) -> anyhow::Result<()> {
        if let Some(mut service) = self.service.take() {
            let asked = Command::new("kill").arg(service.id().to_string()).status()?;
            ensure!(asked.success(), "critest: the service cannot be asked to end");
            let status = service.wait()?;
            ensure!(status.success(), "critest: the service ends with {status}");
        }
        if let Some(mut registry) = self.registry.take() {
            registry.kill()?;
            registry.wait()?;
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error:#}");
        }
    }
}

fn until(child: &mut Child, what: &str, is_so: impl Fn() -> bool) -> anyhow::Result<()> {
    let began = Instant::now();
    while !is_so() {
        if let Some(status) = child.try_wait()? {
            bail!("critest: waiting until {what}: it ended with {status}");
        }
        ensure!(began.elapsed() < PATIENCE, "critest: waited in vain until {what}");
        std::thread::sleep(PAUSE);
    }
    Ok(())
}
