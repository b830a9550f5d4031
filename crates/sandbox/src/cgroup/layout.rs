//! Which hierarchies this machine has and what they carry.
//!
//! A controller sits in exactly one hierarchy. On a hybrid machine most sit in v1 hierarchies beside a v2 one that carries few
//! or none; a v2 hierarchy counts here only when it carries something we use.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is limited or counted. `freezer` is left alone.
const CONTROLLERS: [&str; 7] = ["cpu", "cpuacct", "memory", "devices", "pids", "cpuset", "hugetlb"];

/// Those without which everything else works: a v1 hierarchy that carries nothing else has groups only for those who ask
/// for it (so has a v2 one beside v1), and on v2 it is no failure when they cannot be handed down.
const SELDOM: [&str; 2] = ["cpuset", "hugetlb"];

/// Where processes go that stand in the way, in the root group of a container's own cgroup namespace.
const MOVED_ASIDE: &str = "init";

/// How often those processes are looked for: they may fork while they are moved.
const MOVE_ROUNDS_MAX: u32 = 100;

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) root: PathBuf,
    /// cgroup v2.
    pub(crate) unified: bool,
    controllers: Vec<String>,
    /// All controllers of a v1 hierarchy, separated by commas, ours or not: the kernel wants them all to mount it again.
    pub(crate) all_controllers: String,
    /// Carries only what is seldom asked for: most groups do not exist here.
    pub(crate) on_demand: bool,
}

impl Hierarchy {
    /// Whether a controller sits here. On v2, `cpu` counts too what `cpuacct` counts on v1.
    pub(crate) fn has(&self, controller: &str) -> bool {
        let controller = if self.unified && controller == "cpuacct" { "cpu" } else { controller };
        self.controllers.iter().any(|ours| ours == controller)
    }

    /// A new group of v1's `cpuset` has no cores and no memory, and takes no process, until it is given some.
    pub(crate) fn inherit_sets(&self, group: &Path) -> io::Result<()> {
        if self.unified || !self.has("cpuset") {
            return Ok(());
        }
        let Some(parent) = group.parent() else { return Ok(()) };
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if std::fs::read_to_string(group.join(file))?.trim().is_empty() {
                std::fs::write(group.join(file), std::fs::read_to_string(parent.join(file))?)?;
            }
        }
        Ok(())
    }

    /// On v2, hands the controllers from a group down to those inside it; v1 has no such step.
    pub(crate) fn hand_down(&self, group: &Path) -> io::Result<()> {
        if !self.unified {
            return Ok(());
        }
        let file = group.join("cgroup.subtree_control");
        let handed = std::fs::read_to_string(&file)?;
        let missing = self.controllers.iter().filter(|one| !handed.split_whitespace().any(|have| have == *one));
        let (seldom, needed): (Vec<&String>, Vec<&String>) = missing.partition(|one| SELDOM.contains(&one.as_str()));
        if !needed.is_empty() {
            let request: Vec<String> = needed.iter().map(|controller| format!("+{controller}")).collect();
            let request = request.join(" ");
            match std::fs::write(&file, &request) {
                // The root of a cgroup namespace is a group like others, and may not have both members and children.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && group == self.root => {
                    move_members_aside(group)?;
                    std::fs::write(&file, &request)?;
                }
                result => result?,
            }
        }
        for controller in seldom {
            if let Err(error) = std::fs::write(&file, format!("+{controller}")) {
                tracing::debug!(group = %group.display(), controller, %error, "a controller cannot be handed down");
            }
        }
        Ok(())
    }
}

/// Moves the processes of a group into a leaf below it, as those do who run in a container.
fn move_members_aside(group: &Path) -> io::Result<()> {
    let aside = group.join(MOVED_ASIDE);
    match std::fs::create_dir(&aside) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    for _ in 0..MOVE_ROUNDS_MAX {
        let members = std::fs::read_to_string(group.join("cgroup.procs"))?;
        if members.trim().is_empty() {
            return Ok(());
        }
        for pid in members.lines() {
            match std::fs::write(aside.join("cgroup.procs"), pid) {
                // It has just ended.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                result => result?,
            }
        }
    }
    Err(io::Error::other("processes keep appearing in the root of the cgroup namespace"))
}

