//! Where the peers' programs come from: found, installed, or named as missing.
//!
//! Debian's come by apt-get. containerd 2 and today's runc are built from their Go modules into `SAMPAN_PEERS`
//! (`/var/cache/sampan-peers`), whose `bin` is looked into first, then PATH. A peer never keeps the others from being
//! measured.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::engines::lazy::Loader;

/// What is built from Go modules when it is nowhere to be found.
const CONTAINERD_MODULE: &str = "github.com/containerd/containerd/v2";
const CONTAINERD_VERSION: &str = "v2.4.2";
const CONTAINERD_PROGRAMS: [&str; 3] = ["containerd", "containerd-shim-runc-v2", "ctr"];
const RUNC_MODULE: &str = "github.com/opencontainers/runc";
const RUNC_VERSION: &str = "v1.5.2";

const CNI_MODULE: &str = "github.com/containernetworking/plugins";
const CNI_VERSION: &str = "v1.9.1";
const CNI_PLUGINS: [&str; 4] = ["main/bridge", "main/loopback", "ipam/host-local", "meta/portmap"];

/// Debian's own programs, wherever else others of the same name are.
const DEBIAN_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// The peers of this machine. What is missing is nothing.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    /// The folder with containerd 2, its shim and ctr.
    pub(crate) containerd2: Option<PathBuf>,
    /// Whether containerd 2 finds an mkfs.erofs that its differ can use.
    pub(crate) erofs: bool,
    /// The folder with Debian's containerd.
    pub(crate) containerd1: Option<PathBuf>,
    pub(crate) podman: Option<PathBuf>,
    pub(crate) runc: Option<PathBuf>,
}

/// The peers of the image suite that are not found one by one.
#[derive(Debug, Default)]
pub(crate) struct ImagePeers {
    /// The folder with containerd 2, its shim and ctr.
    pub(crate) containerd2: Option<PathBuf>,
    /// Whether containerd 2 finds an mkfs.erofs that its differ can use.
    pub(crate) erofs: bool,
}

/// The peers of the runtime suite.
#[derive(Debug, Default)]
pub(crate) struct RuntimePeers {
    /// The folder with containerd 2, its shim and ctr.
    pub(crate) containerd2: Option<PathBuf>,
    pub(crate) runc: Option<PathBuf>,
    /// The folder with the CNI plug-ins.
    pub(crate) plugins: Option<PathBuf>,
    /// Which asks both sides for pods.
    pub(crate) kubelet: Option<PathBuf>,
}

impl RuntimePeers {
    /// Finds or installs them; the second part names what is missing.
    pub(crate) fn find_or_install() -> Result<(Self, Vec<String>)> {
        required(&[("unshare", "util-linux"), ("ip", "iproute2"), ("iptables", "iptables")])?;
        let mut missing = Missing::default();
        let runc = missing.note("runc", runc());
        let folder = |path: PathBuf| path.parent().map(Path::to_owned);
        let containerd2 = missing.note("containerd 2", containerd2()).and_then(folder);
        let plugins = missing.note("CNI plug-ins", plugins());
        let kubelet = find("kubelet", |_path| true);
        let kubelet = kubelet.with_context(|| format!("put it into {} or on the PATH", cache().display()));
        let kubelet = missing.note("kubelet", kubelet);
        Ok((Self { containerd2, runc, plugins, kubelet }, missing.0))
    }
}

