//! Memory: of the daemon alone while eight images load at once; and of the whole machine for each byte of an image that is read,
//! page cache included, next to the peers'.
//!
//! The eight images are made for it: each has a layer of its own, of many small and some large files.

use std::cell::RefCell;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sampan_e2e::fixtures::busybox;
use sampan_e2e::fixtures::image::{Compression, Image, Layer};
use sampan_e2e::fixtures::tar::TarWriter;
use sampan_e2e::link::{Link, Shape};

use super::cells::{Cell, Who};
use super::site::{Pushed, Site};
use super::{Selection, convert, indexed, kept, measure};
use crate::command::{must, time, time_until};
use crate::engines::Engine;
use crate::engines::sampan::Sampan;
use crate::interrupt;
use crate::peers::announce;
use crate::report::Figure;

const IMAGES: usize = 8;
const FILES: usize = 4_000;
/// Every so many files a large one, of [`LARGE_BYTES`]; the others have up to [`SMALL_BYTES_MAX`].
const LARGE_EVERY: usize = 100;
const LARGE_BYTES: usize = 1 << 20;
const SMALL_BYTES_MAX: usize = 8 << 10;
/// What the eight load over.
const LINK: Shape = Shape::new(5, Some(200));
/// How long they may take.
const DEADLINE: Duration = Duration::from_secs(300);
/// How often the daemon's memory is looked at.
const TICK: Duration = Duration::from_millis(20);
/// What the daemon may have, in MiB.
const BOUND: f64 = 64.0;

/// Reads all files of one of the eight.
const READ_DATA: [&str; 3] = ["sh", "-c", "find /data -type f -exec cat {} + >/dev/null"];
/// Reads most of an image, says how much that was, and stays for as long as it takes to look.
const READ_ALL: [&str; 3] = ["sh", "-c", "find /usr -xdev -type f -exec cat {} + | wc -c; echo all is read; sleep 2"];
const ALL_IS_READ: &str = "all is read";

const OURS: [Who; 2] = [Who::Index, Who::Plain];
const PEERS: [Who; 6] = [Who::Containerd, Who::ContainerdErofs, Who::Stargz, Who::Soci, Who::Nydus, Who::NydusZran];

pub(super) fn measure(site: &Site, selection: &Selection, pushed: &Pushed) -> Result<Vec<Figure>> {
    let mut figures = while_loading(site, pushed)?;
    figures.extend(for_each_byte(site, selection, pushed)?);
    Ok(figures)
}

/// The daemon's memory while eight instances of eight images read them as they arrive, and while eight images are pulled.
fn while_loading(site: &Site, pushed: &Pushed) -> Result<Vec<Figure>> {
    announce("memory: making eight images and publishing their indexes")?;
    let mut names = Vec::new();
    for (number, image) in images()?.iter().enumerate() {
        interrupt::check()?;
        let name = format!("memory-{number}-{}:v1", site.run_id());
        site.registry.push(image, &name)?;
        site.is_temporary(&name, pushed);
        names.push(name);
    }
    let published: Vec<String> = names.iter().map(|name| site.registry.reference(name)).collect();
    indexed::publish_indexes(site, &published)?;
    let link = Link::to(site.registry.address(), LINK)?;
    let references: Vec<String> = names.iter().map(|name| format!("{}/{name}", link.address())).collect();
    let arriving = of_daemon(site, &link, |sampan| read_while_they_arrive(sampan, &references))?;
    let pulled = of_daemon(site, &link, |sampan| all_at_once(&references, |_, name| must(&mut sampan.pull(name))))?;
    let figure = |name: &str, (most, runs): (f64, usize), bound| {
        Figure::at_most(format!("memory: daemon, {name}"), "MiB", (most, runs), bound)
    };
    Ok(vec![
        figure("eight images arriving and read", (arriving.most, arriving.looks), Some(BOUND)),
        figure("eight images pulled", (pulled.most, pulled.looks), Some(BOUND)),
        figure("before", (arriving.before, 1), None),
        figure("eight arriving, with what it shares", (arriving.resident, 1), None),
        figure("eight pulled, with what it shares", (pulled.resident, 1), None),
    ])
}

