//! The storm: the daemon is killed again and again while eight readers compare every byte of images that are still arriving.
//!
//! ```text
//!  pull once (the index is made) ─ then, round after round:
//!    remove the image ─ start a container, over a slow link, before its image is here ─ readers ─ kills ─ complete ─ compare all
//! ```
//!
//! A kill is made with the daemon stopped (SIGSTOP) and the kernel asked whether it waits for an answer of it; afterwards the
//! next daemon must have said that it was asked again, or the kill does not count. Moments are chance, by a seed.

mod chance;
mod connection;
mod readers;
pub mod runtime;
mod truth;

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};

use crate::harness::wait::{eventually, until};
use crate::leaks::entries;
use crate::link::{Link, Shape};
use crate::service::{Part, Service};
use chance::Chance;
use connection::Control;
use readers::Readers;
use truth::Truth;

/// What the daemon says when it is asked for what an earlier one left unanswered.
const ASKED_AGAIN: &str = "readers whom an earlier service left waiting are served";
/// How often a moment with a request under way is looked for before a kill is given up.
const LOOKS_MAX: u32 = 300;
/// What a slow link is.
const LINK: Shape = Shape::new(5, Some(120));
/// How long a daemon lives at least after it answers, but for second kills: one that dies as soon as it is ready is held back.
const CALM: Duration = Duration::from_millis(400);
/// How long a new daemon may take until it is asked again.
const AGAIN_MAX: Duration = Duration::from_secs(3);

/// How much of a storm.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub seed: u64,
    /// Kills that count.
    pub kills: usize,
    /// Of these, second ones within a second of the first.
    pub doubles: usize,
    /// Kills of the supervisor while an image is incomplete.
    pub supervisor_kills: usize,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Kills with a request in the daemon's hands, by what was under way.
    pub reading: usize,
    pub completing: usize,
    pub doubles: usize,
    /// Kills that found nothing in its hands.
    pub missed: usize,
    pub supervisor_kills: usize,
    pub rounds: usize,
    pub reads: u64,
    /// For each kill and each reader, how long his read took from the kill on.
    pub waits: Vec<Duration>,
}

impl Outcome {
    fn kills(&self) -> usize {
        self.reading + self.completing
    }

    /// A wait that all but one of a hundred are no longer than.
    pub fn wait_99(&self) -> Duration {
        let mut waits = self.waits.clone();
        waits.sort_unstable();
        waits.get(waits.len() * 99 / 100).copied().unwrap_or_default()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} kills with requests under way ({} while completing, {} double), {} others, in {} rounds; {} reads, no error, no wrong \
             byte; wait from a kill on: 99 of 100 within {:?}, the longest {:?}; {} kills of the supervisor mended",
            self.kills(),
            self.completing,
            self.doubles,
            self.missed,
            self.rounds,
            self.reads,
            self.wait_99(),
            self.waits.iter().max().copied().unwrap_or_default(),
            self.supervisor_kills,
        )
    }
}

/// Runs a storm over a service of its own. An error is a finding.
pub fn run(options: Options) -> Result<Outcome> {
    let service = Service::prepare("storm")?;
    let truth = Truth::new(options.seed);
    let reference = service.registry.push(&truth.image()?, "storm:1")?;
    let link = Link::to(service.registry.address(), LINK)?;
    let slow = reference.replacen(service.registry.address(), &link.address(), 1);
    service.serve()?;
    let control = Control::open()?;
    let mut storm = Storm {
        service: &service,
        control,
        truth,
        image: slow,
        chance: Chance::new(options.seed),
        outcome: Outcome::default(),
    };
    let outcome = storm.blow(options).with_context(|| format!("storm of seed {}", options.seed));
    if outcome.is_err() {
        eprintln!("---- what the service said\n{}", service.log());
    }
    let removed = storm.clear();
    let result = storm.outcome;
    outcome.and(removed)?;
    service.stop()?;
    Ok(result)
}

struct Storm<'a> {
    service: &'a Service,
    control: Control,
    truth: Truth,
    image: String,
    chance: Chance,
    outcome: Outcome,
}

