//! The supervisor: starts zygote and daemon, restarts what dies, and does as little else as possible.
//!
//! One thread, one `poll`. It holds the zygote's listening socket, so that a new zygote answers at the old address, and
//! the lock that keeps a second service off the same folders. It is the subreaper of agents whose zygote died. It holds what
//! must not be closed when the daemon dies (the FUSE connection of incomplete images, every queue of it) and hands it down
//! to the next daemon; what that is, it does not know.
//!
//! SIGHUP makes it stop its children and become the program that is installed now, with all that it holds: an upgrade.
//!
//! # Failure
//! A child that dies is started again after a growing delay. Only a daemon that fails before it was ever ready ends
//! the service: then the configuration is wrong, and the daemon has said how.

mod upgrade;

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, wait};
use sampan_kit::backoff::Backoff;
use sampan_sys::keeper::KeptDescriptors;
use sampan_sys::process::{drain_signals, signal_descriptor};
use sampan_sys::socket::{self, Kind};

use crate::cli::serve::{ServeArgs, ServeRole};
use crate::output;

/// First and longest delay before a dead child is started again.
const RESTART_DELAY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));
/// A child that lived this long starts the delays over.
const RESTART_FORGIVEN_AFTER: Duration = Duration::from_secs(60);
/// The same for one that had become ready: readers of images that are still arriving wait for its successor.
const RESTART_FORGIVEN_READY_AFTER: Duration = Duration::from_millis(200);
/// A child that was ready, and lived this long, is started again at once: it did not die of how it begins.
const RESTART_AT_ONCE_AFTER: Duration = Duration::from_secs(1);
/// How long a daemon that has closed its end of everything may take to be gone.
const SILENCE_MAX: Duration = Duration::from_millis(300);
/// How long a killed child is waited for at the end of the service.
const KILLED_MAX: Duration = Duration::from_secs(5);
/// How long the daemon may take to stop by itself.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// Runs the service until SIGTERM or SIGINT.
pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("serve: this needs root, to make namespaces, mounts and interfaces; run it with sudo");
    }
    make_folder(&args.data_dir, 0o700)?;
    // One that was there before may be open to all, and the store in it holds Secrets.
    std::fs::set_permissions(&args.data_dir, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("serve: cannot close the folder {} to others", args.data_dir.display()))?;
    make_folder(&args.run_dir, 0o711)?;
    let _lock = lock(args)?;
    set_child_subreaper(Some(rustix::process::getpid())).context("serve: cannot become the reaper of agents")?;
    let path = args.run_dir.join("zygote.sock");
    remove_stale(&path)?;
    let zygote_socket =
        socket::listen(&path, Kind::Packet).with_context(|| format!("serve: cannot listen on {}", path.display()))?;
    let listen =
        |signals: &[Signal]| signal_descriptor(&signals.iter().map(|signal| signal.as_raw()).collect::<Vec<_>>());
    let cannot = "serve: cannot listen for signals";
    let signals = Signals {
        deaths: listen(&[Signal::CHILD]).context(cannot)?,
        stops: listen(&[Signal::TERM, Signal::INT]).context(cannot)?,
        upgrades: listen(&[Signal::HUP]).context(cannot)?,
    };
    let (ready, ready_writer) = io::pipe().context("serve: cannot make a pipe")?;
    let zygote = Process::new(Part::Zygote);
    let mut supervisor = Supervisor {
        args: args.clone(),
        zygote_socket,
        ready_writer: ready_writer.into(),
        children: [zygote, Process::new(Part::Daemon)],
        ever_ready: false,
        kept: upgrade::inherited().context("serve: cannot take over what the version before held")?,
        daemon_socket: None,
        silent_since: None,
    };
    let served = supervisor.serve(&signals, ready);
    let stopped = supervisor.stop();
    served.and(stopped)
}

/// Descriptors that report signals.
struct Signals {
    deaths: OwnedFd,
    stops: OwnedFd,
    upgrades: OwnedFd,
}

/// Which child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Zygote,
    Daemon,
}

impl Part {
    const fn role(self) -> &'static str {
        match self {
            Self::Zygote => "zygote",
            Self::Daemon => "daemon",
        }
    }
}

/// A child and when to start it again.
struct Process {
    part: Part,
    child: Option<Child>,
    since: Instant,
    due: Option<Instant>,
    delay: Backoff,
    /// Whether it has said that it is ready.
    is_ready: bool,
}

impl Process {
    fn new(part: Part) -> Self {
        let delay = Backoff::new(RESTART_DELAY.0, RESTART_DELAY.1);
        Self { part, child: None, since: Instant::now(), due: Some(Instant::now()), delay, is_ready: false }
    }

