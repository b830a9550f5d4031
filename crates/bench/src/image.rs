//! `cargo xtask bench image`: cold starts of real images behind real links, beside the lazy loaders that there are.
//!
//! - [`subjects`]: the images and their ready commands. [`cells`]: what can be measured. [`bounds`]: what is promised of it.
//! - [`site`]: registry and links. [`convert`]: images as the loaders want them; [`indexed`]: what other nodes of ours have published.
//! - [`measure`]: one cold start; [`download`]: none.
//! - [`reading`] and [`memory`]: what an image costs that is arriving, or has arrived, below an instance.
//!
//! Only what the chosen bounds compare is measured, in turns, round by round. A peer that is missing or fails keeps nobody else
//! from being measured: its bounds then have no verdict, and say why.

mod bounds;
mod cells;
mod convert;
mod download;
mod indexed;
mod measure;
mod memory;
mod reading;
mod site;
mod subjects;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use clap::builder::PossibleValuesParser;
use sampan_e2e::link::Shape;

use crate::interrupt;
use crate::peers::{ImagePeers, announce};
use crate::report::Figure;
use bounds::{Bound, Outcome};
use cells::{Cell, LINKS, Who};
use measure::{Median, Sample};
use site::{Pushed, Site};
use subjects::SUBJECTS;

/// What to measure of it all.
#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// Measure what these bounds compare (default: all bounds); comma-separated.
    #[arg(long, value_name = "BOUNDS", value_delimiter = ',', value_parser = group_names())]
    only: Vec<String>,
    /// Only these images; comma-separated.
    #[arg(long, value_name = "IMAGES", value_delimiter = ',', value_parser = image_names())]
    images: Vec<String>,
    /// Only behind these links, like none,20ms,5ms+200Mbit; comma-separated.
    #[arg(long, value_name = "LINKS", value_delimiter = ',')]
    links: Vec<Shape>,
    /// Only these engines; comma-separated.
    #[arg(long, value_name = "ENGINES", value_delimiter = ',', value_parser = engine_names())]
    engines: Vec<String>,
}

/// Groups of figures that are no cold starts, of the image [`LARGE`].
const READING: &str = "reading";
const MEMORY: &str = "memory";
const LARGE: &str = "python";

fn group_names() -> PossibleValuesParser {
    bounds::GROUPS.into_iter().chain([READING, MEMORY]).into()
}

fn image_names() -> PossibleValuesParser {
    SUBJECTS.map(|subject| subject.name).into()
}

fn engine_names() -> PossibleValuesParser {
    Who::ALL.map(Who::name).into()
}

impl Selection {
    fn wants(&self, cell: &Cell) -> bool {
        let chosen = |list: &[String], name: &str| list.is_empty() || list.iter().any(|known| known == name);
        let link = self.links.is_empty() || self.links.contains(&cell.link);
        chosen(&self.images, cell.image) && chosen(&self.engines, cell.who.name()) && link
    }

