//! One cold start: everything is new, nothing is cached on this side, and the clock runs until the image says that it is ready.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sampan_e2e::link::Counts;

use super::bounds::Quantity;
use super::cells::{Cell, Who};
use super::convert;
use super::download;
use super::indexed;
use super::site::{Pushed, Site};
use super::subjects::Program;
use crate::command::{time, time_until};
use crate::engines::containerd::{Containerd, Generation};
use crate::engines::lazy::{Lazy, Loader};
use crate::engines::{Engine, Phase};

/// What one cold start took.
#[derive(Debug, Clone, Default)]
pub(super) struct Sample {
    pub(super) pull: Duration,
    pub(super) create: Duration,
    pub(super) start: Duration,
    /// What came over the link while pulling, and until the image was ready.
    pub(super) pulled: Counts,
    pub(super) fetched: Counts,
    /// The engine's own account of the latter.
    pub(super) account: BTreeMap<String, f64>,
}

impl Sample {
    pub(super) fn total(&self) -> Duration {
        self.pull + self.create + self.start
    }
}

/// The medians of several, each of its own series; seconds and megabytes.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Median {
    pub(crate) pull: f64,
    pub(crate) create: f64,
    pub(crate) start: f64,
    pub(crate) total: f64,
    pub(crate) megabytes_pulled: f64,
    pub(crate) megabytes: f64,
    pub(crate) requests: f64,
    pub(crate) connections: f64,
    /// What the engine says of it: megabytes by why, and readers' waits and seconds.
    pub(crate) account: BTreeMap<String, f64>,
    pub(crate) runs: usize,
}

/// What of an account is not bytes.
const NO_BYTES: [&str; 2] = ["waits", "waited"];

impl Median {
    /// Of at least one sample.
    pub(super) fn of(samples: &[Sample]) -> Self {
        let middle = |value: &dyn Fn(&Sample) -> f64| {
            let mut values: Vec<f64> = samples.iter().map(value).collect();
            values.sort_unstable_by(f64::total_cmp);
            let upper = values.get(values.len() / 2).copied().unwrap_or(f64::NAN);
            let lower = values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN);
            f64::midpoint(lower, upper)
        };
        Self {
            pull: middle(&|sample| sample.pull.as_secs_f64()),
            create: middle(&|sample| sample.create.as_secs_f64()),
            start: middle(&|sample| sample.start.as_secs_f64()),
            total: middle(&|sample| sample.total().as_secs_f64()),
            megabytes_pulled: middle(&|sample| sample.pulled.down_bytes as f64 / 1e6),
            megabytes: middle(&|sample| sample.fetched.down_bytes as f64 / 1e6),
            requests: middle(&|sample| sample.fetched.requests as f64),
            connections: middle(&|sample| sample.fetched.connections as f64),
            account: account(samples, &middle),
            runs: samples.len(),
        }
    }

    /// What one line tells of the account; nothing of an engine that does not tell.
    pub(super) fn describe_account(&self) -> Option<String> {
        let told = self.account.iter().filter(|(_, value)| **value > 0.0);
        let told: Vec<String> = told.map(|(what, value)| format!("{what} {value:.2}")).collect();
        (!told.is_empty()).then(|| format!("{}, connections {:.0}", told.join(", "), self.connections))
    }

    pub(super) fn value(&self, quantity: Quantity) -> f64 {
        match quantity {
            Quantity::Seconds => self.total,
            Quantity::Megabytes => self.megabytes,
        }
    }
}

