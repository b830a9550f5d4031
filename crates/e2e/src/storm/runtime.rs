//! The daemon is killed again and again while clients make pods and take them away, by the Kubernetes API, by the container runtime
//! interface and by the command line; at the end nothing may be left of any of it.
//!
//! ```text
//!  witnesses ─ clients, each: make ─ compare how it ended and what it wrote ─ take away ─┐   kill, at moments of chance,
//!                 ▲                                                                     │   with a change under way
//!                 └─────────────────────────────────────────────────────────────────────┘
//!  clients finish ─ witnesses are the same processes, wrote every line, end as they should ─ everything removed ─ leaks?
//! ```
//!
//! A kill counts when a request that changes something was under way and its connection broke unanswered.

mod api;
mod clients;
mod cri;
mod crowd;
mod flights;
mod proto;
mod script;
mod wires;
mod witnesses;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::{Signal, kill_process};

use self::clients::{Common, block_on, by_api, by_command_line, by_cri, watched};
use self::cri::Cri;
use self::flights::Flights;
use self::witnesses::Witnesses;
use super::chance::Chance;
use crate::harness::wait::{eventually, until};
use crate::leaks::{self, Traces};
use crate::service::{Part, Service};

pub use crowd::{Crowd, CrowdOptions, run_crowd};

/// How long a daemon lives at least after it answers, but for second kills: one that dies as soon as it is ready is held back.
const CALM: Duration = Duration::from_millis(300);
/// How long a request of a certain kind is waited for before any other will do.
const CHOOSY: Duration = Duration::from_millis(500);
/// How often witnesses write.
const WITNESS_PAUSE: Duration = Duration::from_millis(50);
/// The kinds of request to hit, by chance.
const TARGETS: [&str; 8] = [
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "StopContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
    "create a Pod",
    "delete a Pod",
];

/// How much of a storm.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub seed: u64,
    /// Kills that count.
    pub kills: usize,
    /// Pods that are there from the beginning to the end.
    pub witnesses: usize,
    /// Clients of each of the two interfaces, besides one of the command line.
    pub clients: usize,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Kills that broke a request.
    pub kills: usize,
    /// Of these, such as hit a daemon that was not wholly ready again.
    pub doubles: usize,
    /// Kills that broke none.
    pub missed: usize,
    /// Requests that were broken, by kind.
    pub broken: BTreeMap<&'static str, usize>,
    /// Pods that came and went.
    pub pods: usize,
    pub witnesses: usize,
    /// Lines that the witnesses wrote.
    pub lines: u64,
    /// From a kill to the first answer.
    pub away: Vec<Duration>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut away = self.away.clone();
        away.sort_unstable();
        write!(
            out,
            "{} kills with a change under way ({} of a daemon that was not wholly back), {} others; broken: {:?}; {} pods came and \
             went, {} witnesses wrote {} lines without a gap; away for {:?} in the middle, {:?} at most",
            self.kills,
            self.doubles,
            self.missed,
            self.broken,
            self.pods,
            self.witnesses,
            self.lines,
            away.get(away.len() / 2).copied().unwrap_or_default(),
            away.last().copied().unwrap_or_default(),
        )
    }
}

/// Runs a storm over a service of its own. An error is a finding.
pub fn run(options: Options) -> Result<Outcome> {
    let before = Traces::global()?;
    let service = Service::prepare("pods")?;
    service.serve()?;
    let outcome = blow(&service, options).with_context(|| format!("storm of seed {}", options.seed));
    finish(&service, &before, outcome)
}

/// Removes everything, whatever came of it, and says what is left.
fn finish<T>(service: &Service, before: &Traces, outcome: Result<T>) -> Result<T> {
    let cleared = Cri::new(service, &Flights::default()).and_then(|mut cri| block_on(async move { cri.clear().await }));
    let left = cleared.and_then(|()| leaks::check(service, before)).and_then(|()| said_nothing_bad(service));
    if outcome.is_err() || left.is_err() {
        eprintln!("---- what the service said\n{}", service.log());
    }
    match (outcome, left) {
        (Ok(outcome), left) => left.map(|()| outcome),
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(left)) => Err(error.context(format!("and left behind: {left:#}"))),
    }
}

/// A panic, or what a person would have to act upon, is a finding even where no client met it.
fn said_nothing_bad(service: &Service) -> Result<()> {
    let log = service.log();
    let bad: Vec<&str> = log.lines().filter(|line| line.contains("panicked at") || line.contains(" ERROR ")).collect();
    ensure!(bad.is_empty(), "the service said: {}", bad.join("\n"));
    Ok(())
}

