//! Control groups of pods and containers, on cgroup v2, v1 and hybrids of both.
//!
//! ```text
//! <hierarchy>/<instance>/<sandbox id>/           pod: limits of the whole
//!                                     agent/     the agent alone, so that no container's limit ever hits it
//!                                     c-<name>/  a container and its execs
//! ```
//! The same tree stands in every hierarchy that carries a controller we use. Groups hang at the root of each hierarchy, not
//! below the service's own group: they outlive it. Everything here is short, synchronous file work; callers on a runtime
//! use `spawn_blocking`.

mod device_filter;
mod layout;
#[cfg(test)]
mod tests;
mod usage;

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use layout::{Hierarchy, detect};
pub use usage::GroupUsage;

use crate::devices;
use crate::limits::{GROUP_FILE_BYTES_MAX, GROUP_REMOVAL_MAX};

/// What a pod or a container may use; absent means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resources {
    /// The share in times of contention, in thousandths of a core.
    pub cpu_request_millis: Option<u64>,
    pub cpu_limit_millis: Option<u64>,
    pub memory_limit_bytes: Option<u64>,
    pub pids_max: Option<u64>,
}

/// The period over which a processor limit is counted, in microseconds (the kernel's default).
const CPU_PERIOD_US: u64 = 100_000;

/// The smallest quota that the kernel accepts, in microseconds.
const CPU_QUOTA_US_MIN: u64 = 1_000;

/// One group, in every hierarchy.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    hierarchies: Arc<[Hierarchy]>,
    /// `instance/id` or `instance/id/leaf`.
    path: PathBuf,
}

impl Group {
    /// The group at this path below every hierarchy's root, whether it exists or not.
    pub(crate) fn at(hierarchies: &Arc<[Hierarchy]>, path: impl Into<PathBuf>) -> Self {
        Self { hierarchies: Arc::clone(hierarchies), path: path.into() }
    }

    /// A group inside this one.
    pub(crate) fn child(&self, name: &str) -> Self {
        Self::at(&self.hierarchies, self.path.join(name))
    }

    /// Makes the group; it must not exist, and its parent must.
    pub(crate) fn create(&self) -> io::Result<()> {
        for hierarchy in self.hierarchies.iter() {
            let directory = self.directory(hierarchy);
            if let Some(parent) = directory.parent() {
                hierarchy.hand_down(parent)?;
            }
            std::fs::create_dir(&directory)?;
        }
        Ok(())
    }