fn read_while_they_arrive(sampan: &Sampan, references: &[String]) -> Result<()> {
    all_at_once(references, |number, name| must(&mut sampan.run(name, &format!("memory-{number}"), &READ_DATA)))?;
    let begin = Instant::now();
    for reference in references {
        while !sampan.has_whole(reference)? {
            interrupt::check()?;
            ensure!(begin.elapsed() < DEADLINE, "{reference} does not arrive");
            thread::sleep(Duration::from_millis(500));
        }
    }
    Ok(())
}

fn all_at_once(references: &[String], one: impl Fn(usize, &str) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let one = &one;
        let started = references.iter().enumerate();
        let threads: Vec<_> = started.map(|(number, name)| scope.spawn(move || one(number, name))).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// What a daemon had, in MiB: proportional sets, which count what is shared with others by their number; and the kernel's own note of
/// the most that was resident, what is shared in full.
struct Memory {
    before: f64,
    most: f64,
    looks: usize,
    resident: f64,
}

/// Starts the service, has it do something, and looks at its daemon's memory meanwhile.
fn of_daemon(site: &Site, link: &Link, work: impl FnOnce(&Sampan) -> Result<()>) -> Result<Memory> {
    let mut sampan = site.sampan("sampan", &link.address());
    sampan.start()?;
    let process = sampan.daemon()?;
    let look = || in_mebibytes(&format!("/proc/{process}/smaps_rollup"), "Pss:");
    let before = look()?;
    let is_done = AtomicBool::new(false);
    let (worked, looked) = thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let (mut most, mut looks) = (before, 0);
            while !is_done.load(Ordering::Relaxed) {
                most = look()?.max(most);
                looks += 1;
                thread::sleep(TICK);
            }
            anyhow::Ok((most, looks))
        });
        let worked = work(&sampan);
        is_done.store(true, Ordering::Relaxed);
        (worked, looking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    worked?;
    let (most, looks) = looked.context("the daemon is gone")?;
    let resident = in_mebibytes(&format!("/proc/{process}/status"), "VmHWM:")?;
    sampan.stop()?;
    Ok(Memory { before, most, looks, resident })
}

/// A field of a file of procfs, which are all in KiB.
fn in_mebibytes(path: &str, name: &str) -> Result<f64> {
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    field(&text, name).map(|kib| kib / 1024.0).with_context(|| format!("{path} does not tell {name}"))
}

