//! What peers leave outside of their folders, taken away again: processes, mounts, and paths that were not there before.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

/// How long a service may take to end by itself.
const END_DEADLINE: Duration = Duration::from_secs(20);

/// Paths that some engine makes wherever it is told to live.
const SHARED: [&str; 13] = [
    "/run/containerd",
    "/run/containerd-stargz-grpc",
    "/run/soci-snapshotter-grpc",
    "/var/lib/soci-snapshotter-grpc",
    "/run/containerd-nydus",
    "/var/lib/containerd-nydus",
    "/run/runc",
    "/run/crun",
    "/run/libpod",
    "/run/containers",
    "/var/lib/containers",
    "/var/lib/cni",
    "/opt/containerd",
];

/// Cgroups that engines make at the top of every hierarchy.
const GROUPS: [&str; 2] = [crate::engines::NAMESPACE, "libpod_parent"];

/// Which of the shared paths and cgroups were not there before; those are removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Footprint {
    absent: Vec<PathBuf>,
    absent_groups: Vec<PathBuf>,
}

impl Footprint {
    /// Looks before anything is started.
    pub(crate) fn look() -> Self {
        let absent = SHARED.iter().map(PathBuf::from).filter(|path| !path.exists()).collect();
        let absent_groups = group_paths().filter(|path| !path.exists()).collect();
        Self { absent, absent_groups }
    }
}

impl Drop for Footprint {
    fn drop(&mut self) {
        for path in &self.absent {
            drop(unmount_below(path));
            drop(fs::remove_dir_all(path));
        }
        for group in &self.absent_groups {
            remove_group(group);
        }
    }
}

/// Asks a service to end, and makes it when it does not.
pub(crate) fn end(child: &mut Child) -> Result<()> {
    if child.try_wait()?.is_none() {
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM)?;
        }
        let begin = Instant::now();
        while child.try_wait()?.is_none() && begin.elapsed() < END_DEADLINE {
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill()?;
    }
    child.wait()?;
    Ok(())
}

/// Ends what an engine started and removes its folder: processes that name it in their command line, mounts below it.
pub(crate) fn remove_folder(folder: &Path) -> Result<()> {
    kill_mentioning(folder)?;
    unmount_below(folder)?;
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        outcome => outcome.with_context(|| format!("remove {}", folder.display())),
    }
}

/// Kills what still runs in the containers of an engine: processes whose command lines are the images' own.
pub(crate) fn kill_containers() -> Result<()> {
    let mut groups: Vec<PathBuf> = group_paths().collect();
    while let Some(group) = groups.pop() {
        let below = fs::read_dir(&group).into_iter().flatten().flatten().map(|entry| entry.path());
        groups.extend(below.filter(|path| path.is_dir()));
        let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        for pid in processes.lines().filter_map(|line| Pid::from_raw(line.trim().parse().ok()?)) {
            kill(pid)?;
        }
    }
    Ok(())
}

fn kill(pid: Pid) -> Result<()> {
    match kill_process(pid, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).context("end what an engine left running"),
    }
}

fn kill_mentioning(folder: &Path) -> Result<()> {
    let folder = folder.as_os_str().as_encoded_bytes();
    let ours = std::process::id();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // Processes end while we look at them.
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let mentions = line.windows(folder.len()).any(|window| window == folder);
        if mentions
            && u32::try_from(pid) != Ok(ours)
            && let Some(pid) = Pid::from_raw(pid)
        {
            kill(pid)?;
        }
    }
    Ok(())
}

/// Detaches every mount below `folder`, the innermost first.
fn unmount_below(folder: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let below =
        mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|path| Path::new(path).starts_with(folder));
    let mut below: Vec<&str> = below.collect();
    below.reverse();
    for path in below {
        unmount(path, UnmountFlags::DETACH).with_context(|| format!("unmount {path}"))?;
    }
    Ok(())
}

/// Where such groups would be, whatever the versions of the hierarchies.
fn group_paths() -> impl Iterator<Item = PathBuf> {
    let top = PathBuf::from("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(&top).into_iter().flatten().flatten().map(|entry| entry.path());
    let places: Vec<PathBuf> = hierarchies.chain([top]).filter(|path| path.join("cgroup.procs").exists()).collect();
    places.into_iter().flat_map(|place| GROUPS.map(|group| place.join(group)))
}

/// Removes an empty cgroup with the empty ones in it; one with processes in it belongs to somebody.
fn remove_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_group(&entry.path());
        }
    }
    drop(fs::remove_dir(group));
}