fn account(samples: &[Sample], middle: &impl Fn(&dyn Fn(&Sample) -> f64) -> f64) -> BTreeMap<String, f64> {
    let told = samples.first().map(|sample| sample.account.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    let value = |what: String| {
        let unit = if NO_BYTES.contains(&what.as_str()) { 1.0 } else { 1e6 };
        let median = middle(&|sample| sample.account.get(&what).copied().unwrap_or_default() / unit);
        (what, median)
    };
    told.into_iter().map(value).collect()
}

/// Does all that `cell` needs once: conversions, indexes. Errors are reasons why it cannot be measured.
pub(super) fn prepare(site: &Site, cell: &Cell, pushed: &Pushed) -> Result<()> {
    match cell.who {
        Who::Stargz | Who::StargzOptimized | Who::Soci | Who::Nydus | Who::NydusZran => {
            convert::convert(site, cell.who, pushed)
        }
        Who::ContainerdErofs if !site.peers.erofs => bail!("no mkfs.erofs knows --tar"),
        Who::Index | Who::Trace | Who::Pack => indexed::publish(site, cell.who, pushed),
        Who::Containerd | Who::ContainerdErofs | Who::Download | Who::Plain => Ok(()),
    }
}

/// One cold start.
pub(super) fn once(site: &Site, cell: &Cell, pushed: &Pushed) -> Result<Sample> {
    let link = site.link(cell.link)?;
    let program =
        if cell.other { pushed.subject.other.context("the image has no other program")? } else { pushed.subject.ready };
    let name = convert::name(site, cell.who, pushed);
    let repository = name.split(':').next().unwrap_or(&name);
    if cell.who == Who::Download {
        site.cool(repository, &[])?;
        let before = link.counts();
        let pull = download::all(&link.address(), repository, &pushed.image)?;
        let counts = link.counts() - before;
        return Ok(Sample { pull, pulled: counts, fetched: counts, ..Sample::default() });
    }
    let mut engine = engine(site, cell.who, &link.address())?;
    engine.start()?;
    site.cool(repository, &engine.programs())?;
    let sample = start_cold(engine.as_ref(), &format!("{}/{name}", link.address()), program, || link.counts())?;
    engine.stop()?;
    Ok(sample)
}

pub(super) fn engine(site: &Site, who: Who, registry: &str) -> Result<Box<dyn Engine>> {
    let containerd = || site.peers.containerd2.as_deref().context("there is no containerd 2");
    let plain = |snapshotter| -> Result<Containerd> {
        Ok(Containerd::new(Generation::Two, containerd()?, snapshotter, site.work()))
    };
    let lazy = |loader| Lazy::new(who.name(), loader, containerd()?, site.work());
    let engine: Box<dyn Engine> = match who {
        Who::Containerd => Box::new(plain("overlayfs")?),
        Who::ContainerdErofs => Box::new(plain("erofs")?),
        Who::Stargz | Who::StargzOptimized => Box::new(lazy(Loader::Stargz)?),
        Who::Soci => Box::new(lazy(Loader::Soci)?),
        Who::Nydus | Who::NydusZran => Box::new(lazy(Loader::Nydus)?),
        Who::Plain | Who::Index | Who::Trace | Who::Pack => Box::new(site.sampan("sampan", registry)),
        Who::Download => bail!("a download is no engine"),
    };
    Ok(engine)
}

/// The phases of one start, timed; `counts` tells what has come so far.
fn start_cold(engine: &dyn Engine, reference: &str, program: Program, counts: impl Fn() -> Counts) -> Result<Sample> {
    // What calling one more command costs; the first call reads the program.
    let spare = match engine.nothing() {
        Some(mut nothing) => {
            time(&mut nothing)?;
            time(&mut nothing)?
        }
        None => Duration::ZERO,
    };
    let before = counts();
    let mut sample = Sample::default();
    for (phase, mut command) in engine.phases(reference, "cold", program.words) {
        match phase {
            Phase::Pull => {
                sample.pull = time(&mut command)?;
                sample.pulled = counts() - before;
            }
            Phase::Create => sample.create = time(&mut command)?.saturating_sub(spare),
            Phase::Start => {
                let mut fetched = before;
                let taken = time_until(
                    &mut command,
                    |said| said.contains(program.sign),
                    || {
                        fetched = counts();
                        sample.account = engine.account().into_iter().collect();
                    },
                )?;
                sample.start = taken;
                sample.fetched = fetched - before;
            }
        }
    }
    if let Some((pull, create)) = engine.parts("cold") {
        sample.pull = pull;
        sample.create = create;
        sample.start = sample.start.saturating_sub(pull + create);
    }
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_each_series() {
        let sample = |pull: u64, start: u64| Sample {
            pull: Duration::from_secs(pull),
            start: Duration::from_secs(start),
            ..Sample::default()
        };
        let median = Median::of(&[sample(1, 9), sample(2, 2), sample(3, 1)]);
        assert_eq!((median.pull, median.start, median.total, median.runs), (2.0, 2.0, 4.0, 3));
        assert_eq!(Median::of(&[sample(1, 0), sample(2, 0)]).pull, 1.5);
    }

    #[test]
    fn bytes_are_told_in_megabytes_and_what_is_nothing_is_left_out() {
        let sample = |pack: f64, waits: f64| Sample {
            account: [("pack", pack), ("waits", waits), ("demand", 0.0)].map(|(what, n)| (what.to_owned(), n)).into(),
            ..Sample::default()
        };
        let median = Median::of(&[sample(2e6, 3.0), sample(4e6, 5.0)]);
        assert_eq!(median.describe_account().unwrap(), "pack 3.00, waits 4.00, connections 0");
        assert_eq!(Median::of(&[Sample::default()]).describe_account(), None);
    }
}