    fn died(&mut self) {
        self.child = None;
        let (was_ready, lived) = (std::mem::take(&mut self.is_ready), self.since.elapsed());
        let enough = if was_ready { RESTART_FORGIVEN_READY_AFTER } else { RESTART_FORGIVEN_AFTER };
        if lived >= enough {
            self.delay.reset();
        }
        let at_once = was_ready && lived >= RESTART_AT_ONCE_AFTER;
        let delay = if at_once { Duration::ZERO } else { self.delay.fail() };
        self.due = Some(Instant::now() + delay);
    }

    fn pid(&self) -> Option<Pid> {
        self.child.as_ref().and_then(|child| Pid::from_raw(i32::try_from(child.id()).ok()?))
    }
}

struct Supervisor {
    args: ServeArgs,
    zygote_socket: OwnedFd,
    ready_writer: OwnedFd,
    children: [Process; 2],
    ever_ready: bool,
    kept: KeptDescriptors,
    /// Where the daemon says what is to be kept.
    daemon_socket: Option<OwnedFd>,
    /// Since when a daemon that is not reaped has that closed.
    silent_since: Option<Instant>,
}

impl Supervisor {
    /// Until somebody asks for the end.
    fn serve(&mut self, signals: &Signals, mut ready: io::PipeReader) -> anyhow::Result<()> {
        loop {
            self.start_due()?;
            let silent_until = self.silent_since.map(|since| since + SILENCE_MAX);
            let due = self.children.iter().filter_map(|process| process.due).chain(silent_until).min();
            let wait = due.map(|due| due.saturating_duration_since(Instant::now()));
            let timeout = wait.map(|wait| Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(1),
                tv_nsec: i64::from(wait.subsec_nanos()),
            });
            let awaited = [signals.deaths.as_fd(), signals.stops.as_fd(), signals.upgrades.as_fd(), ready.as_fd()];
            let awaited = awaited.into_iter().chain(self.daemon_socket.as_ref().map(AsFd::as_fd));
            let mut polled: Vec<_> = awaited.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
            match poll(&mut polled, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("serve: cannot wait for events"),
            }
            let happened: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
            let [died, stopped, upgraded, became_ready, ..] = happened[..] else { continue };
            self.hear();
            if became_ready {
                let mut byte = [0];
                ready.read_exact(&mut byte).context("serve: cannot hear from the daemon")?;
                self.announce()?;
            }
            if stopped {
                return Ok(());
            }
            if upgraded && drain_signals(signals.upgrades.as_fd()) {
                self.upgrade()?;
            }
            if died && drain_signals(signals.deaths.as_fd()) {
                self.reap()?;
            }
            self.replace_silent()?;
        }
    }

    fn announce(&mut self) -> anyhow::Result<()> {
        let [_, daemon] = &mut self.children;
        daemon.is_ready = true;
        if !self.ever_ready {
            self.ever_ready = true;
            let socket = self.args.run_dir.join("sampan.sock");
            let kubeconfig = self.args.data_dir.join("kubeconfig");
            match self.args.cri_socket().filter(|_| self.args.role == ServeRole::Cri) {
                Some(socket) => output::note(&format!("ready; container runtime interface {}", socket.display())),
                None => {
                    output::note(&format!("ready; socket {}, kubeconfig {}", socket.display(), kubeconfig.display()));
                }
            }
            notify_systemd()?;
        }
        Ok(())
    }

    fn start_due(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        for index in 0..self.children.len() {
            let Some(process) = self.children.get(index).filter(|process| process.due.is_some_and(|due| due <= now))
            else {
                continue;
            };
            let child = self.start(process.part)?;
            if let Some(process) = self.children.get_mut(index) {
                (process.child, process.since, process.due) = (Some(child), now, None);
            }
        }
        Ok(())
    }

    fn start(&mut self, part: Part) -> anyhow::Result<Child> {
        if part == Part::Zygote {
            return self.spawn(part, &[("zygote", self.zygote_socket.as_fd())]);
        }
        // What the one before has said last counts for this one.
        self.hear();
        let (ours, theirs) = socket::pair().context("serve: cannot make a pair of sockets")?;
        self.kept.hand_down(ours.as_fd()).context("serve: cannot hand down what the daemon before has left")?;
        self.daemon_socket = Some(ours);
        self.spawn(part, &[("ready", self.ready_writer.as_fd()), ("keeper", theirs.as_fd())])
    }

    fn spawn(&self, part: Part, handed_down: &[(&str, BorrowedFd<'_>)]) -> anyhow::Result<Child> {
        // Our own image, not what a newer installation may have put at its path: parts of one service match.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("sampan").args(["internal", part.role()]).args(self.args.to_words()).env_remove(upgrade::VARIABLE);
        for (name, descriptor) in handed_down {
            command.args(["--descriptor", &format!("{name}={}", descriptor.as_raw_fd())]);
            rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
        }
        let spawned = command.spawn();
        for (_, descriptor) in handed_down {
            rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::CLOEXEC)?;
        }
        spawned.with_context(|| format!("serve: cannot start the {}", part.role()))
    }

    /// Takes down what the daemon has said so far about what is to be kept; a dead one's last words too.
    fn hear(&mut self) {
        while let Some(socket) = &self.daemon_socket {
            match self.kept.drain(socket.as_fd()) {
                Ok(true) => return,
                Ok(false) => {
                    self.daemon_socket = None;
                    self.silent_since = Some(Instant::now());
                }
                Err(error) => {
                    output::note(&format!("what the daemon wants kept is not kept: {error}"));
                    if error.kind() != io::ErrorKind::InvalidData {
                        self.daemon_socket = None;
                    }
                }
            }
        }
    }

    /// Starts the successor of a daemon that is dead but for a thread that the kernel holds. It may wait for an answer over FUSE
    /// that only the successor can give, so waiting for its end would be waiting for ever.
    fn replace_silent(&mut self) -> anyhow::Result<()> {
        let is_overdue = self.silent_since.is_some_and(|since| since.elapsed() >= SILENCE_MAX);
        let [_, daemon] = &mut self.children;
        let Some(pid) = daemon.pid().filter(|_| is_overdue) else { return Ok(()) };
        output::note(&format!("the daemon (process {}) ends slowly; starting another", pid.as_raw_nonzero()));
        kill_process(pid, Signal::KILL).context("serve: cannot kill the daemon")?;
        daemon.died();
        self.silent_since = None;
        Ok(())
    }

    /// Reaps every dead child, ours and agents that fell to us.
    fn reap(&mut self) -> anyhow::Result<()> {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let status = std::os::unix::process::ExitStatusExt::from_raw(status.as_raw());
            let Some(process) = self.children.iter_mut().find(|process| process.pid() == Some(pid)) else { continue };
            process.died();
            if process.part == Part::Daemon {
                self.silent_since = None;
            }
            self.mourn(pid, status)?;
        }
        Ok(())
    }

    fn mourn(&self, pid: Pid, status: ExitStatus) -> anyhow::Result<()> {
        let dead = self.children.iter().find(|process| process.due.is_some() && process.child.is_none());
        let part = dead.map_or("child", |process| process.part.role());
        if !self.ever_ready {
            bail!("serve: the {part} ended before the service was ready ({status}); its own message stands above");
        }
        output::note(&format!(
            "the {part} (process {pid}) ended: {status}; starting it again",
            pid = pid.as_raw_nonzero()
        ));
        Ok(())
    }

    /// Stops the daemon, then the zygote. Instances go on.
    fn stop(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + STOP_DEADLINE;
        let [zygote, daemon] = &mut self.children;
        for process in [daemon, zygote] {
            let Some(mut child) = process.child.take() else { continue };
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
            let signal = if process.part == Part::Daemon { Signal::TERM } else { Signal::KILL };
            if let Some(pid) = pid {
                kill_process(pid, signal).with_context(|| format!("serve: cannot stop the {}", process.part.role()))?;
            }
            wait_until(&mut child, deadline)?;
        }
        remove_stale(&self.args.run_dir.join("zygote.sock"))?;
        Ok(())
    }
}