fn blow(service: &Service, options: Options) -> Result<Outcome> {
    let busybox = service.busybox()?;
    service.sampan(["pull", &busybox]).ok()?;
    let held = held_descriptors(service)?;
    let witnesses = Witnesses::start(service, options.witnesses, WITNESS_PAUSE)?;
    let (flights, common) = (Flights::default(), Arc::new(Common::default()));
    let mut chance = Chance::new(options.seed);
    let seeds: Vec<u64> = (0..=2 * options.clients).map(|_| chance.number()).collect();
    let mut outcome = std::thread::scope(|scope| {
        let mut threads: Vec<ScopedJoinHandle<'_, Result<()>>> = Vec::new();
        for (number, seed) in seeds.into_iter().enumerate() {
            let (flights, common) = (flights.clone(), Arc::clone(&common));
            let mut chance = Chance::new(seed);
            threads.push(scope.spawn(move || {
                watched(&common, || match number {
                    0 => by_command_line(service, "by-command-line", &mut chance, &common),
                    number if number % 2 == 1 => {
                        let cri = Cri::new(service, &flights)?;
                        block_on(by_cri(cri, &format!("by-cri-{number}"), &mut chance, &common))
                    }
                    number => {
                        let api = api::Api::new(service, &flights)?;
                        block_on(by_api(api, &format!("by-api-{number}"), &mut chance, &common))
                    }
                })
            }));
        }
        let killed = kill_all(service, options, &mut chance, &flights, &common);
        common.over.store(true, Ordering::Relaxed);
        let ended = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a client panics"))));
        // A client's finding says more than that there is one.
        let ended: Result<Vec<()>> = ended.collect::<Vec<_>>().into_iter().collect();
        ended.and(killed)
    })?;
    outcome.pods = common.pods.load(Ordering::Relaxed);
    outcome.witnesses = options.witnesses;
    outcome.lines = witnesses.finish()?;
    clear(service)?;
    until("supervisor and zygote hold no more than before", || {
        let now = held_descriptors(service)?;
        Ok(now.iter().zip(&held).all(|(now, held)| now <= held))
    })
    .with_context(|| format!("descriptors before {held:?}, now {:?}", held_descriptors(service)))?;
    Ok(outcome)
}

/// Removes every pod of either interface.
fn clear(service: &Service) -> Result<()> {
    let pods = service.sampan(["ps", "-aq"]).ok()?;
    if !pods.is_empty() {
        service.remove(pods.lines())?;
    }
    let mut cri = Cri::new(service, &Flights::default())?;
    block_on(async { cri.clear().await })
}

/// How many descriptors those parts hold that no kill of the daemon ends.
fn held_descriptors(service: &Service) -> Result<[usize; 2]> {
    let count = |part| {
        let pid = service.pid(part)?.as_raw_nonzero();
        anyhow::Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
    };
    Ok([count(Part::Supervisor)?, count(Part::Zygote)?])
}

fn kill_all(
    service: &Service,
    options: Options,
    chance: &mut Chance,
    flights: &Flights,
    common: &Common,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut cri = Cri::new(service, &Flights::default())?;
    while outcome.kills < options.kills {
        let killed = kill(service, chance, flights, common, &mut outcome)?;
        if chance.below(4) == 0 {
            let before = outcome.kills;
            kill(service, chance, flights, common, &mut outcome)?;
            outcome.doubles += outcome.kills - before;
        } else {
            block_on(async { cri.answers().await })?;
            outcome.away.push(killed.elapsed());
        }
        service.wait_until_it_answers()?;
        common.deaths.fetch_add(1, Ordering::SeqCst);
        ensure!(!common.failed.load(Ordering::Relaxed), "a client has found something");
        eprintln!("{outcome}");
        std::thread::sleep(CALM + chance.pause(500));
    }
    Ok(outcome)
}

/// Kills the daemon at a moment of chance within a request; gives the moment.
fn kill(
    service: &Service,
    chance: &mut Chance,
    flights: &Flights,
    common: &Common,
    outcome: &mut Outcome,
) -> Result<Instant> {
    let target = TARGETS[usize::try_from(chance.below(TARGETS.len() as u64))?];
    let (began, pause) = (Instant::now(), chance.pause(30));
    until("a request is under way", || {
        let open = flights.open();
        let found = open.values().any(|what| *what == target) || began.elapsed() > CHOOSY && !open.is_empty();
        Ok(found || common.failed.load(Ordering::Relaxed))
    })?;
    std::thread::sleep(pause);
    let pid = eventually("there is a daemon", || Ok(service.pid(Part::Daemon).ok()))?;
    let open = eventually("a request is under way", || {
        let open = flights.open();
        Ok((!open.is_empty() || common.failed.load(Ordering::Relaxed)).then_some(open))
    })?;
    if common.deaths.load(Ordering::SeqCst).is_multiple_of(2) {
        common.deaths.fetch_add(1, Ordering::SeqCst);
    }
    let killed = Instant::now();
    kill_process(pid, Signal::KILL)?;
    until("another daemon takes its place", || Ok(service.pid(Part::Daemon).is_ok_and(|new| new != pid)))?;
    let broken = eventually("requests end with their daemon", || Ok(flights.broken_of(&open)))?;
    if broken.is_empty() {
        outcome.missed += 1;
        return Ok(killed);
    }
    outcome.kills += 1;
    for what in broken {
        *outcome.broken.entry(what).or_default() += 1;
    }
    Ok(killed)
}