fn field(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What memory the machine has less, in bytes, for each byte that an instance has read, at the moment when it has read all.
fn for_each_byte(site: &Site, selection: &Selection, pushed: &Pushed) -> Result<Vec<Figure>> {
    let mut measured = Vec::new();
    for who in OURS.into_iter().chain(PEERS) {
        let cell = Cell { image: pushed.subject.name, link: Shape::NONE, other: false, who };
        if !selection.engines.is_empty() && !selection.engines.iter().any(|name| name == who.name()) {
            continue;
        }
        interrupt::check()?;
        announce(&format!("memory: reading with {}", who.name()))?;
        if let Ok(bytes) = kept(&cell, of_machine(site, &cell, pushed))? {
            measured.push((who, bytes));
        }
    }
    let (ours, peers): (Vec<_>, Vec<_>) = measured.into_iter().partition(|(who, _)| OURS.contains(who));
    let figure = |(our, bytes): &(Who, f64), peer: (&str, Option<f64>)| {
        Figure::quantities(format!("memory: machine's for a byte read/{}", our.name()), "B", (*bytes, 1), peer, None)
    };
    let compared = ours.iter().flat_map(|our| {
        let beside = peers.iter().map(|(who, bytes)| (who.name(), Some(*bytes)));
        let beside: Vec<_> = if peers.is_empty() { vec![("-", None)] } else { beside.collect() };
        beside.into_iter().map(|peer| figure(our, peer)).collect::<Vec<_>>()
    });
    Ok(compared.collect())
}

fn of_machine(site: &Site, cell: &Cell, pushed: &Pushed) -> Result<f64> {
    measure::prepare(site, cell, pushed)?;
    let link = Link::to(site.registry.address(), cell.link)?;
    let name = convert::name(site, cell.who, pushed);
    let mut engine = measure::engine(site, cell.who, &link.address())?;
    engine.start()?;
    site.cool(name.split(':').next().unwrap_or(&name), &engine.programs())?;
    let before = used_bytes()?;
    let mut phases = engine.phases(&format!("{}/{name}", link.address()), "memory", &READ_ALL);
    let (_, mut last) = phases.pop().context("an engine without phases")?;
    for (_, mut command) in phases {
        time(&mut command)?;
    }
    let (said, mut after) = (RefCell::new(String::new()), Ok(f64::NAN));
    let enough = |text: &str| {
        text.clone_into(&mut said.borrow_mut());
        text.contains(ALL_IS_READ)
    };
    time_until(&mut last, enough, || after = used_bytes())?;
    engine.stop()?;
    let said = said.into_inner();
    let read = said.lines().find_map(|line| line.trim().parse::<f64>().ok());
    Ok((after? - before) / read.with_context(|| format!("nobody says how much was read: {said}"))?)
}

/// Whatever is not free: what processes and the kernel have, and what is cached.
fn used_bytes() -> Result<f64> {
    let path = "/proc/meminfo";
    Ok((in_mebibytes(path, "MemTotal:")? - in_mebibytes(path, "MemFree:")?) * 1024.0 * 1024.0)
}

/// Made two at a time, which is what most machines of this kind have cores for.
fn images() -> Result<Vec<Image>> {
    let mut images = Vec::new();
    for pair in (0..IMAGES).collect::<Vec<_>>().chunks(2) {
        let made: Result<Vec<Image>> = thread::scope(|scope| {
            let threads: Vec<_> = pair.iter().map(|number| scope.spawn(move || image(*number))).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, Result<Image>>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect()
        });
        images.extend(made?);
    }
    Ok(images)
}

fn image(number: usize) -> Result<Image> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ number as u64);
    let mut tar = TarWriter::in_memory().directory("data", 0o755);
    for file in 0..FILES {
        let small = (random.draw() as usize) % SMALL_BYTES_MAX;
        let bytes = if file % LARGE_EVERY == 0 { LARGE_BYTES } else { small };
        tar = tar.file(&format!("data/{file}"), 0o644, random.text(bytes));
    }
    Ok(busybox::builder(Compression::Gzip)?.layer(Layer::new(&tar.into_bytes(), Compression::Gzip)?).build())
}

/// xorshift64 (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Bytes that deflate to about three fifths.
    fn text(&mut self, bytes: usize) -> Vec<u8> {
        let mut text = Vec::with_capacity(bytes + 8);
        while text.len() < bytes {
            text.extend(self.draw().to_le_bytes().map(|byte| b'@' + byte % 24));
        }
        text.truncate(bytes);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_procfs_are_found_by_their_names() {
        let text = "Rss:  2048 kB\nPss:     1024 kB\nPss_Dirty: 4 kB\n";
        assert_eq!(field(text, "Pss:"), Some(1024.0));
        assert_eq!(field(text, "Swap:"), None);
        assert!(in_mebibytes("/proc/self/smaps_rollup", "Pss:").unwrap() > 0.1);
    }

    #[test]
    fn images_differ_and_are_large_enough_to_be_used_before_they_are_here() {
        let [one, two] = [1, 2].map(|seed| Random(seed).text(100_000));
        assert_ne!(one, two);
        let packed = Layer::new(&one, Compression::Gzip).unwrap().blob.size;
        let data = (FILES / LARGE_EVERY * LARGE_BYTES) as u64;
        assert!(data * packed / 100_000 > 16 << 20, "{packed} of 100,000 bytes");
    }
}
