//! `cargo xtask critest`: Kubernetes' own tests of container runtimes against this service.
//!
//! `critest` comes from the `PATH` or from `SAMPAN_PEERS`, and so do look-alikes of the images that it asks for with the
//! program that pushes them (`push.py`, beside its folder `images`). It wants them from a registry at 127.0.0.1:5000 and
//! four ports of the host, so that one run at a time is possible; service and registry have folders and names of their own
//! and are gone afterwards, as is whatever the tests leave (two pieces of shared memory).
//!
//! A run is good when nothing fails, when exactly those specs are skipped that `docs/cri.md` lists with their reasons, and
//! when nothing of the service is left on the machine.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what the tests say is the result")]

pub(crate) mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

pub(crate) const USAGE: &str = "usage: cargo xtask critest [--protocol spdy|websocket]… [--focus PATTERN] [--benchmark]

  --protocol NAME  how exec, attach and port-forward are spoken; once or twice (default: both)
  --focus PATTERN  only specs whose names match; which are skipped is not compared then
  --benchmark      run the benchmarks instead, and show their figures
  --program FILE   the sampan to run, instead of building target/debug/sampan";

/// Specs that are skipped, one a line, in `docs/cri.md` between these.
const LIST_BEGINS: &str = "<!-- skipped specs -->";
const LIST_ENDS: &str = "<!-- end -->";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Spdy,
    WebSocket,
}

struct Options {
    protocols: Vec<Protocol>,
    focus: Option<String>,
    benchmark: bool,
    program: Option<PathBuf>,
}

pub(crate) fn run(arguments: &[&str]) -> anyhow::Result<ExitCode> {
    let Some(options) = parse(arguments)? else {
        println!("{USAGE}");
        return Ok(ExitCode::SUCCESS);
    };
    let (critest, push) = (find("critest")?, find("push.py")?);
    for tool in ["docker-registry", "ipcmk", "ipcrm", "python3"] {
        find(tool)?;
    }
    let program = options.program.clone().map_or_else(build_service, Ok)?;
    let shared_memory = shared_memory()?;
    let service = service::Running::start(&program, &push)?;
    let mut good = true;
    for protocol in &options.protocols {
        let outcome = judge(&critest, &service, *protocol, &options)?;
        println!(
            "critest: {protocol:?}: {} passed, {} failed, {} skipped",
            outcome.passed,
            outcome.failed.len(),
            outcome.skipped.len()
        );
        for complaint in outcome.complaints(options.focus.is_none() && !options.benchmark)? {
            println!("critest: {complaint}");
            good = false;
        }
    }
    for id in self::shared_memory()?.difference(&shared_memory) {
        ensure!(Command::new("ipcrm").args(["-m", id]).status()?.success(), "critest: shared memory {id} stays");
    }
    for leak in service.finish()? {
        println!("critest: left behind: {leak}");
        good = false;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn parse(arguments: &[&str]) -> anyhow::Result<Option<Options>> {
    let mut options = Options { protocols: Vec::new(), focus: None, benchmark: false, program: None };
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
            "--benchmark" => options.benchmark = true,
            "-h" | "--help" => return Ok(None),
            other => bail!("critest: unknown option {other:?}\n{USAGE}"),
        }
    }
    if options.protocols.is_empty() {
        options.protocols =
            if options.benchmark { vec![Protocol::Spdy] } else { vec![Protocol::Spdy, Protocol::WebSocket] };
    }
    Ok(Some(options))
}

/// A program on the `PATH`, or in a folder of `SAMPAN_PEERS`.
pub(crate) fn find(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let peers = std::env::var_os("SAMPAN_PEERS").map(PathBuf::from);
    let peers = peers.iter().flat_map(|folder| [folder.clone(), folder.join("bin"), folder.join("critest")]);
    let mut folders = std::env::split_paths(&path).chain(peers);
    folders.find_map(|folder| Some(folder.join(name)).filter(|file| file.is_file())).with_context(|| {
        format!("NOTHING WAS TESTED: there is no {name} on the PATH or in the folder SAMPAN_PEERS; see docs/cri.md for where to get it")
    })
}

