//! Control groups of pods and containers, on cgroup v2, v1 and hybrids of both.
//!
//! ```text
//! <hierarchy>/<instance>/<sandbox id>/           pod: limits of the whole
//!                                     agent/     the agent alone, so that no container's limit ever hits it
//!                                     c-<name>/  a container and its execs
//! <hierarchy>/<parent>/<instance>-<sandbox id>/   the same, where somebody else (the kubelet) keeps the pods' groups
//! ```
//! On v1 alone there is no `agent/`: groups may have members beside others inside them, and every directory there is one in each
//! of five hierarchies.
//!
//! The same tree stands in every hierarchy that carries a controller we use. Groups hang at the root of each hierarchy, not
//! below the service's own group: they outlive it. Everything here is short, synchronous file work; callers on a runtime
//! use `spawn_blocking`.

mod device_filter;
mod layout;
#[cfg(test)]
mod tests;
mod usage;

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use layout::{Hierarchy, detect};
pub use usage::GroupUsage;

use crate::devices::{self, DeviceNode};
use crate::limits::{GROUP_FILE_BYTES_MAX, GROUP_FILE_BYTES_USUAL, GROUP_REMOVAL_MAX};

/// What a pod or a container may use; absent means no limit, and in an update no change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resources {
    /// The share in times of contention, in thousandths of a core.
    pub cpu_request_millis: Option<u64>,
    pub cpu_limit_millis: Option<u64>,
    /// The share as the CRI says it, instead of [`Resources::cpu_request_millis`]: 1024 a core.
    pub cpu_shares: Option<u64>,
    /// The limit as the CRI says it, instead of [`Resources::cpu_limit_millis`]: microseconds in each period; below 0 for none.
    pub cpu_quota_us: Option<i64>,
    /// The period of that; the kernel's default of 100 ms when absent.
    pub cpu_period_us: Option<u64>,
    /// Cores, as in `0-2,7`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes, likewise.
    pub cpuset_mems: Option<String>,
    pub memory_limit_bytes: Option<u64>,
    pub pids_max: Option<u64>,
    pub huge_pages: Vec<HugePages>,
    /// Files of cgroup v2 and what to write into them, as the CRI's `unified`; refused on v1.
    pub unified: Vec<(String, String)>,
}

/// A limit of huge pages of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HugePages {
    /// As the kernel's files have it, `2MB`.
    pub page_size: String,
    pub bytes: u64,
}

/// What the names of containers' groups begin with.
const CONTAINER_PREFIX: &str = "c-";

/// The period over which a processor limit is counted, in microseconds (the kernel's default).
const CPU_PERIOD_US: u64 = 100_000;

/// The smallest quota that the kernel accepts, in microseconds.
const CPU_QUOTA_US_MIN: i64 = 1_000;

