//! What another node has published beside an image before ours starts it: an index; a trace of a start too; a start pack too.
//!
//! ```text
//!  node A, empty: pull, index ──push-index──▶ IMAGE-index
//!  node B, empty: run the ready command lazily from IMAGE-index
//!                 ├─ push-index ──▶ IMAGE-trace
//!                 └─ pack, push-index ──▶ IMAGE-pack
//! ```
//!
//! All three are repositories with the same image, made anew for each run of the benchmark and removed after it: what one binary
//! publishes need not be what another reads. The nodes, the measured one included, share a fleet's key.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::cells::Who;
use super::site::{Pushed, Site};
use crate::command::{must, time_until};
use crate::engines::Engine;
use crate::peers::announce;

/// Repository and tag of the image with what `who` is to find beside it.
pub(super) fn name(site: &Site, who: Who, pushed: &Pushed) -> String {
    format!("{}-{}-{}:v1", pushed.subject.name, who.name(), site.run_id())
}

/// Publishes what `who` is to find, unless this run has done so.
pub(super) fn publish(site: &Site, who: Who, pushed: &Pushed) -> Result<()> {
    let has_command = Command::new(site.program()).args(["image", "push-index", "--help"]).output()?.status.success();
    ensure!(has_command, "this sampan publishes no indexes");
    if site.registry.manifest_digest(&name(site, Who::Index, pushed)).is_none() {
        announce(&format!("publishing the index of {}", pushed.subject.name))?;
        publish_index(site, pushed).context("publish the index")?;
    }
    if who != Who::Index && site.registry.manifest_digest(&name(site, who, pushed)).is_none() {
        announce(&format!("publishing trace and pack of {}", pushed.subject.name))?;
        publish_start(site, pushed).context("publish trace and pack")?;
    }
    Ok(())
}

fn publish_index(site: &Site, pushed: &Pushed) -> Result<()> {
    let reference = push(site, Who::Index, pushed)?;
    publish_indexes(site, &[reference])
}

/// Makes the indexes of images in the registry and publishes them beside these.
pub(super) fn publish_indexes(site: &Site, references: &[String]) -> Result<()> {
    let mut node = site.sampan("index-builder", site.registry.address());
    node.start()?;
    if !site.fleet_key().is_file() {
        must(node.client().args(["image", "keys", "generate", "--fleet"]))?;
        fs::copy(node.fleet_key(), site.fleet_key()).context("keep the fleet's key")?;
    }
    for reference in references {
        must(node.client().args(["image", "index", reference]))?;
        must(node.client().args(["image", "push-index", reference]))?;
    }
    node.stop()
}

fn publish_start(site: &Site, pushed: &Pushed) -> Result<()> {
    let program = pushed.subject.ready;
    let indexed = site.registry.reference(&name(site, Who::Index, pushed));
    let mut node = site.sampan("pack-builder", site.registry.address());
    node.start()?;
    time_until(&mut node.run(&indexed, "first", program.words), |said| said.contains(program.sign), || ())?;
    for who in [Who::Trace, Who::Pack] {
        let reference = push(site, who, pushed)?;
        // The same image under another name: nothing is fetched again.
        must(&mut node.pull(&reference))?;
        if who == Who::Pack {
            must(node.client().args(["image", "pack", &reference, "--"]).args(program.words))?;
        }
        must(node.client().args(["image", "push-index", &reference]))?;
    }
    node.stop()
}

fn push(site: &Site, who: Who, pushed: &Pushed) -> Result<String> {
    let name = name(site, who, pushed);
    let reference = site.registry.push(&pushed.image, &name)?;
    site.is_temporary(&name, pushed);
    Ok(reference)
}