    /// Makes the group where it does not exist yet.
    pub(crate) fn ensure(&self) -> io::Result<()> {
        for hierarchy in self.hierarchies.iter() {
            let directory = self.directory(hierarchy);
            if let Some(parent) = directory.parent() {
                hierarchy.hand_down(parent)?;
            }
            match std::fs::create_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn directory(&self, hierarchy: &Hierarchy) -> PathBuf {
        hierarchy.root.join(&self.path)
    }

    /// The controllers of each v1 hierarchy, separated by commas; none where v2 carries anything.
    pub(crate) fn version_1_controllers(&self) -> Vec<String> {
        if self.hierarchies.iter().any(|hierarchy| hierarchy.unified) {
            return Vec::new();
        }
        self.hierarchies.iter().map(|hierarchy| hierarchy.all_controllers.clone()).collect()
    }

    /// The directory in the hierarchy with this controller.
    fn with(&self, controller: &str) -> Option<(&Hierarchy, PathBuf)> {
        let hierarchy = self.hierarchies.iter().find(|hierarchy| hierarchy.has(controller))?;
        Some((hierarchy, self.directory(hierarchy)))
    }

    /// The group's directory on cgroup v2, where that is in use.
    pub(crate) fn open_unified(&self) -> io::Result<Option<OwnedFd>> {
        let Some(hierarchy) = self.hierarchies.iter().find(|hierarchy| hierarchy.unified) else { return Ok(None) };
        Ok(Some(sampan_sys::mount::open_directory(rustix::fs::CWD, &self.directory(hierarchy).to_string_lossy())?))
    }

    /// The files by which a process enters the group: whoever writes `0` to all of them is in, whatever its own rights,
    /// since the kernel asks for those of the one who opened them. Reading them tells who is in.
    ///
    /// On v1 it is `tasks`, not `cgroup.procs`: a single thread that moves only itself takes no global lock
    /// (`cgroup_procs_write_start` in `kernel/cgroup/cgroup.c`, since 5.5). Measured on 6.18: 0.05 ms where the other costs
    /// 5 to 20 after a pause. The caller must have one thread.
    pub(crate) fn open_entrances(&self) -> io::Result<Vec<OwnedFd>> {
        let open = |hierarchy: &Hierarchy| {
            let file = if hierarchy.unified { "cgroup.procs" } else { "tasks" };
            let path = self.directory(hierarchy).join(file);
            std::fs::OpenOptions::new().read(true).write(true).open(path).map(OwnedFd::from)
        };
        self.hierarchies.iter().map(open).collect()
    }

    /// Applies limits. Memory and processes are always enforced as asked; where the kernel has no such controller, a limit
    /// that was asked for is an error.
    pub(crate) fn limit(&self, resources: &Resources) -> io::Result<()> {
        if let Some(millis) = resources.cpu_request_millis {
            let shares = (millis.saturating_mul(1024) / 1000).clamp(2, 262_144);
            // The kubelet's mapping of shares to weights (kubernetes/enhancements KEP-2254).
            let weight = 1 + (shares - 2) * 9999 / 262_142;
            self.set("cpu", ("cpu.shares", shares.to_string()), ("cpu.weight", weight.to_string()))?;
        }
        if let Some(millis) = resources.cpu_limit_millis {
            let quota = (millis.saturating_mul(CPU_PERIOD_US) / 1000).max(CPU_QUOTA_US_MIN);
            let maximum = format!("{quota} {CPU_PERIOD_US}");
            self.set("cpu", ("cpu.cfs_quota_us", quota.to_string()), ("cpu.max", maximum))?;
        }
        if let Some(bytes) = resources.memory_limit_bytes {
            let bytes = bytes.to_string();
            self.set("memory", ("memory.limit_in_bytes", bytes.clone()), ("memory.max", bytes.clone()))?;
            self.limit_swap(&bytes)?;
        }
        if let Some(pids) = resources.pids_max {
            self.set("pids", ("pids.max", pids.to_string()), ("pids.max", pids.to_string()))?;
        }
        Ok(())
    }

    /// No swap beyond the memory limit, where swap is counted at all.
    fn limit_swap(&self, bytes: &str) -> io::Result<()> {
        let Some((hierarchy, directory)) = self.with("memory") else { return Ok(()) };
        let (file, value) =
            if hierarchy.unified { ("memory.swap.max", "0") } else { ("memory.memsw.limit_in_bytes", bytes) };
        match std::fs::write(directory.join(file), value) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// On v2, an out-of-memory kill takes the whole group, as containers on Kubernetes expect; v1 has no such thing.
    pub(crate) fn kill_as_one(&self) -> io::Result<()> {
        match self.with("memory") {
            Some((hierarchy, directory)) if hierarchy.unified => {
                std::fs::write(directory.join("memory.oom.group"), "1")
            }
            _ => Ok(()),
        }
    }

    fn set(&self, controller: &str, version1: (&str, String), version2: (&str, String)) -> io::Result<()> {
        let Some((hierarchy, directory)) = self.with(controller) else {
            let why = format!("this machine has no {controller} controller");
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        };
        let (file, value) = if hierarchy.unified { version2 } else { version1 };
        std::fs::write(directory.join(file), value)
    }

    /// Lets the group use only the harmless devices that every container has, and terminals.
    ///
    /// In a user namespace of its own a container cannot make device nodes and is given no others, so that there the list
    /// is a second line of defence: where the kernel does not let us load it, the container starts without.
    pub(crate) fn restrict_devices(&self, own_users: bool) -> io::Result<()> {
        let unified = self.hierarchies.iter().find(|hierarchy| hierarchy.unified);
        if let Some((_, directory)) = self.with("devices").filter(|(hierarchy, _)| !hierarchy.unified) {
            std::fs::write(directory.join("devices.deny"), "a")?;
            for rule in device_rules() {
                std::fs::write(directory.join("devices.allow"), rule)?;
            }
        } else if let Some(hierarchy) = unified {
            match device_filter::attach(&self.directory(hierarchy)) {
                Err(error) if own_users && error.kind() == io::ErrorKind::PermissionDenied => {
                    tracing::debug!("the device list cannot be loaded: this service may not use BPF");
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// How many processes of the group the kernel has killed for want of memory.
    pub(crate) fn out_of_memory_kills(&self) -> u64 {
        let Some((hierarchy, directory)) = self.with("memory") else { return 0 };
        let file = if hierarchy.unified { "memory.events" } else { "memory.oom_control" };
        read(&directory.join(file)).ok().and_then(|text| usage::field(&text, "oom_kill")).unwrap_or_default()
    }

    /// What the group uses.
    pub(crate) fn usage(&self) -> GroupUsage {
        usage::of(|controller| self.with(controller))
    }

    /// Kills whatever is left in the group and all below it and removes it. Groups that do not exist are removed already.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + GROUP_REMOVAL_MAX;
        for hierarchy in self.hierarchies.iter() {
            remove_tree(&self.directory(hierarchy), deadline)?;
        }
        Ok(())
    }

    /// Whether the group exists in any hierarchy.
    pub(crate) fn exists(&self) -> bool {
        self.hierarchies.iter().any(|hierarchy| self.directory(hierarchy).exists())
    }

    /// Names of the groups inside this one, in any hierarchy.
    pub(crate) fn children(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for hierarchy in self.hierarchies.iter() {
            names.extend(subdirectories(&self.directory(hierarchy))?);
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}

/// Rules in the language of `devices.allow`: the nodes of every container, `/dev/ptmx` and pseudo terminals. Making other
/// nodes is harmless where opening them is not allowed.
fn device_rules() -> impl Iterator<Item = String> {
    let nodes = devices::NODES.iter().map(|(_, major, minor)| format!("c {major}:{minor} rwm"));
    nodes.chain(["c *:* m", "b *:* m", "c 5:2 rwm", "c 136:* rwm"].map(str::to_owned))
}

fn subdirectories(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// Removes a directory of groups from its leaves up, killing what is inside, until the deadline.
fn remove_tree(directory: &Path, deadline: Instant) -> io::Result<()> {
    let mut pause = Duration::from_micros(200);
    loop {
        match std::fs::remove_dir(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // EBUSY: groups or processes (zombies too) are inside.
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => {}
        }
        let inside = subdirectories(directory)?;
        for name in &inside {
            remove_tree(&directory.join(name), deadline)?;
        }
        if inside.is_empty() && kill_processes(directory)? {
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

/// Kills the processes of one group; false when there were none.
fn kill_processes(directory: &Path) -> io::Result<bool> {
    if std::fs::write(directory.join("cgroup.kill"), "1").is_ok() {
        return Ok(true);
    }
    let pids = match read(&directory.join("cgroup.procs")) {
        Ok(pids) => pids,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    // 0 stands for a process of a pid namespace that is not visible here; it is not ours to kill.
    for pid in pids.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 1) {
        match sampan_sys::process::signal_by_pid(pid, libc::SIGKILL) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
            _ => {}
        }
    }
    // Even an empty list may hide a process that is just going: whoever asks waits and tries again.
    Ok(true)
}

/// Reads a group's file; they are all short.
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(GROUP_FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}