/// Finds the hierarchies of this machine.
pub(crate) fn detect() -> io::Result<Arc<[Hierarchy]>> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")?;
    let found = parse(&mountinfo, |root| std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default());
    Ok(found.into())
}

/// Reads `/proc/self/mountinfo` (proc_pid_mountinfo(5)); `controllers_of` tells what a v2 hierarchy carries.
fn parse(mountinfo: &str, controllers_of: impl Fn(&Path) -> String) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
        let Some(point) = mount.split(' ').nth(4) else { continue };
        let mut fields = filesystem.split(' ');
        let (kind, options) = (fields.next().unwrap_or_default(), fields.nth(1).unwrap_or_default());
        let root = PathBuf::from(point);
        let (unified, carried) = match kind {
            "cgroup" => (false, options.replace(',', " ")),
            "cgroup2" => (true, controllers_of(&root)),
            _ => continue,
        };
        let ours = |controller: &&str| CONTROLLERS.contains(controller);
        let new = |controller: &&str| !found.iter().any(|known| known.controllers.iter().any(|one| one == controller));
        let controllers: Vec<String> = carried.split_whitespace().filter(ours).filter(new).map(str::to_owned).collect();
        if !controllers.is_empty() {
            // The options of the mount itself, beside the names of controllers.
            let is_controller = |option: &&str| !matches!(*option, "rw" | "ro" | "xattr" | "noprefix");
            let all: Vec<&str> = carried.split_whitespace().filter(is_controller).collect();
            let on_demand = controllers.iter().all(|one| SELDOM.contains(&one.as_str()));
            found.push(Hierarchy { root, unified, controllers, all_controllers: all.join(","), on_demand });
        }
    }
    found
}

/// A v2 hierarchy that carries nothing.
#[cfg(test)]
pub(super) fn unified_for_tests(root: PathBuf) -> Hierarchy {
    Hierarchy { root, unified: true, controllers: Vec::new(), all_controllers: String::new(), on_demand: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mountinfo: &str, unified_controllers: &str, expected: &[(&str, bool, &[&str])]) {
        let found = parse(mountinfo, |_| unified_controllers.to_owned());
        let seen: Vec<(&str, bool, Vec<&str>)> = found
            .iter()
            .map(|one| (one.root.to_str().unwrap(), one.unified, one.controllers.iter().map(String::as_str).collect()))
            .collect();
        let expected: Vec<(&str, bool, Vec<&str>)> =
            expected.iter().map(|(root, unified, controllers)| (*root, *unified, controllers.to_vec())).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn version_2_alone() {
        let mountinfo = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let expected: &[(&str, bool, &[&str])] =
            &[("/sys/fs/cgroup", true, &["cpuset", "cpu", "memory", "hugetlb", "pids"])];
        check(mountinfo, "cpuset cpu io memory hugetlb pids\n", expected);
    }

    #[test]
    fn hybrid_with_an_empty_version_2() {
        let mountinfo = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
50 31 0:32 / /mnt/memory-again rw,relatime - cgroup cgroup rw,memory
";
        let expected: &[(&str, bool, &[&str])] = &[
            ("/sys/fs/cgroup/cpu,cpuacct", false, &["cpu", "cpuacct"]),
            ("/sys/fs/cgroup/memory", false, &["memory"]),
        ];
        check(mountinfo, "", expected);
    }

    #[test]
    fn hybrid_with_a_partly_used_version_2() {
        let mountinfo = "\
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
        let expected: &[(&str, bool, &[&str])] = &[
            ("/sys/fs/cgroup/memory", false, &["memory"]),
            ("/sys/fs/cgroup/unified", true, &["cpu", "pids", "hugetlb"]),
        ];
        check(mountinfo, "cpu pids hugetlb", expected);
    }
}
