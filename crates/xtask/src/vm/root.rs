//! The guest's disk and first memory disk: busybox, a few tools of this machine with their libraries, our program, a
//! kernel's modules, an image to run, and the scripts.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use sampan_e2e::fixtures::busybox;

use super::kernel::{Kernel, tool};

/// First program of the memory disk: finds the disk and goes there.
const EARLY: &str = include_str!("early.sh");
/// First program of the disk: makes a machine of it, as systemd would leave it, and runs the script.
const INIT: &str = include_str!("init.sh");

/// What the service needs of a Debian machine, and what the smoke script looks with.
const TOOLS: [&str; 3] = ["mkfs.ext4", "nft", "ip"];

/// Modules without which the disk cannot be reached.
const EARLY_MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];

const DISK_BYTES: &str = "3G";

/// What a guest boots from.
pub(super) struct Disk {
    /// The memory disk.
    pub(super) initrd: PathBuf,
    /// The disk's image, raw.
    pub(super) image: PathBuf,
}

/// What is on the disk beside what always is.
#[derive(Clone, Copy)]
pub(super) struct Contents<'a> {
    /// The service.
    pub(super) program: &'a Path,
    /// More programs of this machine.
    pub(super) tools: &'a [String],
    /// What runs once the machine is up.
    pub(super) script: &'a str,
}

/// Makes both in `folder`.
pub(super) fn build(folder: &Path, kernel: &Kernel, contents: &Contents<'_>) -> anyhow::Result<Disk> {
    let Contents { program, tools, script } = *contents;
    let (busybox, applets) = busybox::program()?;
    let root = folder.join("root");
    for directory in ["bin", "dev", "etc", "proc", "root", "run", "srv", "sys", "tmp", "usr/bin", "var/lib", "lib"] {
        fs::create_dir_all(root.join(directory))?;
    }
    install_busybox(&root, &busybox, &applets)?;
    std::os::unix::fs::symlink("bin", root.join("sbin"))?;
    write_program(&root.join("usr/bin/sampan"), &fs::read(program)?)?;
    let mut libraries = libraries_of(program)?;
    for name in TOOLS.into_iter().chain(tools.iter().map(String::as_str)) {
        let tool = find_tool(name)?;
        libraries.extend(libraries_of(&tool)?);
        let file = tool.file_name().context("vm: a tool without a name")?;
        write_program(&root.join("usr/bin").join(file), &fs::read(&tool)?)?;
    }
    for library in libraries {
        let target = root.join(library.strip_prefix("/")?);
        fs::create_dir_all(target.parent().context("vm: a library without a folder")?)?;
        fs::copy(&library, &target).with_context(|| format!("vm: cannot copy {}", library.display()))?;
    }
    let modules = root.join("lib/modules");
    fs::create_dir_all(&modules)?;
    tool("cp", |command| command.arg("-a").arg(&kernel.modules).arg(&modules))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    busybox::image()?.write_layout(&root.join("srv/busybox"), "latest")?;
    write_program(&root.join("init"), INIT.as_bytes())?;
    write_program(&root.join("smoke"), script.as_bytes())?;
    let image = folder.join("disk.img");
    fs::File::create(&image)?;
    tool("mkfs.ext4", |command| {
        command.args(["-q", "-F", "-O", "^has_journal", "-d"]).arg(&root).arg(&image).arg(DISK_BYTES)
    })?;
    fs::remove_dir_all(&root)?;
    Ok(Disk { initrd: memory_disk(folder, kernel, &busybox, &applets)?, image })
}

fn install_busybox(root: &Path, busybox: &[u8], applets: &[String]) -> anyhow::Result<()> {
    write_program(&root.join("bin/busybox"), busybox)?;
    for applet in applets.iter().filter(|applet| *applet != "busybox" && !TOOLS.contains(&applet.as_str())) {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    Ok(())
}

fn write_program(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    fs::write(path, bytes)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// A program by name, or by its path.
fn find_tool(name: &str) -> anyhow::Result<PathBuf> {
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let places = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(|folder| Path::new(folder).join(name));
    let found = places.into_iter().find(|path| path.exists());
    found.with_context(|| format!("vm: {name} is missing here; install its package (e2fsprogs, nftables, iproute2)"))
}

/// The libraries that a program is linked to, and its loader.
fn libraries_of(program: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("vm: cannot run ldd")?;
    ensure!(output.status.success(), "vm: ldd cannot read {}", program.display());
    let list = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(list.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

/// A cpio archive with busybox and just the modules that reach the disk.
fn memory_disk(folder: &Path, kernel: &Kernel, busybox: &[u8], applets: &[String]) -> anyhow::Result<PathBuf> {
    let root = folder.join("early");
    for directory in ["bin", "dev", "proc", "sys", "modules", "disk"] {
        fs::create_dir_all(root.join(directory))?;
    }
    install_busybox(&root, busybox, applets)?;
    let mut order = String::new();
    for module in with_dependencies(kernel)? {
        let name = module.file_name().context("vm: a module without a name")?;
        fs::copy(kernel.modules.join(&module), root.join("modules").join(name))?;
        order.push_str(&format!("{}\n", name.to_string_lossy()));
    }
    fs::write(root.join("modules/order"), order)?;
    write_program(&root.join("init"), EARLY.as_bytes())?;
    let archive = folder.join("early.cpio");
    let pack = "find . | busybox cpio -o -H newc 2>/dev/null";
    let status = Command::new("sh")
        .args(["-c", pack])
        .current_dir(&root)
        .stdout(Stdio::from(fs::File::create(&archive)?))
        .status()
        .context("vm: cannot run sh")?;
    ensure!(status.success(), "vm: busybox cpio fails; install busybox");
    fs::remove_dir_all(&root)?;
    Ok(archive)
}

/// The early modules in an order in which they can be loaded; those built into the kernel are left out.
fn with_dependencies(kernel: &Kernel) -> anyhow::Result<Vec<PathBuf>> {
    let table = fs::read_to_string(kernel.modules.join("modules.dep")).context("vm: the kernel has no modules.dep")?;
    let stem = |path: &str| path.rsplit('/').next().unwrap_or(path).trim_end_matches(".ko").replace('-', "_");
    let mut order: Vec<PathBuf> = Vec::new();
    for name in EARLY_MODULES {
        let Some((module, needs)) =
            table.lines().filter_map(|line| line.split_once(':')).find(|(module, _)| stem(module) == name)
        else {
            continue;
        };
        // A line names everything that is needed, what is needed first standing last.
        for path in needs.split_whitespace().rev().chain([module]).map(PathBuf::from) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    Ok(order)
}