    fn wants_group(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    /// The same for a group that is measured with [`LARGE`].
    fn wants_of_large(&self, name: &str) -> bool {
        self.wants_group(name) && (self.images.is_empty() || self.images.iter().any(|image| image == LARGE))
    }

    /// The bounds that are asked for. One is left out when its own side was not chosen.
    fn bounds(&self, pushed: &BTreeMap<&str, Pushed>) -> Vec<Bound> {
        let size = |subject: &subjects::Subject| pushed.get(subject.name).map_or(0, Pushed::compressed_bytes);
        let mut bounds = bounds::all(size);
        bounds.retain(|bound| self.wants_group(bound.group));
        bounds
    }

    /// Links of ours, and whatever else was asked for.
    fn links(&self) -> Vec<Shape> {
        if self.links.is_empty() { LINKS.to_vec() } else { self.links.clone() }
    }
}

/// Measures what is chosen; the figures are first the verdicts, then every median.
pub(crate) fn run(
    selection: &Selection,
    work: &Path,
    sampan: PathBuf,
    runs: u32,
) -> Result<(Vec<Figure>, Vec<String>)> {
    let (peers, missing) = ImagePeers::find_or_install()?;
    let site = Site::open(work, &sampan, peers, &selection.links())?;
    // Which bounds there are depends on nothing but the images that they name.
    let named: Vec<Cell> = selection.bounds(&BTreeMap::new()).iter().flat_map(Bound::cells).collect();
    let mut pushed = BTreeMap::new();
    for subject in &SUBJECTS {
        interrupt::check()?;
        let is_large = subject.name == LARGE && [READING, MEMORY].iter().any(|group| selection.wants_of_large(group));
        if is_large || named.iter().any(|cell| cell.image == subject.name && selection.wants(cell)) {
            pushed.insert(subject.name, site.push(subject)?);
        }
    }
    let bounds = selection.bounds(&pushed);
    let measured = measure_all(&site, &wanted(&bounds, selection), &pushed, runs)?;
    let chosen =
        bounds.iter().filter(|bound| selection.wants(&bound.ours) && measured.contains_key(&bound.ours.name()));
    let mut figures: Vec<Figure> = chosen.map(|bound| bound.judge(&measured)).collect();
    if let Some(large) = pushed.get(LARGE) {
        if selection.wants_of_large(READING) {
            figures.extend(reading::measure(&site, large, runs).context("measure reading")?);
        }
        if selection.wants_of_large(MEMORY) {
            figures.extend(memory::measure(&site, selection, large).context("measure memory")?);
        }
    }
    print_medians(&measured)?;
    figures.extend(measured.iter().flat_map(|(name, outcome)| as_figures(name, outcome)));
    Ok((figures, missing))
}

/// The cells to measure, each once.
fn wanted(bounds: &[Bound], selection: &Selection) -> Vec<Cell> {
    let mut cells: Vec<Cell> = Vec::new();
    for cell in bounds.iter().flat_map(Bound::cells).filter(|cell| selection.wants(cell)) {
        if !cells.contains(&cell) {
            cells.push(cell);
        }
    }
    cells
}

/// Measures cells of one image, link and program in turns, another one beginning each round.
fn measure_all(
    site: &Site,
    cells: &[Cell],
    pushed: &BTreeMap<&str, Pushed>,
    runs: u32,
) -> Result<BTreeMap<String, Outcome>> {
    let mut measured = BTreeMap::new();
    let mut rest = cells.to_vec();
    while let Some(first) = rest.first().copied() {
        let (group, others): (Vec<Cell>, Vec<Cell>) = rest.into_iter().partition(|cell| cell.by(first.who) == first);
        rest = others;
        let pushed = pushed.get(first.image).context("an image that was not made")?;
        let mut series: Vec<Result<Vec<Sample>, String>> = Vec::new();
        for cell in &group {
            interrupt::check()?;
            series.push(kept(cell, measure::prepare(site, cell, pushed))?.map(|()| Vec::new()));
        }
        for round in 0..runs as usize {
            for turn in 0..group.len() {
                let nth = (round + turn) % group.len();
                let (Some(cell), Some(Ok(samples))) = (group.get(nth), series.get_mut(nth)) else { continue };
                interrupt::check()?;
                match kept(cell, measure::once(site, cell, pushed))? {
                    Ok(sample) => {
                        let seconds = sample.total().as_secs_f64();
                        let megabytes = sample.fetched.down_bytes as f64 / 1e6;
                        announce(&format!("round {}: {}: {seconds:.2} s, {megabytes:.1} MB", round + 1, cell.name()))?;
                        samples.push(sample);
                    }
                    Err(reason) => series[nth] = Err(reason),
                }
            }
        }
        for (cell, samples) in group.iter().zip(series) {
            measured.insert(cell.name(), samples.map(|samples| Median::of(&samples)));
        }
    }
    Ok(measured)
}

/// An error as the reason why there is no figure, unless it is the user's wish to end.
fn kept<T>(cell: &Cell, outcome: Result<T>) -> Result<Result<T, String>> {
    match outcome {
        Ok(value) => Ok(Ok(value)),
        Err(error) if interrupt::is_cause_of(&error) => Err(error),
        Err(error) => {
            announce(&format!("NOT MEASURED: {}: {error:#}", cell.name()))?;
            Ok(Err(format!("{error:#}").lines().next().unwrap_or_default().to_owned()))
        }
    }
}

/// The medians as figures without an opponent.
fn as_figures(name: &str, outcome: &Outcome) -> Vec<Figure> {
    let Ok(median) = outcome else { return Vec::new() };
    let figure = |(what, value, unit): (&str, f64, &'static str)| Figure {
        name: format!("median: {name}/{what}"),
        ours: value,
        peer: None,
        peer_name: String::new(),
        unit,
        runs: median.runs,
        ratio: None,
        bound: None,
        holds: None,
        note: None,
    };
    let account = median.account.iter().map(|(what, value)| {
        let unit = if what == "waited" {
            "s"
        } else if what == "waits" {
            ""
        } else {
            "MB"
        };
        figure((&format!("account/{what}"), *value, unit))
    });
    [
        ("total", median.total, "s"),
        ("pull", median.pull, "s"),
        ("create", median.create, "s"),
        ("start", median.start, "s"),
        ("bytes-pulled", median.megabytes_pulled, "MB"),
        ("bytes", median.megabytes, "MB"),
        ("requests", median.requests, ""),
        ("connections", median.connections, ""),
    ]
    .into_iter()
    .map(figure)
    .chain(account)
    .collect()
}

/// One line for everything that was measured.
fn print_medians(measured: &BTreeMap<String, Outcome>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "\n{:<44} {:>7} {:>7} {:>7} {:>7} {:>9} {:>9} {:>8} {:>4}",
        "image/link/engine", "pull s", "create", "start", "total", "MB pulled", "MB ready", "requests", "runs"
    )?;
    for (name, outcome) in measured {
        match outcome {
            Ok(median) => writeln!(
                out,
                "{name:<44} {:>7.2} {:>7.2} {:>7.2} {:>7.2} {:>9.2} {:>9.2} {:>8.0} {:>4}",
                median.pull,
                median.create,
                median.start,
                median.total,
                median.megabytes_pulled,
                median.megabytes,
                median.requests,
                median.runs
            )?,
            Err(reason) => writeln!(out, "{name:<44} not measured: {reason}")?,
        }
    }
    let told = measured.iter().filter_map(|(name, outcome)| Some((name, outcome.as_ref().ok()?.describe_account()?)));
    for (nth, (name, account)) in told.enumerate() {
        if nth == 0 {
            writeln!(
                out,
                "\nMB by why, readers' waits and seconds, by the engine's own account when the image was ready"
            )?;
        }
        writeln!(out, "{name:<44} {account}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(words: &[&str]) -> Selection {
        use clap::Parser as _;
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            selection: Selection,
        }
        Line::try_parse_from(["image"].iter().chain(words)).unwrap().selection
    }

    #[test]
    fn only_what_is_compared_is_measured() {
        let selection = selection(&["--only", "size", "--links", "none,5ms+200Mbit", "--engines", "sampan-index"]);
        let cells = wanted(&selection.bounds(&BTreeMap::new()), &selection);
        let names: Vec<String> = cells.iter().map(Cell::name).collect();
        let expected = [
            "science-padded/none/sampan-index",
            "science/none/sampan-index",
            "science-padded/5ms+200Mbit/sampan-index",
            "science/5ms+200Mbit/sampan-index",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn nothing_is_measured_twice() {
        let selection = selection(&[]);
        let cells = wanted(&selection.bounds(&BTreeMap::new()), &selection);
        let mut names: Vec<String> = cells.iter().map(Cell::name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), cells.len());
    }
}
