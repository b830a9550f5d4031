//! Debian's cloud kernels, from the mirror that this machine's apt uses, unpacked in the tests' cache.
//!
//! Debian 12 has 6.1 and Debian 13 has 6.12; the backports of both have others, which change over time. apt itself asks
//! them all, with lists and a cache of its own, so that this machine's view of packages does not change.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use sampan_e2e::fixtures::cache;

/// Where kernels are looked for.
const SUITES: [&str; 4] = ["bookworm", "bookworm-backports", "trixie", "trixie-backports"];

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The package that depends on a suite's newest kernel.
const NEWEST: &str = "linux-image-cloud-amd64";

/// An unpacked kernel.
pub(super) struct Kernel {
    /// What `uname -r` will say.
    pub(super) release: String,
    /// The bootable image.
    pub(super) image: PathBuf,
    /// The folder with modules and their dependencies, named by the release.
    pub(super) modules: PathBuf,
}

/// The kernel of this version (`6.1`), from the cache once it was there.
pub(super) fn get(version: &str) -> anyhow::Result<Kernel> {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    ensure!(version.split('.').all(number), "vm: `{version}` is no kernel version; write one like 6.12");
    let folder = cache::get_or_build(&format!("vm-kernel-{version}"), |folder| download(version, folder))?;
    let modules = only_entry(&folder.join("lib/modules"))?;
    let release = modules.file_name().context("vm: modules without a name")?.to_string_lossy().into_owned();
    // Newer packages have it among the modules.
    let places = [folder.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")];
    let image = places.into_iter().find(|place| place.exists()).context("vm: the kernel package has no kernel")?;
    Ok(Kernel { release, image, modules })
}

fn only_entry(folder: &Path) -> anyhow::Result<PathBuf> {
    let mut entries = fs::read_dir(folder).with_context(|| format!("vm: cannot read {}", folder.display()))?;
    Ok(entries.next().with_context(|| format!("vm: {} is empty", folder.display()))??.path())
}

fn download(version: &str, folder: &Path) -> anyhow::Result<()> {
    let apt = Apt::open()?;
    let (package, exact) = apt.find(version)?;
    println!("vm: downloading {package} {exact}");
    let unpacked = apt.folder.path().join("unpacked");
    for part in apt.parts(&package, &exact)? {
        let part = apt.download(&part, &exact)?;
        tool("dpkg-deb", |command| command.arg("-x").arg(&part).arg(&unpacked))?;
    }
    // Debian 13 has merged /lib into /usr/lib, and packs modules with xz.
    let moved = ["lib/modules", "usr/lib/modules"].map(|place| unpacked.join(place));
    let modules = moved.iter().find(|place| place.exists()).context("vm: the kernel package has no modules")?;
    fs::create_dir_all(folder.join("lib"))?;
    tool("cp", |command| command.arg("-a").arg(modules).arg(folder.join("lib/modules")))?;
    if unpacked.join("boot").exists() {
        tool("cp", |command| command.arg("-a").arg(unpacked.join("boot")).arg(folder.join("boot")))?;
    }
    tool("find", |command| command.arg(folder).args(["-name", "*.ko.xz", "-exec", "xz", "-d", "{}", "+"]))?;
    let release = only_entry(&folder.join("lib/modules"))?;
    let release = release.file_name().context("vm: modules without a name")?;
    tool("busybox", |command| command.args(["depmod", "-b"]).arg(folder).arg(release))
}

/// apt with state of its own, in a folder that goes with it.
struct Apt {
    folder: tempfile::TempDir,
}

impl Apt {
    fn open() -> anyhow::Result<Self> {
        let apt = Self { folder: tempfile::tempdir()? };
        let at = |name: &str| apt.folder.path().join(name);
        for folder in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(at(folder))?;
        }
        let mirror = mirror()?;
        let signed = if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
        let lines: Vec<String> = SUITES.iter().map(|suite| format!("deb {signed}{mirror} {suite} main\n")).collect();
        fs::write(at("sources.list"), lines.concat())?;
        // Another user fetches: it must be able to read and to write here.
        tool("chmod", |command| command.args(["-R", "a+rwX"]).arg(apt.folder.path()))?;
        let output = apt.command("apt-get").args(["-o", "Acquire::Languages=none", "update"]).output()?;
        // A mirror need not have every suite; whether the kernel was found is asked later.
        if !output.status.success() {
            eprintln!("vm: apt-get update: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let mut command = Command::new(program);
        for (key, value) in [
            ("Dir::Etc::SourceList", at("sources.list")),
            ("Dir::Etc::SourceParts", "/dev/null".to_owned()),
            ("Dir::State::Lists", at("lists")),
            ("Dir::Cache", at("cache")),
        ] {
            command.arg("-o").arg(format!("{key}={value}"));
        }
        command.current_dir(self.folder.path()).env("LC_ALL", "C");
        command
    }

    /// The name and the exact version of the kernel's package.
    fn find(&self, version: &str) -> anyhow::Result<(String, String)> {
        let output = self.command("apt-cache").args(["show", NEWEST]).output().context("vm: cannot run apt-cache")?;
        let records = String::from_utf8_lossy(&output.stdout).into_owned();
        let field = |record: &str, name: &str| {
            record.lines().find_map(|line| line.strip_prefix(name).map(|value| value.trim().to_owned()))
        };
        let mut seen = Vec::new();
        for record in records.split("\n\n") {
            let (Some(exact), Some(depends)) = (field(record, "Version:"), field(record, "Depends:")) else { continue };
            if exact.starts_with(&format!("{version}.")) {
                let package = depends.split([' ', ',']).find(|word| word.starts_with("linux-image-"));
                return Ok((package.context("vm: the kernel's package has no dependency")?.to_owned(), exact));
            }
            seen.push(exact);
        }
        bail!("vm: Debian has no cloud kernel {version} now; it has {}", seen.join(", "))
    }

    /// The package and those that it is split into: newer kernels have image and modules apart.
    fn parts(&self, package: &str, version: &str) -> anyhow::Result<Vec<String>> {
        let asked = format!("{package}={version}");
        let output = self.command("apt-cache").args(["show", &asked]).output().context("vm: cannot run apt-cache")?;
        let record = String::from_utf8_lossy(&output.stdout).into_owned();
        let depends = record.lines().find_map(|line| line.strip_prefix("Depends:")).unwrap_or_default();
        let names = depends.split(',').filter_map(|one| one.split_whitespace().next());
        let parts = names.filter(|name| name.starts_with("linux-binary-") || name.starts_with("linux-modules-"));
        Ok([package].into_iter().chain(parts).map(str::to_owned).collect())
    }

    fn download(&self, package: &str, version: &str) -> anyhow::Result<PathBuf> {
        let status = self.command("apt-get").arg("download").arg(format!("{package}={version}")).status()?;
        ensure!(status.success(), "vm: cannot download {package} {version}");
        let packages = fs::read_dir(self.folder.path())?.filter_map(Result::ok).map(|entry| entry.path());
        let is_it = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{package}_")))
        };
        packages.into_iter().find(is_it).context("vm: apt-get download left no package")
    }
}

/// The mirror of this machine's own release.
fn mirror() -> anyhow::Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("vm: cannot read /etc/os-release")?;
    let codename = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or_default();
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Identifier: Packages"])
        .output()
        .context("vm: cannot run apt-get; kernels come from Debian's mirrors, through it")?;
    let list = String::from_utf8_lossy(&output.stdout).into_owned();
    let mirror = list.lines().filter_map(|line| line.rsplit_once(' ')).find(|(_, release)| *release == codename);
    let (mirror, _) = mirror.with_context(|| format!("vm: apt has no source for `{codename}`; run this on Debian"))?;
    Ok(mirror.to_owned())
}

/// Runs a program of this machine; its own words stand in the error.
pub(super) fn tool(name: &str, fill: impl FnOnce(&mut Command) -> &mut Command) -> anyhow::Result<()> {
    let mut command = Command::new(name);
    fill(&mut command);
    let output = command.output().with_context(|| format!("vm: cannot run {name}; install it"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    ensure!(output.status.success(), "vm: {name} fails: {said}");
    Ok(())
}
