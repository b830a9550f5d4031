//! `cargo xtask vm`: the service on other kernels, in an emulated machine, where only cgroup v2 is mounted.
//!
//! The development machine has one kernel; users have Debian 12's and Debian 13's. This boots Debian's own cloud kernels
//! under QEMU without hardware help, with a root of busybox, a few tools of this machine and `target/debug/sampan`, and
//! runs a script inside that talks back over the serial line. Nothing of the guest reaches this machine but that line; it
//! has no network. Downloads go to the tests' cache; what is made for a run lies in `target/vm` and is replaced by the next.
//!
//! Everything has a deadline: each step of the script, and the machine as a whole.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what the guest says is the result")]

mod kernel;
mod machine;
mod root;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail, ensure};

pub(crate) const USAGE: &str =
    "usage: cargo xtask vm [--kernel VERSION]… [--program FILE] [--tool NAME]… [--smoke | --script FILE]

  --kernel VERSION  a kernel that Debian has, as 6.1 or 6.12; once or more (default: 6.1 and 6.12)
  --program FILE    the sampan to run, instead of building target/debug/sampan
  --tool NAME       a program of this machine to have inside, with its libraries, by name or path
  --smoke           run the smoke script (default)
  --script FILE     run this shell script inside instead; the service is not started for it";

/// The kernels of Debian 12 and Debian 13.
const KERNELS: [&str; 2] = ["6.1", "6.12"];

/// What the smoke script checks, one line each.
const SMOKE: &str = include_str!("vm/smoke.sh");

struct Options {
    kernels: Vec<String>,
    program: Option<PathBuf>,
    tools: Vec<String>,
    script: Option<PathBuf>,
}

/// Boots each kernel and runs the script on it; fails when a check fails, or the guest dies or hangs.
pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<ExitCode> {
    let Some(options) = parse(arguments)? else {
        println!("{USAGE}");
        return Ok(ExitCode::SUCCESS);
    };
    ensure!(cfg!(target_arch = "x86_64"), "vm: guests are x86-64 machines; run this on one");
    ensure!(is_root()?, "vm: file owners in the guest's disk must be root's; run this as root");
    machine::find_emulator()?;
    let script = match &options.script {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("vm: cannot read {}", path.display()))?,
        None => SMOKE.to_owned(),
    };
    let program = options.program.clone().map_or_else(crate::critest::build_service, Ok)?;
    let contents = root::Contents { program: &program, tools: &options.tools, script: &script };
    let mut failed = Vec::new();
    for kernel in &options.kernels {
        let outcome = boot(kernel, contents)?;
        println!("vm: Linux {kernel}: {outcome}");
        if !outcome.is_good() {
            failed.push(kernel.as_str());
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("vm: failed on {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn parse(arguments: &[&str]) -> anyhow::Result<Option<Options>> {
    let mut options = Options { kernels: Vec::new(), program: None, tools: Vec::new(), script: None };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("vm: {word} needs a value\n{USAGE}"));
        match *word {
            "--kernel" => options.kernels.push((*value()?).to_owned()),
            "--program" => options.program = Some(PathBuf::from(value()?)),
            "--tool" => options.tools.push((*value()?).to_owned()),
            "--script" => options.script = Some(PathBuf::from(value()?)),
            "--smoke" => options.script = None,
            "-h" | "--help" => return Ok(None),
            other => bail!("vm: unknown option `{other}`\n{USAGE}"),
        }
    }
    if options.kernels.is_empty() {
        options.kernels = KERNELS.map(str::to_owned).to_vec();
    }
    Ok(Some(options))
}

fn is_root() -> anyhow::Result<bool> {
    let output = Command::new("id").arg("-u").output().context("vm: cannot run id")?;
    Ok(output.stdout.trim_ascii() == b"0")
}

fn repository() -> anyhow::Result<PathBuf> {
    Ok(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).canonicalize()?)
}

fn boot(version: &str, contents: root::Contents<'_>) -> anyhow::Result<machine::Outcome> {
    let kernel = kernel::get(version)?;
    let folder = repository()?.join("target/vm").join(version);
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    let disk = root::build(&folder, &kernel, &contents)?;
    machine::run(&folder, &kernel, &disk)
}
