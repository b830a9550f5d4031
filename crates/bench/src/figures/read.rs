//! Reading the whole tree of a complete image, as an instance's root, beside the same tree on ext4 below overlayfs.
//!
//! Also for others who have a tree to compare with its copy ([`compare`]).
//!
//! Both are read by the same small program (`tree-reader`) in a process of its own, which times itself. Ours is entered
//! through the running instance's root directory; the peer's is a copy of it, made file by file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::turns;
use crate::bench::{Bench, drop_caches};
use crate::command::must;
use crate::engines::Engine;
use crate::engines::sampan::Sampan;
use crate::footprint::remove_folder;
use crate::report::{Figure, Unit};

/// What the worst of them may take beside ext4.
pub(crate) const BOUND: f64 = 1.05;

/// The magic number of ext4's superblock (include/uapi/linux/magic.h).
const EXT4_SUPER_MAGIC: i64 = 0xef53;

/// Room for the copy, where it needs a file system of its own.
const LOOP_BYTES: u64 = 4 << 30;

/// One way of reading: its name, what the reader is asked for, whether nothing may be cached before, and how often it is
/// measured for one slow run.
pub(crate) type Way = (&'static str, &'static str, bool, u32);

/// All of them.
pub(crate) const WAYS: [Way; 5] = [
    ("cold", "read", true, 1),
    ("warm", "read", false, 3),
    ("find", "find", true, 3),
    ("find-warm", "find", false, 3),
    ("mmap", "mmap", true, 3),
];

pub(super) fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let mut sampan = bench.sampan();
    sampan.start()?;
    must(&mut sampan.pull(&bench.reference))?;
    let ours = instance_root(&sampan, &bench.reference)?;
    let peer = Copied::of(&ours, &bench.work().join("ext4"))?;
    let figures = compare("read/", [&ours, &peer.root], &WAYS, bench.runs, BOUND)?;
    drop(peer);
    sampan.stop()?;
    Ok(figures)
}

/// Reads two trees that are the same, ours first, in each of these ways, in turns. `prefix` is what the figures' names begin with.
pub(crate) fn compare(prefix: &str, roots: [&Path; 2], ways: &[Way], runs: u32, bound: f64) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for &(name, mode, cold, factor) in ways {
        let mut seen = [None, None];
        let series = turns::take(runs * factor, &["sampan", "ext4+overlay"], |side| {
            if cold {
                drop_caches()?;
            } else {
                read(mode, roots[side])?;
            }
            let result = read(mode, roots[side])?;
            seen[side] = Some((result.files, result.bytes));
            Ok(result.taken)
        })?;
        ensure!(seen[0] == seen[1], "the trees differ: ours has {:?} files and bytes, the copy {:?}", seen[0], seen[1]);
        let [ours, peer] = series.as_slice() else { continue };
        figures.push(Figure::compare(
            format!("{prefix}{name}"),
            Unit::Milliseconds,
            ours,
            ("ext4+overlay", peer),
            Some(bound),
        ));
    }
    Ok(figures)
}

/// Starts an instance that does nothing and finds its root directory by its command line.
pub(crate) fn instance_root(sampan: &Sampan, reference: &str) -> Result<PathBuf> {
    let seconds = format!("86400.{}", std::process::id());
    must(sampan.client().args(["run", "--detach", "--name", "tree", reference, "sleep", &seconds]))?;
    let line = format!("sleep\0{seconds}\0");
    let processes = fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
    let mut found = processes.filter(|path| fs::read(path.join("cmdline")).is_ok_and(|text| text == line.as_bytes()));
    Ok(found.next().context("the instance's process is not to be seen")?.join("root"))
}

/// What the reader says of one pass.
pub(crate) struct Pass {
    taken: Duration,
    files: u64,
    bytes: u64,
}

/// One pass over a tree.
pub(crate) fn read(mode: &str, root: &Path) -> Result<Pass> {
    let reader = std::env::current_exe()?.with_file_name("tree-reader");
    // At real-time priority, so that it is the file systems that are compared, not the machine's other work.
    let output = Command::new("chrt").args(["--fifo", "10"]).arg(&reader).arg(mode).arg(root).output();
    let output = output.context("start chrt (util-linux)")?;
    ensure!(output.status.success(), "tree-reader fails: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let mut numbers = text.split_whitespace().map(str::parse::<u64>);
    let mut number = || numbers.next().context("tree-reader says three numbers")?.context("read tree-reader's answer");
    Ok(Pass { taken: Duration::from_nanos(number()?), files: number()?, bytes: number()? })
}

/// The same tree on ext4, below overlayfs with an empty upper directory.
pub(crate) struct Copied {
    folder: PathBuf,
    pub(crate) root: PathBuf,
}

impl Copied {
    pub(crate) fn of(tree: &Path, folder: &Path) -> Result<Self> {
        let this = Self { folder: folder.to_owned(), root: folder.join("root") };
        fs::create_dir_all(&this.root)?;
        let ext4 = folder.join("ext4");
        fs::create_dir_all(&ext4)?;
        if rustix::fs::statfs(&ext4)?.f_type != EXT4_SUPER_MAGIC {
            mount_loop(&folder.join("disk"), &ext4)?;
        }
        for name in ["lower", "upper", "work"] {
            fs::create_dir(ext4.join(name))?;
        }
        let script = "tar -C \"$1\" --numeric-owner --exclude=./proc --exclude=./sys --exclude=./dev -cf - . | \
            tar -C \"$2\" --numeric-owner -xpf -";
        must(Command::new("bash").args(["-o", "pipefail", "-c", script, "copy"]).arg(tree).arg(ext4.join("lower")))?;
        let option = |name: &str, folder: &str| format!("{name}={}", ext4.join(folder).display());
        let options = [option("lowerdir", "lower"), option("upperdir", "upper"), option("workdir", "work")].join(",");
        must(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&this.root))?;
        Ok(this)
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        drop(remove_folder(&self.folder));
    }
}

/// An ext4 of its own, for work folders on other file systems.
fn mount_loop(disk: &Path, target: &Path) -> Result<()> {
    fs::File::create(disk)?.set_len(LOOP_BYTES)?;
    must(Command::new("mkfs.ext4").arg("-q").arg(disk))?;
    must(Command::new("mount").args(["-o", "loop"]).arg(disk).arg(target))
}
