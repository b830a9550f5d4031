//! What a side costs the machine: memory of everything, memory and processor time of its own processes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::bench::drop_caches;

/// Memory that could be had, with nothing cached.
pub(super) fn available_kib() -> Result<f64> {
    drop_caches()?;
    let text = fs::read_to_string("/proc/meminfo")?;
    field(&text, "MemAvailable:").context("/proc/meminfo does not tell MemAvailable")
}

fn field(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The processes of this machine that run one of `programs` and belong to whoever lives in `folder`, or run `pause` in a
/// cgroup of this benchmark's.
pub(super) fn processes(programs: &[PathBuf], folder: &Path) -> Result<Vec<u32>> {
    let identity = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let programs: BTreeSet<(u64, u64)> = programs.iter().filter_map(|path| identity(path)).collect();
    let folder = folder.as_os_str().as_encoded_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Some(program) = identity(&entry.path().join("exe")) else { continue };
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let contains = |text: &[u8], part: &[u8]| text.windows(part.len()).any(|window| window == part);
        let ours = programs.contains(&program) && contains(&read("cmdline"), folder);
        let pause = read("comm") == b"pause\n" && contains(&read("cgroup"), crate::engines::NAMESPACE.as_bytes());
        if ours || pause {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Proportional set size of these.
pub(super) fn pss_kib(processes: &[u32]) -> f64 {
    let size = |pid: &u32| field(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?, "Pss:");
    processes.iter().filter_map(size).sum()
}

/// Processor time that these have used, in user and kernel mode.
pub(super) fn cpu(processes: &[u32]) -> Duration {
    processes.iter().filter_map(|pid| ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)).sum::<u32>() * TICK
}

/// `USER_HZ` is 100 on every architecture that this runs on.
const TICK: Duration = Duration::from_millis(10);

/// Fields 14 and 15 of proc_pid_stat(5); the second one, in parentheses, may hold anything.
fn ticks(stat: &str) -> Option<u32> {
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u32>().ok()? + fields.next()?.parse::<u32>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_behind_the_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 25 17 0 0 20 0 1 0 99 0 0";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(field("MemFree: 1 kB\nMemAvailable:  22 kB\n", "MemAvailable:"), Some(22.0));
    }

    #[test]
    fn this_process_is_found_by_its_program() {
        let program = std::env::current_exe().unwrap();
        let found = processes(std::slice::from_ref(&program), &program).unwrap();
        assert!(found.contains(&std::process::id()), "{found:?}");
        assert!(pss_kib(&[std::process::id()]) > 0.0);
    }
}
