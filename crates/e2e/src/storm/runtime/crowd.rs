//! `kill -9` of the daemon with hundreds of containers running: nothing is lost, no line is missing, every end is told right, and it
//! is soon back.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Signal, kill_process};

use super::clients::block_on;
use super::cri::Cri;
use super::flights::Flights;
use super::witnesses::Witnesses;
use super::{clear, finish};
use crate::leaks::Traces;
use crate::service::{Part, Service};

/// How often each of them writes: all of them together are to leave the machine something.
const PAUSE: Duration = Duration::from_secs(1);

/// How much of a crowd.
#[derive(Debug, Clone, Copy)]
pub struct CrowdOptions {
    /// Pods with a container each; half of them by each interface.
    pub pods: usize,
    /// Kills whose times are told, after the one over which a third of the containers end.
    pub kills: usize,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Crowd {
    pub pods: usize,
    /// How many ended while there was no daemon.
    pub ended_unseen: usize,
    pub lines: u64,
    /// From each kill until the container runtime interface answers, and until the API does; nobody ended meanwhile.
    pub away: Vec<(Duration, Duration)>,
    /// How long it took to make them all.
    pub made: Duration,
}

impl fmt::Display for Crowd {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} containers, made in {:?}; {} ended while there was no daemon, with the right codes; {} lines without a gap; from a \
             kill to an answer of the container runtime interface and of the API: {:?}",
            self.pods, self.made, self.ended_unseen, self.lines, self.away
        )
    }
}

/// Runs it over a service of its own. An error is a finding.
pub fn run_crowd(options: CrowdOptions) -> Result<Crowd> {
    let before = Traces::global()?;
    let service = Service::prepare_wide("crowd")?;
    service.serve()?;
    let outcome = crowd(&service, options).with_context(|| format!("a crowd of {}", options.pods));
    finish(&service, &before, outcome)
}

fn crowd(service: &Service, options: CrowdOptions) -> Result<Crowd> {
    let busybox = service.busybox()?;
    service.sampan(["pull", &busybox]).ok()?;
    let began = Instant::now();
    let witnesses = Witnesses::start(service, options.pods, PAUSE)?;
    let mut outcome = Crowd { pods: options.pods, made: began.elapsed(), ..Crowd::default() };
    for _ in 0..options.kills {
        outcome.away.push(kill(service)?);
    }
    witnesses.are_untouched()?;
    outcome.ended_unseen = leave_unseen(service, &witnesses)?;
    witnesses.are_known()?;
    witnesses.are_untouched()?;
    outcome.lines = witnesses.finish()?;
    clear(service)?;
    Ok(outcome)
}

/// How long neither interface answers.
fn kill(service: &Service) -> Result<(Duration, Duration)> {
    let mut cri = Cri::new(service, &Flights::default())?;
    let killed = Instant::now();
    kill_process(service.pid(Part::Daemon)?, Signal::KILL)?;
    block_on(async { cri.answers().await })?;
    let answered = killed.elapsed();
    service.wait_until_it_answers()?;
    Ok((answered, killed.elapsed()))
}

/// Has containers end while nobody restarts the daemon.
fn leave_unseen(service: &Service, witnesses: &Witnesses<'_>) -> Result<usize> {
    let (supervisor, daemon) = (service.pid(Part::Supervisor)?, service.pid(Part::Daemon)?);
    kill_process(supervisor, Signal::STOP)?;
    let ended = kill_process(daemon, Signal::KILL).map_err(Into::into).and_then(|()| witnesses.leave());
    kill_process(supervisor, Signal::CONT)?;
    let ended = ended?;
    service.wait_until_it_answers()?;
    Ok(ended)
}