/// Where a cgroup parent is below the hierarchies' roots: a path as it stands, a systemd slice as systemd nests it
/// (`a-b.slice` lies in `a.slice`, systemd.slice(5)).
pub(crate) fn parent_path(parent: &str) -> io::Result<PathBuf> {
    let refuse = || Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{parent:?} is not a cgroup parent")));
    let path = Path::new(parent.trim_start_matches('/'));
    let plain = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if !plain || parent.len() > 1024 || parent.contains('\0') {
        return refuse();
    }
    let Some(name) = parent.strip_suffix(".slice").filter(|name| !name.contains('/')) else {
        return Ok(path.to_owned());
    };
    if name == "-" {
        return Ok(PathBuf::new());
    }
    if name.is_empty() || name.starts_with('-') || name.ends_with('-') || name.contains("--") {
        return refuse();
    }
    let ends = name.match_indices('-').map(|(place, _)| place).chain([name.len()]);
    Ok(ends.filter_map(|end| name.get(..end)).map(|slice| format!("{slice}.slice")).collect())
}

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
        for hierarchy in self.everyday() {
            let directory = self.directory(hierarchy);
            if let Some(parent) = directory.parent() {
                hierarchy.hand_down(parent)?;
            }
            std::fs::create_dir(&directory)?;
        }
        Ok(())
    }

    /// Makes a pod's group, with that of its agent.
    pub(crate) fn create_pod(&self) -> io::Result<()> {
        self.create()?;
        if self.unified().is_some() { self.of_agent().create() } else { Ok(()) }
    }

    /// The group of a pod's agent: a leaf, where v2 lets no group have both members and others inside.
    pub(crate) fn of_agent(&self) -> Self {
        if self.unified().is_some() { self.child("agent") } else { self.clone() }
    }

    /// Makes the group where it does not exist yet.
    pub(crate) fn ensure(&self) -> io::Result<()> {
        for hierarchy in self.everyday() {
            let directory = self.directory(hierarchy);
            if let Some(parent) = directory.parent() {
                hierarchy.hand_down(parent)?;
            }
            make_directory(&directory)?;
        }
        Ok(())
    }

    /// Makes every group above this one that does not exist yet, and says which those were, the highest first. They are
    /// somebody else's, who most often has made them already.
    pub(crate) fn ensure_parents(&self) -> io::Result<Vec<PathBuf>> {
        let mut made = Vec::new();
        for hierarchy in self.hierarchies.iter() {
            let Some(parents) = self.path.parent() else { continue };
            let mut directory = hierarchy.root.clone();
            for part in parents.components() {
                hierarchy.hand_down(&directory)?;
                directory.push(part);
                if make_directory(&directory)? {
                    made.push(directory.clone());
                    hierarchy.inherit_sets(&directory)?;
                }
            }
        }
        Ok(made)
    }

    /// Makes sure that the group, and those above it, exist in the hierarchy of a controller that is seldom used.
    fn demand(&self, controller: &str) -> io::Result<()> {
        let Some(hierarchy) =
            self.hierarchies.iter().find(|hierarchy| hierarchy.on_demand && hierarchy.has(controller))
        else {
            return Ok(());
        };
        let mut directory = hierarchy.root.clone();
        for part in self.path.components() {
            hierarchy.hand_down(&directory)?;
            directory.push(part);
            if make_directory(&directory)? {
                hierarchy.inherit_sets(&directory)?;
            }
        }
        Ok(())
    }

    /// The hierarchies in which every group is.
    fn everyday(&self) -> impl Iterator<Item = &Hierarchy> {
        self.hierarchies.iter().filter(|hierarchy| !hierarchy.on_demand)
    }

    /// Version 2, where it carries what every group needs.
    fn unified(&self) -> Option<&Hierarchy> {
        self.everyday().find(|hierarchy| hierarchy.unified)
    }

    /// The hierarchies in which this group is, once it has been made.
    fn existing(&self) -> impl Iterator<Item = &Hierarchy> {
        self.hierarchies.iter().filter(|hierarchy| !hierarchy.on_demand || self.directory(hierarchy).exists())
    }

    fn directory(&self, hierarchy: &Hierarchy) -> PathBuf {
        hierarchy.root.join(&self.path)
    }

    /// Whether groups exist in any v1 hierarchy.
    pub(crate) fn has_version_1(&self) -> bool {
        self.everyday().any(|hierarchy| !hierarchy.unified)
    }

    /// The controllers of each v1 hierarchy, separated by commas; none where v2 carries anything.
    pub(crate) fn version_1_controllers(&self) -> Vec<String> {
        if self.unified().is_some() {
            return Vec::new();
        }
        self.existing().map(|hierarchy| hierarchy.all_controllers.clone()).collect()
    }

    /// The directory in the hierarchy with this controller.
    fn with(&self, controller: &str) -> Option<(&Hierarchy, PathBuf)> {
        let hierarchy = self.hierarchies.iter().find(|hierarchy| hierarchy.has(controller))?;
        Some((hierarchy, self.directory(hierarchy)))
    }

    /// The group's directory on cgroup v2, where that is in use.
    pub(crate) fn open_unified(&self) -> io::Result<Option<OwnedFd>> {
        let Some(hierarchy) = self.unified() else { return Ok(None) };
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
        self.existing().map(open).collect()
    }

    /// Applies limits, also to a group that is in use. Memory and processes are always enforced as asked; where the kernel
    /// has no such controller, a limit that was asked for is an error.
    pub(crate) fn limit(&self, resources: &Resources) -> io::Result<()> {
        self.limit_cpu(resources)?;
        self.limit_sets(resources)?;
        if let Some(bytes) = resources.memory_limit_bytes {
            self.limit_memory(bytes)?;
        }
        if let Some(pids) = resources.pids_max {
            self.set("pids", ("pids.max", pids.to_string()), ("pids.max", pids.to_string()))?;
        }
        for pages in &resources.huge_pages {
            self.limit_huge_pages(pages)?;
        }
        for (file, value) in &resources.unified {
            self.set_unified(file, value)?;
        }
        Ok(())
    }

    fn limit_cpu(&self, resources: &Resources) -> io::Result<()> {
        let from_millis = resources.cpu_request_millis.map(|millis| millis.saturating_mul(1024) / 1000);
        if let Some(shares) = resources.cpu_shares.or(from_millis) {
            let shares = shares.clamp(2, 262_144);
            // The kubelet's mapping of shares to weights (kubernetes/enhancements KEP-2254).
            let weight = 1 + (shares - 2) * 9999 / 262_142;
            self.set("cpu", ("cpu.shares", shares.to_string()), ("cpu.weight", weight.to_string()))?;
        }
        let period = resources.cpu_period_us.unwrap_or(CPU_PERIOD_US);
        let from_millis = resources.cpu_limit_millis.map(|millis| millis.saturating_mul(period) / 1000);
        let quota = resources.cpu_quota_us.or(from_millis.map(|quota| i64::try_from(quota).unwrap_or(i64::MAX)));
        let Some(quota) = quota else { return Ok(()) };
        if resources.cpu_period_us.is_some() && self.with("cpu").is_some_and(|(hierarchy, _)| !hierarchy.unified) {
            self.set("cpu", ("cpu.cfs_period_us", period.to_string()), ("cpu.max", String::new()))?;
        }
        let (version_1, version_2) = if quota < 0 {
            ("-1".to_owned(), format!("max {period}"))
        } else {
            let quota = quota.max(CPU_QUOTA_US_MIN);
            (quota.to_string(), format!("{quota} {period}"))
        };
        self.set("cpu", ("cpu.cfs_quota_us", version_1), ("cpu.max", version_2))
    }

    fn limit_sets(&self, resources: &Resources) -> io::Result<()> {
        let sets = [("cpuset.cpus", &resources.cpuset_cpus), ("cpuset.mems", &resources.cpuset_mems)];
        for (file, set) in sets {
            if let Some(set) = set.as_ref().filter(|set| !set.is_empty()) {
                self.demand("cpuset")?;
                self.set("cpuset", (file, set.clone()), (file, set.clone()))?;
            }
        }
        Ok(())
    }

    /// Memory, and no swap beyond it where swap is counted at all. On v1 the sum with swap is never below the limit, so that
    /// it goes first when both rise.
    fn limit_memory(&self, bytes: u64) -> io::Result<()> {
        let text = bytes.to_string();
        let limit = || self.set("memory", ("memory.limit_in_bytes", text.clone()), ("memory.max", text.clone()));
        match limit() {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.limit_swap(&text)?;
                limit()
            }
            result => {
                result?;
                self.limit_swap(&text)
            }
        }
    }

    fn limit_swap(&self, bytes: &str) -> io::Result<()> {
        let Some((hierarchy, directory)) = self.with("memory") else { return Ok(()) };
        let (file, value) =
            if hierarchy.unified { ("memory.swap.max", "0") } else { ("memory.memsw.limit_in_bytes", bytes) };
        match std::fs::write(directory.join(file), value) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Nobody can use huge pages of which the machine has none, so that then nothing needs to be forbidden.
    fn limit_huge_pages(&self, pages: &HugePages) -> io::Result<()> {
        let plain = pages.page_size.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !plain || pages.page_size.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{:?} is no size of pages", pages.page_size),
            ));
        }
        if pages.bytes == 0 && !machine_has_huge_pages() {
            return Ok(());
        }
        self.demand("hugetlb")?;
        let (version_1, version_2) =
            (format!("hugetlb.{}.limit_in_bytes", pages.page_size), format!("hugetlb.{}.max", pages.page_size));
        let bytes = pages.bytes.to_string();
        self.set("hugetlb", (&version_1, bytes.clone()), (&version_2, bytes))
    }

    fn set_unified(&self, file: &str, value: &str) -> io::Result<()> {
        let plain = file.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        let allowed = plain && !file.starts_with("cgroup.") && file.contains('.') && !file.starts_with('.');
        match self.unified().filter(|_| allowed) {
            Some(hierarchy) => std::fs::write(self.directory(hierarchy).join(file), value),
            None => {
                let why = format!("{file} cannot be set: only controllers' files of cgroup v2 can");
                Err(io::Error::new(io::ErrorKind::Unsupported, why))
            }
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
    pub(crate) fn restrict_devices(&self, own_users: bool, further: &[DeviceNode]) -> io::Result<()> {
        let unified = self.unified();
        if let Some((_, directory)) = self.with("devices").filter(|(hierarchy, _)| !hierarchy.unified) {
            std::fs::write(directory.join("devices.deny"), "a")?;
            // One write a rule.
            let mut allow = std::fs::OpenOptions::new().write(true).open(directory.join("devices.allow"))?;
            device_rules(further).try_for_each(|rule| allow.write_all(rule.as_bytes()))?;
        } else if let Some(hierarchy) = unified {
            match device_filter::attach(&self.directory(hierarchy), further) {
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

    /// A file of the group, by its name on v1 and on v2 of the hierarchy that has the controller; whether that is v2 comes
    /// with it.
    pub(crate) fn text(&self, controller: &str, version1: &str, version2: &str) -> Option<(bool, String)> {
        let (hierarchy, directory) = self.with(controller)?;
        let file = if hierarchy.unified { version2 } else { version1 };
        Some((hierarchy.unified, read(&directory.join(file)).ok()?))
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

    /// Names of the containers inside a pod's group. They have groups in every hierarchy, so that one is looked at.
    pub(crate) fn containers(&self) -> io::Result<Vec<String>> {
        let Some(hierarchy) = self.everyday().next() else { return Ok(Vec::new()) };
        let names = subdirectories(&self.directory(hierarchy))?;
        Ok(names.into_iter().filter_map(|name| Some(name.strip_prefix(CONTAINER_PREFIX)?.to_owned())).collect())
    }

    /// The group of a pod's container.
    pub(crate) fn of_container(&self, name: &str) -> Self {
        self.child(&format!("{CONTAINER_PREFIX}{name}"))
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

/// Rules in the language of `devices.allow`: the nodes of every container, `/dev/ptmx`, pseudo terminals and what this one
/// was given. Making other nodes is harmless where opening them is not allowed.
fn device_rules(further: &[DeviceNode]) -> impl Iterator<Item = String> {
    let nodes = devices::NODES.iter().map(|(_, major, minor)| format!("c {major}:{minor} rwm"));
    let given = further.iter().map(|node| {
        format!("{} {}:{} {}", if node.block { 'b' } else { 'c' }, node.major, node.minor, node.permissions)
    });
    nodes.chain(["c *:* m", "b *:* m", "c 5:2 rwm", "c 136:* rwm"].map(str::to_owned)).chain(given)
}

/// Makes one directory; false when it was there.
fn make_directory(path: &Path) -> io::Result<bool> {
    match std::fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether any huge page of any size is reserved or may be.
fn machine_has_huge_pages() -> bool {
    let Ok(sizes) = std::fs::read_dir("/sys/kernel/mm/hugepages") else { return false };
    let any = |path: PathBuf| read(&path).is_ok_and(|text| text.trim() != "0");
    sizes
        .flatten()
        .any(|size| any(size.path().join("nr_hugepages")) || any(size.path().join("nr_overcommit_hugepages")))
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
    // As large as nearly all of them: what grows from nothing asks the kernel time and again.
    let mut text = String::with_capacity(GROUP_FILE_BYTES_USUAL);
    std::fs::File::open(path)?.take(GROUP_FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}
