//! The agent's life: from the zygote's clone to the pod's end.
//!
//! ```text
//! born (host root's ids, nothing mapped yet) ──Configure──> pod (mapped root) ──> killed from outside
//! ```
//! Before `Configure` the agent only mounts its skeleton and answers the daemon. It never exits by itself, except when it
//! cannot even serve its socket: its death is the pod's.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::time::{ClockId, clock_gettime};
use sampan_sys::process::{self, signal_descriptor};
use sampan_sys::socket;
use sampan_wire::agent::{AgentState, ContainerExit, Instant, PodConfiguration, Refusal, RunningContainer};

use crate::container::Container;
use crate::fault::AtStage;
use crate::identity::Identity;
use crate::launch::{Launch, Purpose};
use crate::link::Link;
use crate::streams::Outlet;
use crate::{privileges, stage};

/// Sysctls that belong to the pod's own namespaces; a trailing dot or star-less prefix covers what begins with it.
const SYSCTL_PREFIXES: [&str; 4] = ["net.", "fs.mqueue.", "kernel.shm", "kernel.msg"];

/// Sysctls of the pod's own namespaces by full name.
const SYSCTLS: [&str; 2] = ["kernel.sem", "kernel.domainname"];

/// Everything an agent knows.
pub(crate) struct Agent {
    pub(crate) listener: OwnedFd,
    pub(crate) signals: OwnedFd,
    pub(crate) link: Option<Link>,
    /// Connections on which nobody has greeted yet.
    pub(crate) strangers: Vec<Link>,
    /// Counts the connections; the present one bears this number.
    pub(crate) connection: u64,
    /// What went wrong before anybody could be told.
    pub(crate) fault: Option<Refusal>,
    pub(crate) own_pid_namespace: Option<OwnedFd>,
    /// The agent's own `oom_score_adj`, which a child inherits; it can be opened only before the drop.
    oom_score: Option<OwnedFd>,
    pub(crate) configuration: Option<PodConfiguration>,
    pub(crate) containers: BTreeMap<String, Container>,
    pub(crate) launches: Vec<Launch>,
    /// Running execs: pid and the daemon's id.
    pub(crate) execs: Vec<(i32, u64)>,
    pub(crate) exits: VecDeque<ContainerExit>,
    pub(crate) next_event_id: u64,
    /// Output of ended containers on its way to clients.
    pub(crate) outlets: Vec<Outlet>,
    /// Nothing has happened for a while, and what that had needed is given back.
    pub(crate) rests: bool,
}

/// Runs the agent in a fresh child of the zygote, whose listening socket is the only descriptor it has got.
pub(crate) fn run(id: &str, listener: OwnedFd) -> ! {
    let short: String = id.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
    let name = std::ffi::CString::new(format!("pod-{short}")).unwrap_or_default();
    rustix::thread::set_name(&name).ok();
    process::reset_signals();
    process::ignore_signal(libc::SIGPIPE);
    // In the host's pid namespace orphans would go elsewhere; in a namespace of its own PID 1 has them anyway.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).ok();
    let (Ok(signals), Ok(())) = (signal_descriptor(&[libc::SIGCHLD]), socket::announce(listener.as_fd())) else {
        process::exit_now(1)
    };
    let (own_pid_namespace, oom_score, fault) = match prepare() {
        Ok((namespace, score)) => (Some(namespace), Some(score), None),
        Err(fault) => (None, None, Some(fault)),
    };
    let mut agent = Agent {
        listener,
        signals,
        link: None,
        strangers: Vec::new(),
        connection: 0,
        fault,
        own_pid_namespace,
        oom_score,
        configuration: None,
        containers: BTreeMap::new(),
        launches: Vec::new(),
        execs: Vec::new(),
        exits: VecDeque::new(),
        next_event_id: 1,
        outlets: Vec::new(),
        rests: false,
    };
    loop {
        if agent.turn().is_err() {
            process::exit_now(1);
        }
    }
}