impl Storm<'_> {
    fn blow(&mut self, options: Options) -> Result<()> {
        // The index is made in passing, and kept.
        self.service.sampan(["pull", &self.image]).ok()?;
        while self.outcome.kills() < options.kills {
            self.round(options)?;
            eprintln!("{}", self.outcome);
        }
        while self.outcome.supervisor_kills < options.supervisor_kills {
            self.supervisor_round()?;
        }
        self.last_round()
    }

    /// One image from the first byte to the last, with kills on the way.
    fn round(&mut self, options: Options) -> Result<()> {
        self.outcome.rounds += 1;
        let pid = self.start_incomplete()?;
        let readers = Readers::start(pid, &self.truth, self.chance.number())?;
        let mut moments = Vec::new();
        for _ in 0..2 + self.chance.below(3) {
            std::thread::sleep(self.chance.pause(400));
            if self.is_complete()? {
                break;
            }
            let completing = self.is_completing()?;
            moments.extend(self.kill(options, completing)?);
        }
        // With readers that want nothing more, completion goes on.
        readers.stay_within(10);
        while !self.is_complete()? && !readers.have_ended() {
            if self.is_completing()? && (self.outcome.completing < options.kills.div_ceil(2)) {
                std::thread::sleep(self.chance.pause(300));
                moments.extend(self.kill(options, true)?);
            }
            std::thread::sleep(self.chance.pause(100));
        }
        readers.stay_within(100);
        let before = readers.reads();
        until("the readers go on", || Ok(readers.reads() > before + 100 || readers.have_ended()))?;
        self.outcome.reads += readers.reads();
        let waits = readers.finish(&moments)?;
        self.outcome.waits.extend(waits);
        readers::check_whole(pid, &self.truth)?;
        self.clear()
    }

    /// What is lost with the supervisor comes back with it.
    fn supervisor_round(&mut self) -> Result<()> {
        let pid = self.start_incomplete()?;
        std::thread::sleep(self.chance.pause(300));
        self.service.kill(Part::Supervisor)?;
        self.service.serve()?;
        self.service.wait_until_it_answers()?;
        until("the files are read again", || Ok(readers::check_whole(pid, &self.truth).is_ok()))?;
        self.outcome.supervisor_kills += 1;
        self.clear()
    }

    /// Once an image is complete, its containers need nobody.
    fn last_round(&mut self) -> Result<()> {
        let pid = self.start_incomplete()?;
        eventually("the image is complete", || Ok(self.is_complete()?.then_some(())))?;
        self.service.kill(Part::Supervisor)?;
        rustix::fs::sync();
        std::fs::write("/proc/sys/vm/drop_caches", "3").context("empty the page cache")?;
        readers::check_whole(pid, &self.truth).context("with supervisor and daemon dead")?;
        self.service.serve()?;
        self.service.wait_until_it_answers()
    }

    /// A container whose image is not here; gives its first process.
    fn start_incomplete(&mut self) -> Result<i32> {
        self.remove_image()?;
        self.service.sampan(["run", "-d", "--name", "storm", &self.image, "sleep", "100000"]).ok()?;
        ensure!(!self.is_complete()?, "the image was pulled whole: is lazy loading off?");
        self.container()
    }

    /// The number of the container's first process.
    fn container(&self) -> Result<i32> {
        let marks = [format!("/{}/", self.service.instance), "/c-".to_owned()];
        eventually("the container has a process", || {
            for process in std::fs::read_dir("/proc")?.flatten() {
                let Ok(groups) = std::fs::read_to_string(process.path().join("cgroup")) else { continue };
                let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
                if marks.iter().all(|mark| groups.contains(mark)) && command.starts_with(b"sleep\0") {
                    return Ok(process.file_name().to_string_lossy().parse().ok());
                }
            }
            Ok(None)
        })
    }

    /// Kills the daemon, perhaps its successor too; the moments of those kills that count.
    fn kill(&mut self, options: Options, completing: bool) -> Result<Vec<Instant>> {
        let mut moments = Vec::new();
        moments.extend(self.kill_once(completing)?);
        if self.outcome.doubles < options.doubles && !moments.is_empty() && self.chance.below(3) == 0 {
            std::thread::sleep(self.chance.pause(500));
            let second = self.kill_once(completing)?;
            self.outcome.doubles += usize::from(second.is_some());
            moments.extend(second);
        }
        self.service.wait_until_it_answers()?;
        std::thread::sleep(CALM);
        Ok(moments)
    }

    fn kill_once(&mut self, completing: bool) -> Result<Option<Instant>> {
        for _ in 0..LOOKS_MAX {
            let Ok(pid) = self.service.pid(Part::Daemon) else {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            };
            // Asked once with the daemon alive, which answers for the attributes of the mount itself; they are kept.
            self.control.waiting(self.service)?;
            kill_process(pid, Signal::STOP)?;
            if self.control.waiting(self.service)? == 0 {
                kill_process(pid, Signal::CONT)?;
                std::thread::sleep(self.chance.pause(10));
                continue;
            }
            let said = self.service.log().matches(ASKED_AGAIN).count();
            let moment = Instant::now();
            kill_process(pid, Signal::KILL)?;
            until("another daemon takes its place", || Ok(self.service.pid(Part::Daemon).is_ok_and(|new| new != pid)))?;
            return Ok(self.was_in_the_act(said, moment).then(|| {
                *(if completing { &mut self.outcome.completing } else { &mut self.outcome.reading }) += 1;
                moment
            }));
        }
        self.outcome.missed += 1;
        Ok(None)
    }

    /// Whether the new daemon was asked for what the old one had in its hands.
    fn was_in_the_act(&mut self, said: usize, moment: Instant) -> bool {
        loop {
            if self.service.log().matches(ASKED_AGAIN).count() > said {
                return true;
            }
            if moment.elapsed() > AGAIN_MAX {
                self.outcome.missed += 1;
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether a layer is being put together.
    fn is_completing(&self) -> Result<bool> {
        Ok(!entries(&self.service.data_dir().join("images/incoming"))?.is_empty())
    }

    fn is_complete(&self) -> Result<bool> {
        Ok(entries(&self.service.data_dir().join("images/lazy"))?.is_empty())
    }

    fn clear(&self) -> Result<()> {
        self.service.sampan(["rm", "-f", "storm"]).finish()?;
        self.service.wait_until_gone("storm")?;
        self.remove_image()
    }

    fn remove_image(&self) -> Result<()> {
        until("the image is removed", || {
            let removed = self.service.sampan(["rmi", &self.image]).finish()?;
            let listed = self.service.sampan(["images", "-o", "json"]).ok()?;
            Ok(removed.code == 0 || !listed.contains(&self.image))
        })
    }
}