/// Waits for a child that was asked to end; at the deadline it is killed.
fn wait_until(child: &mut Child, deadline: Instant) -> anyhow::Result<()> {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0)).context("serve: a child without a number")?;
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    if !ends_within(&pidfd, deadline.saturating_duration_since(Instant::now())) {
        child.kill().context("serve: cannot kill the daemon")?;
        if !ends_within(&pidfd, KILLED_MAX) {
            // The kernel holds a thread of it that waits for what ends with this process.
            return Ok(());
        }
    }
    child.wait().map(drop).context("serve: cannot wait for a child")
}

fn ends_within(pidfd: &OwnedFd, left: Duration) -> bool {
    let timeout =
        Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(1), tv_nsec: i64::from(left.subsec_nanos()) };
    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)).is_ok_and(|ended| ended > 0)
}

fn make_folder(path: &Path, mode: u32) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .with_context(|| format!("serve: cannot make the folder {}", path.display()))
}

fn remove_stale(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("serve: cannot remove the old {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// One service per pair of folders.
fn lock(args: &ServeArgs) -> anyhow::Result<[File; 2]> {
    let one = |folder: &Path| -> anyhow::Result<File> {
        let path = folder.join("serve.lock");
        let file = File::create(&path).with_context(|| format!("serve: cannot make {}", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => bail!(
                "serve: another service already uses {}; stop it, or choose other --data-dir, --run-dir and --instance",
                folder.display()
            ),
            Err(error) => Err(error).with_context(|| format!("serve: cannot lock {}", path.display())),
        }
    };
    Ok([one(&args.data_dir)?, one(&args.run_dir)?])
}

/// Tells systemd that the service is up (sd_notify(3)), where it asked to be told.
fn notify_systemd() -> anyhow::Result<()> {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    socket
        .send_to(b"READY=1", Path::new(&address))
        .map(drop)
        .context("serve: cannot tell systemd that the service is ready")
}
