//! One run of a guest: QEMU without hardware help, its serial line read line by line until the script's last word.
//!
//! Lines of the script begin with `@@`: `@@ ok NAME`, `@@ FAIL NAME: why`, `@@ fact WHAT: value`, `@@ end`. They are shown
//! as they come; everything goes to `console.log`.

use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::kernel::{Kernel, tool};
use super::root::Disk;

const EMULATOR: &str = "qemu-system-x86_64";

/// How long a guest may take as a whole. Emulation is some thirty times slower than the machine itself.
const GUEST_DEADLINE: Duration = Duration::from_secs(1200);

/// How long a guest may be silent: longer than any step of the script may take.
const SILENCE_MAX: Duration = Duration::from_secs(300);

/// How a run ended.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    passed: usize,
    failed: Vec<String>,
    /// Why there was no last word; empty when there was.
    broken: String,
    /// The guest's kernel said that it cannot go on.
    panicked: bool,
}

impl Outcome {
    pub(super) fn is_good(&self) -> bool {
        self.failed.is_empty() && self.broken.is_empty() && self.passed > 0
    }

    fn hear(&mut self, word: &str, rest: &str) {
        match word {
            "ok" => self.passed += 1,
            "FAIL" => self.failed.push(rest.to_owned()),
            _ => {}
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} checks passed, {} failed", self.passed, self.failed.len())?;
        if self.broken.is_empty() { Ok(()) } else { write!(formatter, "; {}", self.broken) }
    }
}

/// Says how to get the emulator where it is missing.
pub(super) fn find_emulator() -> anyhow::Result<()> {
    let found = Command::new(EMULATOR).arg("--version").stdout(Stdio::null()).status();
    ensure!(
        found.is_ok(),
        "vm: {EMULATOR} is missing; install it with: apt-get install --no-install-recommends qemu-system-x86"
    );
    Ok(())
}

/// Boots and listens until the script is done, the guest is gone, or a deadline has passed.
///
/// Emulation is not perfect: with all that QEMU 7.2 can emulate (`-cpu max`, two processors) Debian 13's kernel fell over now
/// and then, in code that has nothing to do with us. So the guest has an old processor, and if its kernel panics all the
/// same it gets a second chance, with one of them, and no third.
pub(super) fn run(folder: &Path, kernel: &Kernel, disk: &Disk) -> anyhow::Result<Outcome> {
    let fresh = folder.join("fresh.img");
    std::fs::rename(&disk.image, &fresh)?;
    for processors in ["2", "1"] {
        tool("cp", |command| command.arg("--sparse=always").arg(&fresh).arg(&disk.image))?;
        let outcome = run_once(folder, kernel, disk, processors)?;
        if !outcome.panicked {
            return Ok(outcome);
        }
        println!("vm: {outcome}");
    }
    bail!("vm: the guest's kernel {} panics; see {}", kernel.release, folder.join("console.log").display())
}

fn run_once(folder: &Path, kernel: &Kernel, disk: &Disk, processors: &str) -> anyhow::Result<Outcome> {
    println!("vm: booting {}", kernel.release);
    let log = folder.join("console.log");
    let mut console = File::create(&log)?;
    let mut guest = Guest::start(folder, kernel, disk, processors)?;
    let output = guest.child.stdout.take().context("vm: the emulator has no output")?;
    let (sender, lines) = mpsc::sync_channel(1024);
    // Ends with the emulator, whose output it reads.
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let started = Instant::now();
    let mut outcome = Outcome::default();
    loop {
        let left = GUEST_DEADLINE.saturating_sub(started.elapsed()).min(SILENCE_MAX);
        let line = match lines.recv_timeout(left) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => {
                outcome.broken = format!("the guest ended before its script did; see {}", log.display());
                break;
            }
            Err(RecvTimeoutError::Timeout) => {
                let spent = started.elapsed().as_secs();
                outcome.broken = format!("the guest was given up after {spent} s; see {}", log.display());
                break;
            }
        };
        writeln!(console, "{line}")?;
        outcome.panicked |= line.contains("Kernel panic");
        let Some((_, said)) = line.split_once("@@ ") else { continue };
        println!("  [{:>4} s] {said}", started.elapsed().as_secs());
        let (word, rest) = said.split_once(' ').unwrap_or((said, ""));
        if word == "end" {
            break;
        }
        outcome.hear(word, rest);
    }
    drop(lines);
    drop(guest);
    reader.join().ok();
    Ok(outcome)
}

/// The emulator; it is killed when this goes.
struct Guest {
    child: Child,
}

impl Guest {
    fn start(folder: &Path, kernel: &Kernel, disk: &Disk, processors: &str) -> anyhow::Result<Self> {
        let mut command = Command::new("nice");
        command.args(["-n", "10", EMULATOR, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args([
            "-machine",
            "q35",
            "-accel",
            "tcg,thread=multi,tb-size=512",
            "-cpu",
            "Nehalem,+rdrand",
            "-smp",
            processors,
            "-m",
            "2048",
        ]);
        command.args(["-serial", "stdio", "-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on"]);
        command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&disk.initrd);
        command.arg("-drive").arg(format!("file={},if=virtio,format=raw,cache=unsafe", disk.image.display()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(folder.join("emulator.log"))?);
        Ok(Self { child: command.spawn().context("vm: cannot start the emulator")? })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only for a child that is gone already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