/// The folder with the CNI plug-ins: ours, or one where others keep them, or else built from their Go module.
fn plugins() -> Result<PathBuf> {
    let own = cache().join("cni");
    let whole = |folder: &PathBuf| CNI_PLUGINS.iter().all(|path| folder.join(file_name(path)).is_file());
    if let Some(folder) = [own.clone(), cache().join("bin")].into_iter().find(whole) {
        return Ok(folder);
    }
    for path in CNI_PLUGINS {
        go_install_into(&own, &format!("{CNI_MODULE}/plugins/{path}@{CNI_VERSION}"), &[])?;
    }
    Some(own).filter(whole).context("the Go module brings no plug-ins")
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

impl ImagePeers {
    /// Finds or installs what does not come with the loaders themselves; the second part names what is missing.
    pub(crate) fn find_or_install() -> Result<(Self, Vec<String>)> {
        required(&[("pip3", "python3-pip")])?;
        let mut missing = Missing::default();
        missing.note("igzip, with which containerd inflates", debian("igzip", "isal"));
        missing.note("runc", runc());
        let containerd2 = missing.note("containerd 2", containerd2());
        let erofs = containerd2.is_some() && missing.note("containerd 2 with its erofs differ", mkfs_erofs()).is_some();
        for loader in [Loader::Stargz, Loader::Soci, Loader::Nydus] {
            for program in loader.programs() {
                let here = cache();
                let found = find(program, |_path| true);
                missing.note(program, found.with_context(|| format!("put it into {} or on the PATH", here.display())));
            }
        }
        Ok((Self { containerd2: containerd2.and_then(|path| path.parent().map(Path::to_owned)), erofs }, missing.0))
    }
}

/// The PATH for programs of `folder`: our cache of peers, then this process' own.
pub(crate) fn search_path() -> std::ffi::OsString {
    let mut folders = own_folders();
    folders.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    env::join_paths(folders).unwrap_or_else(|_colon_in_a_name| DEBIAN_PATH.into())
}

/// Finds or installs every peer; the second part says, line by line, what is missing and why.
pub(crate) fn find_or_install() -> Result<(Peers, Vec<String>)> {
    required(&[])?;
    let mut missing = Missing::default();
    // containerd inflates with it where it finds it; without it the comparison would flatter us.
    missing.note("igzip, with which containerd inflates", debian("igzip", "isal"));
    let runc = missing.note("runc", runc());
    let containerd2 = missing.note("containerd 2", containerd2());
    let erofs = containerd2.is_some() && missing.note("containerd 2 with its erofs differ", mkfs_erofs()).is_some();
    let containerd1 = missing.note("Debian's containerd", debian("containerd", "containerd"));
    let podman = missing.note("podman", debian("podman", "podman"));
    let folder = |path: PathBuf| path.parent().map(Path::to_owned);
    let peers = Peers {
        containerd2: containerd2.and_then(folder),
        erofs,
        containerd1: containerd1.and_then(folder),
        podman,
        runc,
    };
    Ok((peers, missing.0))
}

/// What every figure stands on is not a peer: without it, nothing can be measured.
fn required(more: &[(&str, &str)]) -> Result<()> {
    let always = [("docker-registry", "docker-registry"), ("debootstrap", "debootstrap"), ("tar", "tar")];
    for (program, package) in always.iter().chain(more) {
        find(program, |_path| true).map_or_else(|| install(package), |_found| Ok(()))?;
    }
    Ok(())
}

/// What is missing, line by line.
#[derive(Debug, Default)]
struct Missing(Vec<String>);

impl Missing {
    /// Takes what was found, and writes down what was not.
    fn note(&mut self, what: &str, outcome: Result<PathBuf>) -> Option<PathBuf> {
        outcome.map_err(|error| self.0.push(format!("{what}: {error:#}"))).ok()
    }
}

fn cache() -> PathBuf {
    env::var_os("SAMPAN_PEERS").map_or_else(|| PathBuf::from("/var/cache/sampan-peers"), PathBuf::from)
}

fn own_folders() -> Vec<PathBuf> {
    vec![cache().join("bin"), cache()]
}

/// The first program of this name in our cache or on PATH that will do.
pub(crate) fn find(name: &str, will_do: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    env::split_paths(&search_path()).map(|folder| folder.join(name)).find(|path| path.is_file() && will_do(path))
}

fn debian(program: &str, package: &str) -> Result<PathBuf> {
    let look = || env::split_paths(DEBIAN_PATH).map(|folder| folder.join(program)).find(|path| path.is_file());
    if let Some(path) = look() {
        return Ok(path);
    }
    install(package)?;
    look().with_context(|| format!("the package {package} brings no {program}"))
}

fn install(package: &str) -> Result<()> {
    announce(&format!("installing Debian's package {package}"))?;
    let apt = |words: &[&str]| run(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(words));
    let words = ["install", "-y", "-q", "--no-install-recommends", package];
    apt(&words).or_else(|_stale_lists| apt(&["update", "-q"]).and_then(|()| apt(&words)))
}

fn containerd2() -> Result<PathBuf> {
    let will_do = |path: &Path| {
        let beside = CONTAINERD_PROGRAMS.iter().all(|name| path.with_file_name(name).is_file());
        beside && said(path, "--version").is_some_and(|text| text.contains(CONTAINERD_MODULE))
    };
    if let Some(path) = find("containerd", will_do) {
        return Ok(path);
    }
    for program in CONTAINERD_PROGRAMS {
        go_install(&format!("{CONTAINERD_MODULE}/cmd/{program}@{CONTAINERD_VERSION}"), &[])?;
    }
    find("containerd", will_do).context("the Go module brings no containerd")
}

fn runc() -> Result<PathBuf> {
    let in_cache = || own_folders().into_iter().map(|folder| folder.join("runc")).find(|path| path.is_file());
    if let Some(path) = in_cache() {
        return Ok(path);
    }
    let built =
        debian_header().and_then(|()| go_install(&format!("{RUNC_MODULE}@{RUNC_VERSION}"), &["-tags", "seccomp"]));
    match built {
        Ok(()) => in_cache().context("the Go module brings no runc"),
        Err(error) => {
            announce(&format!("taking Debian's runc, because today's cannot be built: {error:#}"))?;
            debian("runc", "runc")
        }
    }
}

fn debian_header() -> Result<()> {
    if Path::new("/usr/include/seccomp.h").is_file() { Ok(()) } else { install("libseccomp-dev") }
}

fn go_install(module: &str, flags: &[&str]) -> Result<()> {
    go_install_into(&cache().join("bin"), module, flags)
}

fn go_install_into(folder: &Path, module: &str, flags: &[&str]) -> Result<()> {
    ensure!(
        find("go", |_path| true).is_some(),
        "there is no Go to build {module} with: install Go, or set SAMPAN_PEERS"
    );
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    announce(&format!("building {module}"))?;
    run(Command::new("nice")
        .args(["go", "install", "-trimpath", "-ldflags", "-s -w"])
        .args(flags)
        .arg(module)
        .env("GOBIN", folder))
}

fn mkfs_erofs() -> Result<PathBuf> {
    let will_do = |path: &Path| said(path, "--help").is_some_and(|text| text.contains("--tar"));
    find("mkfs.erofs", will_do).with_context(|| {
        format!(
            "no mkfs.erofs knows --tar (erofs-utils 1.7 and later; Debian 12 has 1.5): put one into {}",
            cache().join("bin").display()
        )
    })
}

/// What a program says to one question, on either stream.
fn said(program: &Path, question: &str) -> Option<String> {
    let output = Command::new(program).arg(question).output().ok()?;
    Some(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("start {}", command.get_program().display()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let reason = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
        bail!("{} fails: {reason}", crate::command::describe(command));
    }
    Ok(())
}

/// Says on stderr what takes its time.
pub(crate) fn announce(text: &str) -> Result<()> {
    use std::io::Write;
    writeln!(std::io::stderr().lock(), "bench: {text}").context("write to stderr")
}
