//! Reading the whole tree of a complete image, as an instance's root, beside the same tree on ext4 below overlayfs.
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
const BOUND: f64 = 1.05;

/// The magic number of ext4's superblock (include/uapi/linux/magic.h).
const EXT4_SUPER_MAGIC: i64 = 0xef53;

/// Room for the copy, where it needs a file system of its own.
const LOOP_BYTES: u64 = 4 << 30;

/// One way of reading: its name, what the reader is asked for, whether nothing may be cached before, and how often it is
/// measured for one slow run.
const WAYS: [(&str, &str, bool, u32); 5] = [
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
    let roots = [ours.as_path(), peer.root.as_path()];
    let mut figures = Vec::new();
    for (name, mode, cold, factor) in WAYS {
        let mut seen = [None, None];
        let series = turns::take(bench.runs * factor, &["sampan", "ext4+overlay"], |side| {
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
            format!("read/{name}"),
            Unit::Milliseconds,
            ours,
            ("ext4+overlay", peer),
            Some(BOUND),
        ));
    }
    drop(peer);
    sampan.stop()?;
    Ok(figures)
}

/// Starts an instance that does nothing and finds its root directory by its command line.
fn instance_root(sampan: &Sampan, reference: &str) -> Result<PathBuf> {
    let seconds = format!("86400.{}", std::process::id());
    must(sampan.client().args(["run", "--detach", "--name", "tree", reference, "sleep", &seconds]))?;
    let line = format!("sleep\0{seconds}\0");
    let processes = fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
    let mut found = processes.filter(|path| fs::read(path.join("cmdline")).is_ok_and(|text| text == line.as_bytes()));
    Ok(found.next().context("the instance's process is not to be seen")?.join("root"))
}

/// What the reader says of one pass.
struct Pass {
    taken: Duration,
    files: u64,
    bytes: u64,
}

fn read(mode: &str, root: &Path) -> Result<Pass> {
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
struct Copied {
    folder: PathBuf,
    root: PathBuf,
}

impl Copied {
    fn of(tree: &Path, folder: &Path) -> Result<Self> {
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
