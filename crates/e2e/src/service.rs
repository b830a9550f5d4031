//! One service with folders, names, ports and addresses of its own, and a registry beside it.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::claims;
use crate::fixtures::{Image, Registry, busybox};
use crate::harness::call::Call;
use crate::harness::process::wait;
use crate::harness::wait::{eventually, until};

/// How long the service may take to stop by itself.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// A process of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The one that starts the others.
    Supervisor,
    /// The one that makes sandboxes.
    Zygote,
    /// The one that does everything else.
    Daemon,
}

/// A running service. Stopped, with its instances left alone, when dropped.
#[derive(Debug)]
pub struct Service {
    /// The name that its cgroups, interfaces and rules carry.
    pub instance: String,
    /// Its IPv4 addresses, all but the last number: `10.x.y.`; or but the last two.
    pub prefix4: String,
    /// Its IPv6 addresses, all but the last part: `fd…::`.
    pub prefix6: String,
    /// Where its API is served with TLS, beside the socket.
    pub listen: SocketAddr,
    /// The registry that it may use.
    pub registry: Registry,
    binary: PathBuf,
    folder: TempDir,
    supervisor: Mutex<Option<Child>>,
    pushed: Mutex<HashSet<String>>,
}

impl Service {
    /// Starts one for a test program.
    pub fn start(suite: &str) -> Result<Self> {
        let service = Self::prepare(suite)?;
        service.serve()?;
        Ok(service)
    }

