//! `cargo xtask critest`: Kubernetes' own tests of container runtimes against this service.
//!
//! `critest` comes from the `PATH` or from `SAMPAN_PEERS`, and so do look-alikes of the images that it asks for with the
//! program that pushes them (`push.py`, beside its folder `images`). The images are in a registry at 127.0.0.1:5000, and four ports
//! of the host are used, so that one run at a time is possible; service and registry have folders and names of their own
//! and are gone afterwards, as is whatever the tests leave (two pieces of shared memory).
//!
//! - [`suite`]: the program, with its images' names pointed at that registry, or as it was released (`--mirrors`);
//! - [`service`]: the service and the registry; [`outcome`]: how a run went, and how `docs/cri.md` says that it goes;
//!   [`figures`]: what the benchmarks have measured.
//!
//! A run is good when exactly those specs fail and are skipped that `docs/cri.md` lists with their reasons, and when nothing of
//! the service is left on the machine.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what the tests say is the result")]

mod figures;
mod outcome;
pub(crate) mod service;
mod suite;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, bail, ensure};

use outcome::{Outcome, Page};

pub(crate) const USAGE: &str = "usage: cargo xtask critest [--protocol spdy|websocket]… [--focus PATTERN] [--mirrors] [--benchmark]

  --protocol NAME  how exec, attach and port-forward are spoken; once or twice (default: both; one of them with --mirrors and --benchmark)
  --focus PATTERN  only specs whose names match; which are skipped is not compared then
  --mirrors        the suite as it was released, with mirrors of the public registries that it asks
  --benchmark      run the benchmarks instead, and show their figures
  --program FILE   the sampan to run, instead of building target/debug/sampan";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Spdy,
    WebSocket,
}

/// Which specs are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Specs {
    /// Those that tell right from wrong.
    Validation,
    Benchmarks,
}

struct Options {
    protocols: Vec<Protocol>,
    focus: Option<String>,
    specs: Specs,
    mirrors: bool,
    program: Option<PathBuf>,
}

pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<ExitCode> {
    let Some(options) = parse(arguments)? else {
        println!("{USAGE}");
        return Ok(ExitCode::SUCCESS);
    };
    let page = Page::read(&fs::read_to_string(root().join("docs/cri.md"))?)?;
    let push = find("push.py")?;
    for tool in ["docker-registry", "ipcmk", "ipcrm", "python3"] {
        find(tool)?;
    }
    let critest = if options.mirrors { suite::released()? } else { suite::with_local_images()? };
    let program = options.program.clone().map_or_else(build_service, Ok)?;
    let shared_memory = shared_memory()?;
    let mirrored: &[&str] = if options.mirrors { &suite::PUBLIC_REGISTRIES } else { &[] };
    let service = service::Running::start(&program, &push, mirrored)?;
    let mut good = true;
    for protocol in &options.protocols {
        let began = Instant::now();
        let outcome = judge(&critest, &service, *protocol, &options)?;
        println!(
            "critest: {protocol:?}: {} passed, {} failed, {} skipped, in {} s",
            outcome.passed.len(),
            outcome.failed.len(),
            outcome.skipped.len(),
            began.elapsed().as_secs()
        );
        for complaint in outcome.complaints(&expectation(&page, &options)) {
            println!("critest: {complaint}");
            good = false;
        }
    }
    for id in self::shared_memory()?.difference(&shared_memory) {
        ensure!(Command::new("ipcrm").args(["-m", id]).status()?.success(), "critest: shared memory {id} stays");
    }
    if !good {
        println!("critest: the service says:\n{}", service.complaints());
    }
    for leak in service.finish()? {
        println!("critest: left behind: {leak}");
        good = false;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn parse(arguments: &[&str]) -> anyhow::Result<Option<Options>> {
    let mut options =
        Options { protocols: Vec::new(), focus: None, specs: Specs::Validation, mirrors: false, program: None };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("critest: {word} needs a value\n{USAGE}"));
        match *word {
            "--protocol" => options.protocols.push(match *value()? {
                "spdy" => Protocol::Spdy,
                "websocket" => Protocol::WebSocket,
                other => bail!("critest: {other:?} is neither spdy nor websocket"),
            }),
            "--focus" => options.focus = Some((*value()?).to_owned()),
            "--program" => options.program = Some(PathBuf::from(value()?)),
            "--mirrors" => options.mirrors = true,
            "--benchmark" => options.specs = Specs::Benchmarks,
            "-h" | "--help" => return Ok(None),
            other => bail!("critest: unknown option {other:?}\n{USAGE}"),
        }
    }
    if options.protocols.is_empty() {
        let both = options.specs == Specs::Validation && !options.mirrors;
        options.protocols = if both { vec![Protocol::Spdy, Protocol::WebSocket] } else { vec![Protocol::Spdy] };
    }
    Ok(Some(options))
}

