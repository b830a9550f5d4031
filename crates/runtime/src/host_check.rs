//! What this machine offers to instances, what is missing, and what to do about it.
//!
//! Every check asks the kernel itself where that is possible without changing anything: a file system is "there" when
//! the kernel opens a context for it (which loads its module), nftables when it answers a question. Nothing is mounted,
//! made or left behind, and no check can take longer than `ANSWER_TIMEOUT`. Needs root to be trustworthy and says so.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use serde::Serialize;

/// How long the kernel may take to answer a question over netlink; it answers within microseconds or not at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The oldest kernel that instances start on.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// Whether instances can do without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// Without it nothing starts.
    Required,
    /// Without it something is slower, or one feature is missing.
    Optional,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// Whether it is as it should be.
    pub ok: bool,
    /// Whether it has to be.
    pub need: Need,
    /// What was found.
    pub found: String,
    /// What to do when it is not as it should be; empty when it is.
    pub remedy: String,
}

/// Looks at this machine, in an order in which one would mend things. Blocking, for some milliseconds.
pub fn run() -> Vec<Check> {
    use Need::{Optional, Required};
    vec![
        check("root", Required, root(), "run it as root"),
        check("kernel", Required, kernel(), "install Debian 12 or later, or another kernel of 6.1 or later"),
        check(
            "cgroups",
            Required,
            cgroups(),
            "mount cgroup v2 at /sys/fs/cgroup, or boot with systemd.unified_cgroup_hierarchy=1",
        ),
        check("user namespaces", Required, user_namespaces(), "set sysctl user.max_user_namespaces to 10000 or more"),
        check("idmapped mounts", Required, idmapped_mounts(), "use a kernel of 6.1 or later"),
        check("seccomp", Required, seccomp(), "use a kernel built with CONFIG_SECCOMP_FILTER"),
        check("overlay", Required, file_system("overlay"), "load it with: modprobe overlay"),
        check("ext4", Required, file_system("ext4"), "load it with: modprobe ext4"),
        check("mkfs.ext4", Required, program("mkfs.ext4"), "install it with: apt-get install e2fsprogs"),
        check("loop devices", Required, device("/dev/loop-control"), "load them with: modprobe loop"),
        check("erofs", Required, file_system("erofs"), "load it with: modprobe erofs"),
        check(
            "erofs on files",
            Optional,
            erofs_on_files(),
            "only needed where there are no loop devices: use a kernel of 6.12 or later",
        ),
        check("nftables", Required, nftables(), "load it with: modprobe nf_tables"),
        check(
            "lazy loading",
            Optional,
            lazy_loading(),
            "images are pulled whole here; to start before they are complete: a kernel of 6.9 or later, modprobe fuse",
        ),
        check(
            "kvm",
            Optional,
            device("/dev/kvm"),
            "switch virtualisation on in the firmware (for instances in microVMs)",
        ),
    ]
}

/// What was found, as it should be or not.
type Finding = Result<String, String>;

fn check(name: &'static str, need: Need, finding: Finding, remedy: &str) -> Check {
    match finding {
        Ok(found) => Check { name, ok: true, need, found, remedy: String::new() },
        Err(found) => Check { name, ok: false, need, found, remedy: remedy.to_owned() },
    }
}

fn root() -> Finding {
    if rustix::process::geteuid().is_root() {
        return Ok("yes".to_owned());
    }
    Err("no: what follows is a guess".to_owned())
}

fn kernel() -> Finding {
    let (release, version) = kernel_version();
    if version >= KERNEL_MIN { Ok(release) } else { Err(format!("{release}, older than 6.1")) }
}

fn kernel_version() -> (String, (u32, u32)) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let version = parse_version(&release);
    (release, version)
}

