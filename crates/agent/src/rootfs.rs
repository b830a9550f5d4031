//! A container's tree of mounts, put together by its own child from descriptors.
//!
//! Every destination is resolved inside the container's root (`openat2(2)`, `RESOLVE_IN_ROOT`): an image's symbolic links
//! lead nowhere else, and what is missing is created without following them out. Everything happens in the child's own
//! mount namespace, so that nothing has to be undone when it fails.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use sampan_sys::mount::{FsContext, MountChange, attach, clone_tree, set_attributes};
use sampan_wire::agent::Refusal;

use crate::fault::AtStage;
use crate::limits::TERMINALS_MAX;
use crate::stage::{self, CONTAINER_ROOT, SHARED_MEMORY, inert};

/// What a container must not see (containerd's and docker's default list).
const MASKED_PATHS: [&str; 12] = [
    "proc/acpi",
    "proc/asound",
    "proc/interrupts",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/timer_list",
    "proc/timer_stats",
    "proc/sched_debug",
    "proc/scsi",
    "sys/firmware",
    "sys/devices/virtual/powercap",
];

/// What a container must not change.
const READ_ONLY_PATHS: [&str; 5] = ["proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"];

/// Where a mount's content comes from, its descriptors in hand.
#[derive(Debug)]
pub(crate) enum Source {
    Detached(OwnedFd),
    Tmpfs { size_bytes: Option<u64>, mode: u32 },
}

/// One mount that the pod's specification asks for.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) source: Source,
    pub(crate) destination: String,
    pub(crate) read_only: bool,
}

/// Everything that makes a container's tree.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) root: OwnedFd,
    pub(crate) devices: OwnedFd,
    pub(crate) volumes: Vec<Volume>,
    /// The controllers of each v1 hierarchy; none on v2.
    pub(crate) cgroup_hierarchies: Vec<String>,
    pub(crate) read_only: bool,
    pub(crate) privileged: bool,
    /// Instead of the default ones.
    pub(crate) masked_paths: Option<Vec<String>>,
    pub(crate) read_only_paths: Option<Vec<String>>,
}

/// A terminal made inside the container's own devpts.
#[derive(Debug)]
pub(crate) struct Terminal {
    pub(crate) master: OwnedFd,
    pub(crate) user_end: OwnedFd,
}

impl Tree {
    /// Attaches everything; the result is the terminal where one is wanted. [`Tree::enter`] comes next.
    pub(crate) fn assemble(&self, with_terminal: bool) -> Result<Option<Terminal>, Refusal> {
        attach(self.root.as_fd(), CWD, CONTAINER_ROOT).at("attach the root")?;
        self.mount_kernel_filesystems()?;
        let terminal = if with_terminal { Some(self.make_terminal()?) } else { None };
        for volume in &self.volumes {
            self.mount_volume(volume)?;
        }
        self.mask()?;
        self.protect()?;
        if self.read_only {
            let change = MountChange { set: MountAttrFlags::MOUNT_ATTR_RDONLY, ..MountChange::default() };
            set_attributes(self.root.as_fd(), change).at("make the root read-only")?;
        }
        Ok(terminal)
    }

    /// Makes the tree the root of this process, for good.
    pub(crate) fn enter(&self) -> Result<(), Refusal> {
        stage::enter(&self.root).at("enter the root")
    }