/// What the page promises of such a run.
fn expectation(page: &Page, options: &Options) -> outcome::Expectation {
    let mut expected = match options.specs {
        Specs::Validation => page.validation(suite::has_apparmor()),
        Specs::Benchmarks => page.benchmarks(),
    };
    if options.mirrors && options.specs == Specs::Validation {
        expected.failed = page.failing_with_mirrors();
    }
    expected.is_whole = options.focus.is_none();
    expected
}

/// A program on the `PATH`, or in a folder of `SAMPAN_PEERS`.
pub(crate) fn find(name: &str) -> anyhow::Result<PathBuf> {
    candidates(name).into_iter().next().with_context(|| {
        format!("NOTHING WAS TESTED: there is no {name} on the PATH or in the folder SAMPAN_PEERS; see docs/cri.md for where to get it")
    })
}

/// Every program of this name there, in order.
fn candidates(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let peers = std::env::var_os("SAMPAN_PEERS").map(PathBuf::from);
    let peers = peers.iter().flat_map(|folder| [folder.clone(), folder.join("bin"), folder.join("critest")]);
    let folders = std::env::split_paths(&path).chain(peers);
    folders.map(|folder| folder.join(name)).filter(|file| file.is_file()).collect()
}

/// The debug build of what is tested.
pub(crate) fn build_service() -> anyhow::Result<PathBuf> {
    let status = Command::new(env!("CARGO")).args(["build", "-p", "sampan"]).status().context("start cargo")?;
    ensure!(status.success(), "the service does not build");
    let program = root().join("target/debug/sampan");
    ensure!(program.exists(), "{} is missing after the build", program.display());
    Ok(program)
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The pieces of System V shared memory that there are (sysvipc(7)).
fn shared_memory() -> anyhow::Result<BTreeSet<String>> {
    let text = fs::read_to_string("/proc/sysvipc/shm").context("critest: shared memory cannot be listed")?;
    Ok(text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1).map(str::to_owned)).collect())
}

fn judge(critest: &Path, service: &service::Running, protocol: Protocol, options: &Options) -> anyhow::Result<Outcome> {
    let report = service.folder().join("report.json");
    let endpoint = format!("unix://{}", service.socket().display());
    let mut command = Command::new(critest);
    command.args(["-runtime-endpoint", &endpoint, "-image-endpoint", &endpoint, "-ginkgo.no-color"]);
    command.arg("-ginkgo.json-report").arg(&report);
    if protocol == Protocol::WebSocket {
        command.args(["-websocket-exec", "-websocket-attach", "-websocket-portforward"]);
    }
    if let Some(focus) = &options.focus {
        command.args(["-ginkgo.focus", focus]);
    }
    if options.specs == Specs::Benchmarks {
        figures::ask(&mut command, service.folder())?;
    }
    // Its exit status says less than its report.
    let status =
        command.env("TMPDIR", service.folder()).status().with_context(|| format!("run {}", critest.display()))?;
    let report = fs::read(&report).with_context(|| format!("critest ended with {status} and left no report"))?;
    let report = serde_json::from_slice(&report).context("critest's report is not JSON")?;
    if options.specs == Specs::Benchmarks {
        for figure in figures::read(service.folder(), &report)? {
            println!("critest: {figure}");
        }
    }
    Outcome::read(&report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_protocols_where_they_make_a_difference() {
        let protocols = |words: &[&str]| parse(words).unwrap().unwrap().protocols;
        assert_eq!(protocols(&[]), [Protocol::Spdy, Protocol::WebSocket]);
        assert_eq!(protocols(&["--mirrors"]), [Protocol::Spdy]);
        assert_eq!(protocols(&["--benchmark"]), [Protocol::Spdy]);
        assert_eq!(protocols(&["--mirrors", "--protocol", "websocket"]), [Protocol::WebSocket]);
        assert!(parse(&["--protocol", "http"]).is_err());
    }
}
