//! Reading an image in an instance that was started before the image was here, beside a copy of it on ext4 below overlayfs: first
//! what is here of it while the rest arrives, then, in the same instance, all of it.
//!
//! The reader, the copy and the turns are those of [`crate::figures::read`], which reads instances that were started later.

use std::time::Duration;

use anyhow::{Result, ensure};
use sampan_e2e::link::{Link, Shape};

use super::cells::{Cell, Who};
use super::site::{Pushed, Site};
use super::{convert, measure};
use crate::command::must;
use crate::engines::Engine;
use crate::figures::read::{BOUND, Copied, WAYS, Way, compare, instance_root, read};
use crate::peers::announce;
use crate::report::Figure;

/// So slow that the rest is still arriving when what is here has been read often enough.
const LINK: Shape = Shape::new(20, Some(16));
/// What is read while the rest arrives: some 1,900 files, small and large.
const PART: &str = "usr/lib/python3/dist-packages/scipy";
/// How what is here is read.
const ARRIVING_WAYS: [Way; 2] = [("cold", "read", true, 1), ("mmap", "mmap", true, 1)];
/// What it may take beside ext4.
const ARRIVING_BOUND: f64 = 1.5;
/// After this time what an instance reads is no longer its start, for which the engine reads nothing ahead.
const START: Duration = Duration::from_secs(21);

pub(super) fn measure(site: &Site, pushed: &Pushed, runs: u32) -> Result<Vec<Figure>> {
    let who = Who::Index;
    measure::prepare(site, &Cell { image: pushed.subject.name, link: LINK, other: false, who }, pushed)?;
    let link = Link::to(site.registry.address(), LINK)?;
    let reference = format!("{}/{}", link.address(), convert::name(site, who, pushed));
    let mut sampan = site.sampan("sampan", &link.address());
    sampan.start()?;
    let root = instance_root(&sampan, &reference)?;
    let part = root.join(PART);
    read("read", &part)?;
    let copy = Copied::of(&part, &site.work().join("ext4-part"))?;
    announce("reading: waiting for the end of what counts as a start")?;
    std::thread::sleep(START);
    let mut figures = compare("reading: arriving/", [&part, &copy.root], &ARRIVING_WAYS, runs, ARRIVING_BOUND)?;
    drop(copy);
    ensure!(!sampan.has_whole(&reference)?, "the rest of the image came while a part of it was read: fewer --runs");
    announce("reading: waiting for the rest of the image")?;
    must(&mut sampan.pull(&reference))?;
    ensure!(sampan.has_whole(&reference)?, "an image that was pulled is not here");
    let copy = Copied::of(&root, &site.work().join("ext4"))?;
    figures.extend(compare("reading: complete/", [&root, &copy.root], &WAYS, runs, BOUND)?);
    drop(copy);
    sampan.stop()?;
    Ok(figures)
}