    fn mount_kernel_filesystems(&self) -> Result<(), Refusal> {
        let proc = FsContext::open("proc").and_then(|context| context.mount(inert())).at("mount /proc")?;
        self.place(proc.as_fd(), "proc", true)?;

        let sys = clone_tree(CWD, "/sys", false).at("copy /sys")?;
        if !self.privileged {
            let change = MountChange { set: MountAttrFlags::MOUNT_ATTR_RDONLY | inert(), ..MountChange::default() };
            set_attributes(sys.as_fd(), change).at("make /sys read-only")?;
        }
        self.place(sys.as_fd(), "sys", true)?;
        self.mount_cgroups()?;

        self.place(self.devices.as_fd(), "dev", true)?;
        let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let terminals =
            [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5"), ("max", TERMINALS_MAX)];
        self.mount_new("devpts", &terminals, quiet, "dev/pts")?;
        let shared = clone_tree(CWD, SHARED_MEMORY, false).at("copy the pod's shared memory")?;
        self.place(shared.as_fd(), "dev/shm", true)?;
        self.mount_new("mqueue", &[], inert(), "dev/mqueue")
    }

    /// Shows the container its own groups, and those below, so that programs find their limits. Best effort: not every
    /// kernel lets a user namespace mount every hierarchy, and a program that finds none goes by the machine's size.
    fn mount_cgroups(&self) -> Result<(), Refusal> {
        const PLACE: &str = "sys/fs/cgroup";
        let mut attributes = inert();
        if !self.privileged {
            attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        if find(self.root.as_fd(), PLACE).at("find /sys/fs/cgroup")?.is_none() {
            return Ok(());
        }
        if self.cgroup_hierarchies.is_empty() {
            return match new_mount("cgroup2", &[], attributes) {
                Ok(mount) => self.place(mount.as_fd(), PLACE, true),
                Err(_) => Ok(()),
            };
        }
        let folder = new_mount("tmpfs", &[("mode", "0755"), ("size", "64k")], inert()).at("mount /sys/fs/cgroup")?;
        self.place(folder.as_fd(), PLACE, true)?;
        for controllers in &self.cgroup_hierarchies {
            let options: Vec<(&str, &str)> = controllers.split(',').map(|controller| (controller, "")).collect();
            if let Ok(mount) = new_mount("cgroup", &options, attributes) {
                // The folder is new and our own: no link of an image's can be in the way.
                mkdirat(&folder, controllers, Mode::from_raw_mode(0o755)).at("make a place below /sys/fs/cgroup")?;
                attach(mount.as_fd(), folder.as_fd(), controllers).at("mount below /sys/fs/cgroup")?;
            }
        }
        if self.privileged {
            return Ok(());
        }
        let change = MountChange { set: attributes, ..MountChange::default() };
        set_attributes(folder.as_fd(), change).at("make /sys/fs/cgroup read-only")
    }

    fn mount_new(
        &self,
        filesystem: &str,
        options: &[(&str, &str)],
        attributes: MountAttrFlags,
        destination: &str,
    ) -> Result<(), Refusal> {
        let mount = new_mount(filesystem, options, attributes).at(&format!("mount /{destination}"))?;
        self.place(mount.as_fd(), destination, true)
    }

    fn mount_volume(&self, volume: &Volume) -> Result<(), Refusal> {
        let destination = volume.destination.trim_start_matches('/');
        let (mount, directory) = match &volume.source {
            Source::Detached(mount) => {
                let stat = fstat(mount).at("look at a mount")?;
                let directory = FileType::from_raw_mode(stat.st_mode).is_dir();
                (rustix::io::fcntl_dupfd_cloexec(mount, 3).at("duplicate a mount")?, directory)
            }
            Source::Tmpfs { size_bytes, mode } => {
                let mode = format!("{mode:o}");
                let size = size_bytes.map(|bytes| bytes.to_string());
                let mut options = vec![("mode", mode.as_str())];
                options.extend(size.as_deref().map(|size| ("size", size)));
                let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
                (new_mount("tmpfs", &options, quiet).at("make a tmpfs")?, true)
            }
        };
        if volume.read_only {
            let change = MountChange { set: MountAttrFlags::MOUNT_ATTR_RDONLY, ..MountChange::default() };
            set_attributes(mount.as_fd(), change).at("make a mount read-only")?;
        }
        self.place(mount.as_fd(), destination, directory)
    }

    /// Attaches a mount inside the root, creating the place when it is missing.
    fn place(&self, mount: BorrowedFd<'_>, destination: &str, directory: bool) -> Result<(), Refusal> {
        let stage = || format!("mount on /{destination}");
        let place = ensure(self.root.as_fd(), destination, directory).at(&stage())?;
        attach(mount, place.as_fd(), "").at(&stage())
    }

    /// Hides what gives away or changes too much. What is not there needs no hiding. All directories are hidden by copies of one
    /// empty mount: a file system for each would cost every container's start, and its memory.
    fn mask(&self) -> Result<(), Refusal> {
        let mut empty: Option<OwnedFd> = None;
        for path in self.listed(self.masked_paths.as_ref(), &MASKED_PATHS) {
            let Some(place) = find(self.root.as_fd(), path).at("find a path to mask")? else { continue };
            let stat = fstat(&place).at("look at a path to mask")?;
            let mask = match &empty {
                _ if !FileType::from_raw_mode(stat.st_mode).is_dir() => clone_tree(self.devices.as_fd(), "null", false),
                Some(empty) => clone_tree(empty.as_fd(), "", false),
                None => {
                    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | inert();
                    new_mount("tmpfs", &[("size", "0"), ("nr_inodes", "2")], attributes)
                }
            };
            let mask = mask.at("make a mask")?;
            attach(mask.as_fd(), place.as_fd(), "").at("mask a path")?;
            if FileType::from_raw_mode(stat.st_mode).is_dir() {
                empty.get_or_insert(mask);
            }
        }
        Ok(())
    }

    /// The paths that the container's specification names, or else those that every container has that is not privileged.
    fn listed<'a>(&self, named: Option<&'a Vec<String>>, default: &'a [&'static str]) -> Vec<&'a str> {
        match named {
            Some(paths) => {
                paths.iter().map(|path| path.trim_start_matches('/')).filter(|path| !path.is_empty()).collect()
            }
            None if self.privileged => Vec::new(),
            None => default.to_vec(),
        }
    }

    /// Makes read-only what must not be changed.
    fn protect(&self) -> Result<(), Refusal> {
        for path in self.listed(self.read_only_paths.as_ref(), &READ_ONLY_PATHS) {
            let Some(place) = find(self.root.as_fd(), path).at("find a path to protect")? else { continue };
            let copy = clone_tree(place.as_fd(), "", true).at("protect a path")?;
            let mut set = MountAttrFlags::MOUNT_ATTR_RDONLY;
            if path.starts_with("proc/") || path.starts_with("sys/") {
                set |= inert();
            }
            set_attributes(copy.as_fd(), MountChange { set, recursive: true, ..MountChange::default() })
                .at("protect a path")?;
            attach(copy.as_fd(), place.as_fd(), "").at("protect a path")?;
        }
        Ok(())
    }

    fn make_terminal(&self) -> Result<Terminal, Refusal> {
        let terminal = open_terminal(self.devices.as_fd(), "pts/ptmx")?;
        let name = rustix::pty::ptsname(&terminal.master, Vec::new()).at("name the terminal")?;
        let name = name.to_str().unwrap_or_default().trim_start_matches("/dev/");
        let console = clone_tree(self.devices.as_fd(), name, false).at("copy the terminal")?;
        self.place(console.as_fd(), "dev/console", false)?;
        Ok(terminal)
    }
}