    /// Makes everything that one needs, and leaves it to the test to start it with [`serve`](Self::serve).
    pub fn prepare(suite: &str) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "end-to-end tests make namespaces, mounts and interfaces: run them as root"
        );
        let binary = binary()?;
        let folder = tempfile::Builder::new().prefix(&format!("sampan-e2e-{suite}-")).tempdir()?;
        for name in ["temporary", "work"] {
            fs::create_dir(folder.path().join(name))?;
        }
        let (high, low) = claims::pool()?;
        Ok(Self {
            instance: format!("e2e-{suite}-{}", std::process::id()),
            prefix4: format!("10.{high}.{low}."),
            prefix6: format!("fd5a:e2e:{high:x}:{low:x}::"),
            registry: Registry::start()?,
            binary,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, claims::port()?)),
            folder,
            supervisor: Mutex::new(None),
            pushed: Mutex::new(HashSet::new()),
        })
    }

    /// The same with addresses for thousands of instances.
    pub fn prepare_wide(suite: &str) -> Result<Self> {
        let mut service = Self::prepare(suite)?;
        service.prefix4 = format!("10.{}.", claims::wide_pool()?);
        Ok(service)
    }

    fn cidr4(&self) -> String {
        let missing = 4 - self.prefix4.matches('.').count();
        format!("{}{}/{}", self.prefix4, vec!["0"; missing].join("."), 32 - 8 * missing)
    }

    /// Starts the supervisor and waits until the service is ready. It must not run.
    pub fn serve(&self) -> Result<()> {
        let mut supervisor = self.supervisor();
        ensure!(supervisor.is_none(), "the service runs already");
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let seen = log.metadata()?.len();
        let mut command = Command::new(&self.binary);
        command
            .args(["serve", "--instance", &self.instance, "--listen", &self.listen.to_string()])
            .args(["--pod-cidr4", &self.cidr4(), "--pod-cidr6", &format!("{}/64", self.prefix6)])
            .args(["--image-size-max", "1Gi"])
            .args([OsStr::new("--data-dir"), self.data_dir().as_os_str()])
            .args([OsStr::new("--run-dir"), self.run_dir().as_os_str()])
            .env("TMPDIR", self.temporary())
            .env("HOME", self.work())
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = supervisor.insert(command.spawn().with_context(|| format!("start {}", self.binary.display()))?);
        let ready = eventually("the service is ready", || {
            let log = fs::read(self.log_path())?;
            let log = String::from_utf8_lossy(log.get(usize::try_from(seen)?..).unwrap_or_default()).into_owned();
            if let Some(status) = child.try_wait()? {
                bail!("the service ended at once ({status}): {log}");
            }
            Ok(log.contains("sampan: ready").then_some(()))
        });
        if child.try_wait()?.is_some() {
            *supervisor = None;
        }
        ready
    }

    /// Asks the service to stop and waits for it; instances go on.
    pub fn stop(&self) -> Result<()> {
        let Some(mut child) = self.supervisor().take() else { return Ok(()) };
        kill_process(Pid::from_child(&child), Signal::TERM)?;
        let status = wait(&mut child, STOP_DEADLINE).context("stop the service")?;
        ensure!(status.success(), "the service ends with {status}");
        Ok(())
    }

    /// Kills a part as `kill -9` does, and waits until it is gone. After a killed supervisor comes [`serve`](Self::serve).
    pub fn kill(&self, part: Part) -> Result<()> {
        let pid = self.pid(part)?;
        let daemon = self.pid(Part::Daemon)?;
        kill_process(pid, Signal::KILL)?;
        if part == Part::Supervisor {
            if let Some(mut child) = self.supervisor().take() {
                child.wait()?;
            }
            // It goes down with its supervisor, orderly, and must be gone before another opens the same folders.
            return until("the daemon follows its supervisor", || Ok(!alive(daemon)));
        }
        until("a new process takes its place", || Ok(self.pid(part).is_ok_and(|new| new != pid)))
    }

    /// Has the running service become the program that is installed, and waits until that is ready.
    pub fn upgrade(&self) -> Result<()> {
        let seen = self.log().len();
        kill_process(self.pid(Part::Supervisor)?, Signal::HUP)?;
        until("the upgraded service is ready", || {
            Ok(self.log().get(seen..).is_some_and(|said| said.contains("sampan: ready")))
        })
    }

    /// The number of a part.
    pub fn pid(&self, part: Part) -> Result<Pid> {
        let supervisor = self.supervisor().as_ref().map(Pid::from_child).context("the service does not run")?;
        if part == Part::Supervisor {
            return Ok(supervisor);
        }
        let role = if part == Part::Zygote { "zygote" } else { "daemon" };
        let number = supervisor.as_raw_nonzero();
        let children = fs::read_to_string(format!("/proc/{number}/task/{number}/children"))?;
        for child in children.split_whitespace() {
            let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0).skip(1);
            if words.next() == Some(b"internal") && words.next() == Some(role.as_bytes()) {
                return Pid::from_raw(child.parse()?).context("a process without a number");
            }
        }
        bail!("there is no {role}")
    }

    /// Waits until the API answers, as after a killed daemon.
    pub fn wait_until_it_answers(&self) -> Result<()> {
        until("the service answers", || Ok(self.sampan(["ps", "-q"]).finish()?.code == 0))
    }

    /// A call of the client.
    pub fn sampan<Word: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = Word>) -> Call {
        Call::new(&self.binary)
            .env("SAMPAN_SOCKET", self.run_dir().join("sampan.sock"))
            .env("TMPDIR", self.temporary())
            .directory(&self.work())
            .args(words)
    }

    /// A call of kubectl.
    pub fn kubectl<Word: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = Word>) -> Call {
        Call::new("kubectl")
            .env("KUBECONFIG", self.data_dir().join("kubeconfig"))
            .env("HOME", self.work())
            .env("TMPDIR", self.temporary())
            .directory(&self.work())
            .args(words)
    }

    /// An image in the registry under `name`, pushed when it is first wanted; gives its reference.
    pub fn image(&self, name: &str, make: impl FnOnce() -> Result<Image>) -> Result<String> {
        let mut pushed = self.pushed.lock().unwrap_or_else(PoisonError::into_inner);
        if !pushed.contains(name) {
            self.registry.push(&make()?, name)?;
            pushed.insert(name.to_owned());
        }
        Ok(self.registry.reference(name))
    }

    /// The small image with a shell.
    pub fn busybox(&self) -> Result<String> {
        self.image("busybox:latest", busybox::image)
    }

    /// What the service has said so far.
    pub fn log(&self) -> String {
        fs::read(self.log_path()).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// Where it keeps images, disks, logs and objects.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Where it keeps sockets.
    pub fn run_dir(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// The place for temporary files of everything that belongs to this program.
    pub fn temporary(&self) -> PathBuf {
        self.folder.path().join("temporary")
    }

    /// A folder for the tests' own files; the directory that commands run in.
    pub fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    /// All of its folders.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("serve.log")
    }

    fn supervisor(&self) -> MutexGuard<'_, Option<Child>> {
        self.supervisor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{}: {error:#}", self.instance);
        }
    }
}

/// Whether any thread of a process is there: a zombie whose other threads still run holds its files and locks.
pub fn alive(pid: Pid) -> bool {
    let folder = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let status = fs::read_to_string(folder.join("stat")).unwrap_or_default();
    let ended = |rest: &str| matches!(rest.trim_start().as_bytes().first(), Some(b'Z' | b'X'));
    let threads = fs::read_dir(folder.join("task")).map_or(0, Iterator::count);
    status.rsplit_once(')').is_some_and(|(_, rest)| !ended(rest) || threads > 1)
}

/// `SAMPAN_BIN`, or the program that cargo built beside this one.
fn binary() -> Result<PathBuf> {
    let path = match std::env::var_os("SAMPAN_BIN") {
        Some(path) => PathBuf::from(path),
        None => {
            let own = std::env::current_exe()?;
            own.ancestors().nth(2).context("this program lies nowhere")?.join("sampan")
        }
    };
    ensure!(
        path.is_file(),
        "there is no program {}; build it with `cargo build -p sampan`, or set SAMPAN_BIN",
        path.display()
    );
    path.canonicalize().with_context(|| format!("find {}", path.display()))
}