fn prepare() -> Result<(OwnedFd, OwnedFd), Refusal> {
    match process::leave_session_keyring() {
        // A kernel without keys, or a machine whose own filter refuses: then there is nothing to be reached either.
        Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
            return Err(error).at("leave the session keyring");
        }
        _ => {}
    }
    stage::enter_skeleton()?;
    let open = |path: &str, flags: OFlags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
    let namespace = open("/proc/self/ns/pid", OFlags::RDONLY).at("open the pod's pid namespace")?;
    let score = open("/proc/self/oom_score_adj", OFlags::WRONLY).at("open the out-of-memory score")?;
    Ok((namespace, score))
}

impl Agent {
    /// Becomes the pod. The daemon has written the identity maps.
    pub(crate) fn configure(&mut self, configuration: PodConfiguration, cgroups: &[OwnedFd]) -> Result<(), Refusal> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        if self.configuration.is_some() {
            return Err(Refusal::NotNow { why: "the pod is configured already".into() });
        }
        for group in cgroups {
            rustix::io::write(group, b"0").at("enter the agent's cgroup")?;
        }
        // Whose they are, the host's root's or the pod's, differs by sysctl and by kernel: what cannot be set before the drop
        // is tried again after it.
        let set = |(name, value): &&(String, String)| set_sysctl(name, value).is_err();
        let left: Vec<&(String, String)> = configuration.sysctls.iter().filter(set).collect();
        if configuration.drop_to_mapped_root {
            privileges::become_identity(&Identity::default())?;
        }
        if !configuration.hostname.is_empty() {
            rustix::system::sethostname(configuration.hostname.as_bytes()).at("set the hostname")?;
        }
        stage::mount_shared_memory().at("mount the pod's shared memory")?;
        left.into_iter().try_for_each(|(name, value)| set_sysctl(name, value))?;
        self.configuration = Some(configuration);
        Ok(())
    }

    /// Makes a child that is killed for want of memory before the agent is. Raising the score and taking that back is always
    /// allowed; an adjustment below the agent's own needs `CAP_SYS_RESOURCE` on the host. Best effort: it is advice.
    pub(crate) fn with_oom_score<T>(&self, adjustment: i32, make: impl FnOnce() -> T) -> T {
        let set = |adjustment: i32| {
            if let Some(score) = &self.oom_score {
                rustix::io::pwrite(score, adjustment.to_string().as_bytes(), 0).ok();
            }
        };
        set(adjustment);
        let made = make();
        set(0);
        made
    }

    /// What a new daemon is told.
    pub(crate) fn state(&self) -> AgentState {
        // What is on its way for a daemon that is gone runs as soon as this one looks, or its end is told.
        let on_the_way = self.launches.iter().filter_map(|launch| match &launch.purpose {
            Purpose::Container(container) => Some(&**container),
            _ => None,
        });
        // One that has ended and has output left: its end is told when the log is complete.
        let running = self.containers.values().chain(on_the_way);
        let describe = |container: &Container| RunningContainer {
            name: container.name.clone(),
            started_at: container.started_at,
            tty: container.tty,
            stdin: container.stdin,
        };
        AgentState {
            configured: self.configuration.is_some(),
            running: running.map(describe).collect(),
            exits: self.exits.iter().cloned().collect(),
        }
    }
}

fn set_sysctl(name: &str, value: &str) -> Result<(), Refusal> {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte));
    let allowed = SYSCTLS.contains(&name) || SYSCTL_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    if !plain || !allowed || name.contains("..") {
        return Err(Refusal::Failed {
            stage: format!("set sysctl {name}, which is not the pod's own"),
            errno: libc::EPERM,
        });
    }
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    std::fs::write(path, value).at(&format!("set sysctl {name}"))
}

/// The wall clock.
pub(crate) fn now() -> Instant {
    let time = clock_gettime(ClockId::Realtime);
    Instant { seconds: time.tv_sec, nanoseconds: u32::try_from(time.tv_nsec).unwrap_or_default() }
}