/// Opens a new terminal through a devpts' own `ptmx`.
pub(crate) fn open_terminal(dir: BorrowedFd<'_>, ptmx: &str) -> Result<Terminal, Refusal> {
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = openat(dir, ptmx, flags, Mode::empty()).at("open a terminal")?;
    unlockpt(&master).at("unlock the terminal")?;
    let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let user_end = ioctl_tiocgptpeer(&master, peer).at("open the terminal's other end")?;
    Ok(Terminal { master, user_end })
}

fn new_mount(filesystem: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> std::io::Result<OwnedFd> {
    let context = FsContext::open(filesystem)?;
    for (key, value) in options {
        if value.is_empty() { context.set_flag(key)? } else { context.set_string(key, value)? }
    }
    context.mount(attributes)
}

const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Opens a path inside `root` as a place; `None` when it is not there.
fn find(root: BorrowedFd<'_>, path: &str) -> rustix::io::Result<Option<OwnedFd>> {
    match openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), INSIDE) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a path inside `root`, creating directories on the way and a directory or an empty file at the end.
pub(crate) fn ensure(root: BorrowedFd<'_>, path: &str, directory: bool) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { "." } else { path };
    if let Some(place) = find(root, path)? {
        return Ok(place);
    }
    let whole = path.trim_end_matches('/');
    let (above, name) = whole.rsplit_once('/').unwrap_or(("", whole));
    let parent = ensure(root, above, true)?;
    if directory {
        match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            // `..`, or made by somebody else meanwhile; a link that leads nowhere is not found below.
            Err(Errno::EXIST) => {}
            made => made?,
        }
    } else {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&parent, name, flags, Mode::from_raw_mode(0o644))?;
    }
    find(root, path)?.ok_or(Errno::NOENT)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    use rustix::fs::CWD;
    use sampan_sys::mount::open_directory;

    use super::ensure;

    #[test]
    fn places_are_made_inside_the_root_whatever_leads_out_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let (outside, root) = (folder.path().join("outside"), folder.path().join("root"));
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::create_dir_all(root.join("etc")).unwrap();
        symlink(&outside, root.join("out")).unwrap();
        symlink("../../../../etc", root.join("up")).unwrap();
        symlink("nowhere", root.join("dangling")).unwrap();
        let inside = open_directory(CWD, root.to_str().unwrap()).unwrap();
        let make = |path: &str, directory: bool| ensure(inside.as_fd(), path, directory).map(drop);
        for path in ["", "/", "a/b//c/", "/a/b/d", "../x", "new/../y", "up/folder"] {
            make(path, true).unwrap();
        }
        for path in ["etc/hosts", "/files/one", "up/two", "etc/hosts"] {
            make(path, false).unwrap();
        }
        for made in ["a/b/c", "a/b/d", "x", "y", "etc/folder", "etc/hosts", "files/one", "etc/two"] {
            assert!(root.join(made).exists(), "{made}");
        }
        for (path, directory) in [("dangling", true), ("dangling", false), ("dangling/x", true), ("etc/hosts/x", true)]
        {
            assert!(make(path, directory).is_err(), "{path}");
        }
        // What a link names outside is a place inside, where there is none.
        assert!(make("out/x", true).is_err());
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }
}