/// Major and minor number of a release such as `6.12.48+deb13-amd64`; what cannot be read counts as 0.
fn parse_version(release: &str) -> (u32, u32) {
    let mut numbers =
        release.split(|character: char| !character.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The layout of control groups, and that what limits need is in it.
fn cgroups() -> Finding {
    const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
    let root = Path::new("/sys/fs/cgroup");
    if let Ok(controllers) = fs::read_to_string(root.join("cgroup.controllers")) {
        let missing = missing(&CONTROLLERS, |name| controllers.split_whitespace().any(|present| present == name));
        return if missing.is_empty() { Ok("v2".to_owned()) } else { Err(format!("v2, without {missing}")) };
    }
    let layout = if root.join("unified/cgroup.procs").exists() { "hybrid" } else { "v1" };
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounted = |name: &str| {
        mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).any(|fields| {
            fields.get(2) == Some(&"cgroup")
                && fields.get(3).is_some_and(|options| options.split(',').any(|one| one == name))
        })
    };
    let missing = missing(&CONTROLLERS, mounted);
    match missing.as_str() {
        "" => Ok(layout.to_owned()),
        "cpu, memory, pids" => Err("none are mounted".to_owned()),
        missing => Err(format!("{layout}, without {missing}")),
    }
}

fn missing(names: &[&str], is_there: impl Fn(&str) -> bool) -> String {
    names.iter().filter(|name| !is_there(name)).copied().collect::<Vec<_>>().join(", ")
}

fn user_namespaces() -> Finding {
    let limit =
        fs::read_to_string("/proc/sys/user/max_user_namespaces").map_err(|_missing| "not in this kernel".to_owned())?;
    match limit.trim().parse::<u64>() {
        Ok(0) => Err("switched off".to_owned()),
        Ok(limit) => Ok(format!("at most {limit}")),
        Err(_) => Err(format!("at most {}", limit.trim())),
    }
}

/// By version: overlay and EROFS both accept them since Linux 5.19.
fn idmapped_mounts() -> Finding {
    let (release, version) = kernel_version();
    if version >= (5, 19) {
        Ok("for overlay and erofs".to_owned())
    } else {
        Err(format!("not for overlay in {release}"))
    }
}

fn seccomp() -> Finding {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    if actions.split_whitespace().any(|action| action == "errno") {
        return Ok("with filters".to_owned());
    }
    Err("no filters in this kernel".to_owned())
}

/// Opening a context makes the kernel load the file system's module.
fn file_system(name: &str) -> Finding {
    match rustix::mount::fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(_) => Ok("available".to_owned()),
        Err(Errno::NODEV) => Err("not in this kernel, nor as a module".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Asks for a mount of a file that is no image: a kernel that mounts files complains about its content, another about its
/// kind (`erofs_fc_get_tree` in fs/erofs/super.c). The file must be on a disk: 6.12 takes none from memory.
fn erofs_on_files() -> Finding {
    let attempt = || -> Result<(), Errno> {
        let context = rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(&context, "source", "/proc/self/exe")?;
        rustix::mount::fsconfig_create(&context)?;
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, rustix::mount::MountAttrFlags::empty())
            .map(drop)
    };
    match attempt() {
        Err(Errno::NOTBLK) => Err("this kernel wants a block device".to_owned()),
        Err(Errno::NODEV) => Err("there is no erofs".to_owned()),
        Err(Errno::PERM) => Err("not allowed to try".to_owned()),
        Ok(()) | Err(_) => Ok("without loop devices".to_owned()),
    }
}

fn program(name: &str) -> Finding {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = directories.map(|directory| directory.join(name)).find(|file| file.is_file());
    found.map(|file| file.display().to_string()).ok_or_else(|| "not installed".to_owned())
}

fn device(path: &str) -> Finding {
    match rustix::fs::open(path, rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty()) {
        Ok(_) => Ok(path.to_owned()),
        Err(Errno::NOENT) => Err(format!("{path} is missing")),
        Err(error) => Err(format!("{path}: {error}")),
    }
}

/// FUSE, and by version: since Linux 6.9 it can ask again for what a killed service left unanswered.
fn lazy_loading() -> Finding {
    device("/dev/fuse")?;
    let (release, version) = kernel_version();
    if version >= (6, 9) { Ok("by fuse".to_owned()) } else { Err(format!("fuse in {release} forgets requests")) }
}

/// Asks for the generation of the rule set (`NFT_MSG_GETGEN`, include/uapi/linux/netfilter/nf_tables.h), which loads
/// the module and needs no table.
fn nftables() -> Finding {
    const NFNL_SUBSYS_NFTABLES: u16 = 10;
    const NFT_MSG_NEWGEN: u16 = 15;
    const NFT_MSG_GETGEN: u16 = 16;
    const NLMSG_ERROR: u16 = 2;
    const NLM_F_REQUEST: u16 = 1;
    let ask = || -> Result<[u8; 256], Errno> {
        let socket: OwnedFd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(rustix::net::netlink::NETFILTER),
        )?;
        rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        // struct nlmsghdr (length, type, flags, sequence, port), then struct nfgenmsg (family, version, resource).
        let mut request = Vec::with_capacity(20);
        request.extend(20_u32.to_ne_bytes());
        request.extend((NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN).to_ne_bytes());
        request.extend(NLM_F_REQUEST.to_ne_bytes());
        request.extend([0; 12]);
        rustix::net::send(&socket, &request, SendFlags::empty())?;
        let mut answer = [0; 256];
        rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| error.to_string())?;
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    if kind == NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN {
        return Ok("available".to_owned());
    }
    let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    match kind {
        NLMSG_ERROR if code != 0 => Err(Errno::from_raw_os_error(code.saturating_neg()).to_string()),
        _ => Err("the kernel does not know it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_all_kinds_are_read() {
        assert_eq!(parse_version("6.12.48+deb13-amd64"), (6, 12));
        assert_eq!(parse_version("6.1.0-rc3"), (6, 1));
        assert_eq!(parse_version("7"), (7, 0));
        assert_eq!(parse_version("weird"), (0, 0));
    }

    #[test]
    fn every_failed_check_has_a_remedy_and_no_other_has() {
        let checks = run();
        assert_eq!(checks.len(), 15);
        for check in &checks {
            assert_eq!(check.ok, check.remedy.is_empty(), "{check:?}");
            assert!(!check.found.is_empty(), "{check:?}");
        }
    }
}
