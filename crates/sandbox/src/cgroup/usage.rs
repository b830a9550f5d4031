//! What a group uses, read from its files.

use std::path::PathBuf;

use super::{Hierarchy, read};

/// What a group and all below it use at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GroupUsage {
    /// Processor time since the group was made.
    pub cpu_nanoseconds: u64,
    /// Memory and page cache charged to the group.
    pub memory_usage_bytes: u64,
    /// The same without cache that could be given back at once: what the kubelet calls the working set.
    pub memory_working_set_bytes: u64,
    /// Memory that belongs to no file.
    pub memory_rss_bytes: u64,
    pub page_faults: u64,
    /// Those that waited for a disk.
    pub major_page_faults: u64,
    pub pids: u64,
}

/// The number behind a name in a file of `name number` lines.
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Reads whatever the hierarchies offer; what cannot be read counts as nothing, since a group may go at any moment.
pub(super) fn of<'a>(with: impl Fn(&str) -> Option<(&'a Hierarchy, PathBuf)>) -> GroupUsage {
    let text = |controller: &str, version1: &str, version2: &str| {
        let (hierarchy, directory) = with(controller)?;
        let file = if hierarchy.unified { version2 } else { version1 };
        Some((hierarchy.unified, read(&directory.join(file)).ok()?))
    };
    let number = |controller: &str, version1: &str, version2: &str| {
        text(controller, version1, version2).and_then(|(_, text)| text.trim().parse().ok()).unwrap_or_default()
    };
    let cpu_nanoseconds = text("cpuacct", "cpuacct.usage", "cpu.stat").and_then(|(unified, text)| {
        if unified {
            field(&text, "usage_usec").map(|usec| usec.saturating_mul(1000))
        } else {
            text.trim().parse().ok()
        }
    });
    let memory_usage_bytes: u64 = number("memory", "memory.usage_in_bytes", "memory.current");
    let stat = text("memory", "memory.stat", "memory.stat");
    let memory = |version1: &str, version2: &str| {
        let (unified, text) = stat.as_ref()?;
        field(text, if *unified { version2 } else { version1 })
    };
    let inactive = memory("total_inactive_file", "inactive_file").unwrap_or_default();
    GroupUsage {
        cpu_nanoseconds: cpu_nanoseconds.unwrap_or_default(),
        memory_usage_bytes,
        memory_working_set_bytes: memory_usage_bytes.saturating_sub(inactive),
        memory_rss_bytes: memory("total_rss", "anon").unwrap_or_default(),
        page_faults: memory("total_pgfault", "pgfault").unwrap_or_default(),
        major_page_faults: memory("total_pgmajfault", "pgmajfault").unwrap_or_default(),
        pids: number("pids", "pids.current", "pids.current"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_whole_names_only() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(field(text, "oom_kill"), Some(3));
        assert_eq!(field(text, "oom"), None);
    }
}