pub(crate) fn build_service() -> anyhow::Result<PathBuf> {
    let status = Command::new(env!("CARGO")).args(["build", "-p", "sampan"]).status().context("critest: run cargo")?;
    ensure!(status.success(), "critest: the service does not build");
    Ok(root().join("target/debug/sampan"))
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The pieces of System V shared memory that there are (sysvipc(7)).
fn shared_memory() -> anyhow::Result<BTreeSet<String>> {
    let text = std::fs::read_to_string("/proc/sysvipc/shm").context("critest: shared memory cannot be listed")?;
    Ok(text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1).map(str::to_owned)).collect())
}

/// How a run went.
#[derive(Debug, Default)]
struct Outcome {
    passed: usize,
    /// With what they said.
    failed: BTreeMap<String, String>,
    skipped: BTreeSet<String>,
}

impl Outcome {
    /// What is wrong, a line each.
    fn complaints(&self, whole: bool) -> anyhow::Result<Vec<String>> {
        let mut complaints: Vec<String> =
            self.failed.iter().map(|(name, why)| format!("failed: {name}: {}", why.replace('\n', " "))).collect();
        if whole {
            let listed = listed(&std::fs::read_to_string(root().join("docs/cri.md"))?);
            let new = self.skipped.difference(&listed).map(|name| format!("skipped, but not in docs/cri.md: {name}"));
            complaints.extend(new);
            let gone = listed.difference(&self.skipped).map(|name| format!("in docs/cri.md, but not skipped: {name}"));
            complaints.extend(gone);
        }
        if self.passed == 0 {
            complaints.push("no spec passed".to_owned());
        }
        Ok(complaints)
    }
}

/// The names in a page's list: what stands in backticks at the beginning of its items.
fn listed(page: &str) -> BTreeSet<String> {
    let after = page.split_once(LIST_BEGINS).map_or("", |(_, after)| after);
    let list = after.split_once(LIST_ENDS).map_or("", |(list, _)| list);
    let name = |line: &str| Some(line.strip_prefix("- `")?.split_once('`')?.0.to_owned());
    list.lines().filter_map(name).collect()
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
    if options.benchmark {
        command.arg("-benchmark");
    }
    // Its exit status says less than its report.
    let status =
        command.env("TMPDIR", service.folder()).status().with_context(|| format!("run {}", critest.display()))?;
    let report = std::fs::read(&report).with_context(|| format!("critest ended with {status} and left no report"))?;
    read(&serde_json::from_slice(&report).context("critest's report is not JSON")?)
}

/// Ginkgo's report: a list of suites, each with its specs.
fn read(report: &Value) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let suites = report.as_array().context("critest's report is not a list")?;
    for spec in suites.iter().flat_map(|suite| suite["SpecReports"].as_array().into_iter().flatten()) {
        if spec["LeafNodeType"] != "It" {
            continue;
        }
        let parts = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten().chain([&spec["LeafNodeText"]]);
        let name = parts.filter_map(Value::as_str).collect::<Vec<_>>().join(" ");
        match spec["State"].as_str().unwrap_or_default() {
            "passed" => outcome.passed += 1,
            "skipped" | "pending" => drop(outcome.skipped.insert(name)),
            state => {
                let why = spec["Failure"]["Message"].as_str().unwrap_or(state).to_owned();
                outcome.failed.insert(name, why);
            }
        }
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_by_state() {
        let spec = |state: &str, name: &str| {
            serde_json::json!({"LeafNodeType": "It", "State": state, "ContainerHierarchyTexts": ["a", "b"], "LeafNodeText": name,
                "Failure": {"Message": "why"}})
        };
        let setup = serde_json::json!({"LeafNodeType": "BeforeSuite", "State": "passed"});
        let report = serde_json::json!([{"SpecReports": [setup, spec("passed", "1"), spec("skipped", "2"), spec("timedout", "3")]}]);
        let outcome = read(&report).unwrap();
        assert_eq!((outcome.passed, outcome.skipped.first().unwrap().as_str()), (1, "a b 2"));
        assert_eq!(outcome.failed.get("a b 3").unwrap(), "why");
    }

    #[test]
    fn the_page_lists_what_is_skipped() {
        let page =
            "x\n<!-- skipped specs -->\n- `one spec`: because\n- `another`: so\n<!-- end -->\n- `no`: not here\n";
        assert_eq!(listed(page), ["another".to_owned(), "one spec".to_owned()].into());
        let own = std::fs::read_to_string(root().join("docs/cri.md")).unwrap();
        assert_eq!(listed(&own).len(), 14);
    }
}
