//! Images as the lazy loaders want them, made by their own programs, once: what is made is pushed and kept.
//!
//! The tag of what is made carries the digest of what it was made from, so that a rebuilt image is converted anew.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::cells::Who;
use super::indexed;
use super::site::{Pushed, Site};
use crate::command::time;
use crate::engines::containerd::{Containerd, Generation};
use crate::engines::{Engine, NAMESPACE};
use crate::footprint::remove_folder;
use crate::peers::{self, announce};

/// Repository and tag of what `who` pulls.
pub(super) fn name(site: &Site, who: Who, pushed: &Pushed) -> String {
    let (image, key) = (pushed.subject.name, pushed.key());
    match who {
        Who::Index | Who::Trace | Who::Pack => indexed::name(site, who, pushed),
        // Kept in the image's own repository: its references lead nowhere else.
        Who::NydusZran => format!("{image}:zran-{key}"),
        Who::Stargz | Who::StargzOptimized | Who::Soci | Who::Nydus => format!("{image}-{}:{key}", who.name()),
        _ => pushed.name(),
    }
}

/// Converts an image for `who`, unless that was done.
pub(super) fn convert(site: &Site, who: Who, pushed: &Pushed) -> Result<()> {
    let name = name(site, who, pushed);
    if site.registry.manifest_digest(&name).is_some() {
        return Ok(());
    }
    announce(&format!("converting {} for {}, once (this takes up to some minutes)", pushed.subject.name, who.name()))?;
    let from = site.registry.reference(&pushed.name());
    let to = site.registry.reference(&name);
    match who {
        Who::Nydus | Who::NydusZran => nydus(site, who, &from, &to),
        _ => through_containerd(site, who, pushed, &from, &to),
    }
    .with_context(|| format!("convert {} for {}", pushed.subject.name, who.name()))
}

fn program(name: &str) -> Result<PathBuf> {
    peers::find(name, |_path| true).with_context(|| format!("there is no {name}"))
}

fn nydus(site: &Site, who: Who, from: &str, to: &str) -> Result<()> {
    let folder = site.work().join("nydusify");
    let mut command = Command::new(program("nydusify")?);
    command.args(["convert", "--source", from, "--target", to, "--nydus-image"]).arg(program("nydus-image")?);
    command
        .args(["--source-insecure", "--target-insecure", "--plain-http", "--fs-version", "6", "--work-dir"])
        .arg(&folder);
    if who == Who::NydusZran {
        command.arg("--oci-ref");
    }
    let done = run(&mut command);
    remove_folder(&folder)?;
    done
}

/// Pulls, converts and pushes with the content store of a containerd that is gone afterwards.
fn through_containerd(site: &Site, who: Who, pushed: &Pushed, from: &str, to: &str) -> Result<()> {
    let programs = site.peers.containerd2.as_deref().context("there is no containerd 2")?;
    let mut containerd = Containerd::new(Generation::Two, programs, "overlayfs", site.work());
    containerd.start()?;
    run(containerd.ctr().args(["images", "pull", "--plain-http", from]))?;
    match who {
        Who::Stargz => {
            let mut command = client(&program("ctr-remote")?, &containerd);
            command.args(["images", "convert", "--oci", "--estargz", from, to]);
            run(&mut command)?;
        }
        Who::StargzOptimized => {
            let words = serde_json::to_string(pushed.subject.ready.words)?;
            let mut command = client(&program("ctr-remote")?, &containerd);
            command.args(["images", "optimize", "--oci", "--args", &words, from, to]);
            run(&mut command)?;
        }
        _ => {
            let mut command = client(&program("soci")?, &containerd);
            command.arg("--root").arg(site.work().join("soci")).args(["convert", from, to]);
            run(&mut command)?;
        }
    }
    run(containerd.ctr().args(["images", "push", "--plain-http", to]))?;
    containerd.stop()
}

/// A client of containerd's that is not `ctr`.
fn client(program: &Path, containerd: &Containerd) -> Command {
    let mut command = Command::new(program);
    command.arg("--address").arg(containerd.socket()).args(["--namespace", NAMESPACE]);
    command
}

fn run(command: &mut Command) -> Result<()> {
    time(command.env("PATH", peers::search_path())).map(drop)
}
