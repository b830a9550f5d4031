//! Pods that were there before, and that no kill may touch: the same process goes on, no line is missing, and it ends as it should.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::api::Api;
use super::clients::{block_on, lines_of};
use super::cri::Cri;
use super::flights::Flights;
use super::script::{LEAVE, Script, text_of};
use crate::harness::wait::until;
use crate::service::Service;

/// How many are made, or asked, at one time.
const AT_ONCE: usize = 8;
/// How long a stop may take before it is a kill, in seconds.
const STOP_SECONDS: i64 = 20;

/// Where a container's first process is: its number, and when it began.
type Place = (u32, u64);

/// One of them.
#[derive(Debug)]
struct Witness {
    name: String,
    by: By,
    script: Script,
    leaves: bool,
}

#[derive(Debug)]
enum By {
    Api,
    Cri { container: String },
}

/// All of them.
#[derive(Debug)]
pub(super) struct Witnesses<'service> {
    service: &'service Service,
    flights: Flights,
    shared: PathBuf,
    all: Vec<Witness>,
    places: BTreeMap<String, Place>,
}

impl<'service> Witnesses<'service> {
    /// Starts so many, half by each interface, of which every third leaves when it is told to, the others on TERM.
    pub(super) fn start(service: &'service Service, count: usize, pause: Duration) -> Result<Self> {
        let flights = Flights::default();
        let shared = service.work().join("shared");
        fs::create_dir_all(&shared)?;
        let next = AtomicUsize::new(0);
        let all = Mutex::new(Vec::new());
        at_once(count, || {
            let (mut api, mut cri) = (Api::new(service, &flights)?, Cri::new(service, &flights)?);
            block_on(async {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return Ok(());
                    }
                    let witness = make(number, pause, &shared, &mut api, &mut cri).await?;
                    all.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(witness);
                }
            })
        })?;
        let all = all.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut witnesses = Self { service, flights, shared, all, places: BTreeMap::new() };
        witnesses.places = witnesses.look()?;
        ensure!(witnesses.places.len() == count, "of {count} only {:?} run", witnesses.places);
        Ok(witnesses)
    }

    /// Every container's first process, found by what it was started with.
    fn look(&self) -> Result<BTreeMap<String, Place>> {
        let mut places = BTreeMap::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
            let (line, groups) = (read("cmdline"), read("cgroup"));
            if !line.starts_with("/bin/sh\0") || !groups.contains(&self.service.instance) {
                continue;
            }
            let Some(name) = line.split_once("/shared/witness-").map(|(_, rest)| rest) else { continue };
            let number = name.split(|letter: char| !letter.is_ascii_digit()).next().unwrap_or_default();
            // Children that have not become their program yet look the same, but for their numbers inside.
            let status = read("status");
            let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            if inside.and_then(|numbers| numbers.split_whitespace().last()) != Some("1") {
                continue;
            }
            let pid = entry.file_name().to_string_lossy().parse().context("a process without a number")?;
            let stat = read("stat");
            let Some((_, rest)) = stat.rsplit_once(')') else { continue };
            let began = rest.split_whitespace().nth(19).context("a short stat")?.parse()?;
            places.insert(format!("witness-{number}"), (pid, began));
        }
        Ok(places)
    }

    /// Insists that those that are not to leave are the very processes that they were.
    pub(super) fn are_untouched(&self) -> Result<()> {
        let now = self.look()?;
        for witness in self.all.iter().filter(|witness| !witness.leaves) {
            let (before, now) = (self.places.get(&witness.name), now.get(&witness.name));
            ensure!(before == now, "{} was {before:?} and is {now:?}", witness.name);
        }
        Ok(())
    }

    /// Has those end that may, and waits until they have.
    pub(super) fn leave(&self) -> Result<usize> {
        fs::write(self.shared.join(LEAVE), "")?;
        let leaving: Vec<&Witness> = self.all.iter().filter(|witness| witness.leaves).collect();
        until("those that may leave have ended", || {
            let now = self.look()?;
            Ok(leaving.iter().all(|witness| !now.contains_key(&witness.name)))
        })?;
        Ok(leaving.len())
    }

    /// Waits until the service says of every one of them what is so.
    pub(super) fn are_known(&self) -> Result<()> {
        self.each(async |witness, api, cri| match (&witness.by, witness.leaves) {
            (By::Api, true) => api.ended(&witness.name, witness.script.code).await,
            (By::Api, false) => api.reaches(&witness.name, &["Running"]).await.map(drop),
            (By::Cri { container }, true) => {
                let status = cri.ended(container).await?;
                ensure!(status.exit_code == witness.script.code, "{}: {status:?}", witness.name);
                Ok(())
            }
            (By::Cri { container }, false) => {
                let status = cri.status(container).await?;
                ensure!(status.finished_at == 0, "{} runs, but is said to have ended: {status:?}", witness.name);
                Ok(())
            }
        })
    }

    /// Ends all of them in order and compares exit codes and every line; gives how many lines there were.
    pub(super) fn finish(self) -> Result<u64> {
        self.are_untouched()?;
        let lines = Mutex::new(0);
        self.each(async |witness, api, cri| {
            let log = match &witness.by {
                By::Api => {
                    let name = witness.name.clone();
                    let service = self.service;
                    let seconds = STOP_SECONDS.to_string();
                    service.sampan(["stop", "-t", &seconds, &name]).ok()?;
                    api.ended(&name, witness.script.code).await?;
                    api.logs(&name).await?
                }
                By::Cri { container } => {
                    cri.stop(container, STOP_SECONDS).await?;
                    let status = cri.ended(container).await?;
                    ensure!(status.exit_code == witness.script.code, "{}: {status:?}", witness.name);
                    text_of(status.log_path.as_ref())?
                }
            };
            let counted = lines_of(&log, &witness.name)?;
            let wrote: u64 = fs::read_to_string(self.shared.join(&witness.name))?.trim().parse()?;
            ensure!(counted == wrote, "{} wrote {wrote} lines, {counted} are in its log", witness.name);
            *lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += counted;
            Ok(())
        })?;
        Ok(lines.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Does something with every one, several at a time.
    fn each(&self, act: impl AsyncFn(&Witness, &mut Api, &mut Cri) -> Result<()> + Sync) -> Result<()> {
        let next = AtomicUsize::new(0);
        at_once(self.all.len(), || {
            let (mut api, mut cri) = (Api::new(self.service, &self.flights)?, Cri::new(self.service, &self.flights)?);
            block_on(async {
                while let Some(witness) = self.all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    act(witness, &mut api, &mut cri).await.with_context(|| format!("of {}", witness.name))?;
                }
                Ok(())
            })
        })
    }
}

async fn make(number: usize, pause: Duration, shared: &Path, api: &mut Api, cri: &mut Cri) -> Result<Witness> {
    let (name, leaves) = (format!("witness-{number}"), number % 3 == 2);
    let code = i32::try_from(number % 120)? + 1;
    let script = Script::witness(&name, code, pause, leaves);
    let by = if number.is_multiple_of(2) {
        api.create(&name, &script, Some(shared)).await?;
        api.reaches(&name, &["Running"]).await?;
        By::Api
    } else {
        let config = cri.config(&name);
        let pod = cri.run_pod(&config).await?;
        let container = cri.create(&pod, &config, &script, Some(shared)).await?;
        cri.start(&container).await?;
        By::Cri { container }
    };
    Ok(Witness { name, by, script, leaves })
}

/// The same on several threads; the first failure of them all.
fn at_once(count: usize, work: impl Fn() -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count.min(AT_ONCE)).map(|_| scope.spawn(&work)).collect();
        let ends = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a panic"))));
        ends.collect::<Vec<_>>().into_iter().collect()
    })
}
