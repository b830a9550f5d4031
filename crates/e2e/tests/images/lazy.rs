//! Images that this node had before, and images whose layers have tables of contents: they start from what is known of them, and
//! arrive while they are used.

use std::io::ErrorKind;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sampan_e2e::fixtures::Compression;
use sampan_e2e::harness::wait::until;
use sampan_e2e::link::{Link, Shape};
use sampan_e2e::service::Service;
use serde_json::Value;

use crate::faults::noisy;

/// Bytes that pass until a program has read a little of a large image.
const FIRST_BYTES_MAX: u64 = 6 << 20;

fn details(service: &Service, reference: &str) -> Result<Value> {
    service.sampan(["image", "inspect", "-o", "json", reference]).finish()?.json()
}

fn is_complete(service: &Service, reference: &str) -> Result<bool> {
    let image = details(service, reference)?;
    let layers = image["layers"].as_array().context("an image without layers")?;
    Ok(layers.iter().all(|layer| layer["complete"] == Value::Bool(true)))
}

/// Whether a loop device reads the local file of an image's uppermost layer.
fn is_moved(service: &Service, reference: &str) -> Result<bool> {
    let image = details(service, reference)?;
    let last = image["layers"].as_array().and_then(|layers| layers.last()).context("an image without layers")?;
    let diff_id = last["diffId"].as_str().context("a layer without a diffID")?.trim_start_matches("sha256:").to_owned();
    let blob = service.data_dir().join("images/blobs").join(diff_id);
    for entry in std::fs::read_dir("/sys/block")? {
        // A device may go while it is looked at.
        let backing = std::fs::read_to_string(entry?.path().join("loop/backing_file")).unwrap_or_default();
        if backing.trim_end() == blob.to_string_lossy() {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(crate) fn an_image_that_was_here_runs_before_it_has_arrived(service: &Service) -> Result<()> {
    for (seed, compression, name) in [(71, Compression::Gzip, "gzip"), (72, Compression::None, "tar")] {
        let (image, digest) = noisy(seed, compression)?;
        let indexed = service.registry.push(&image, &format!("lazy/{name}:1"))?;
        service.sampan(["pull", &indexed]).ok()?;
        service.sampan(["rmi", &indexed]).ok()?;
        runs_before_it_has_arrived(service, name, &digest, "index")?;
    }
    Ok(())
}

pub(crate) fn an_image_with_tables_of_contents_of_its_own_runs_before_it_has_arrived(service: &Service) -> Result<()> {
    let (image, digest) = noisy(73, Compression::Gzip)?;
    let plain = service.registry.push(&image, "lazy/plain:1")?;
    let chunked = service.registry.reference("lazy/chunked:1");
    let flags = ["--insecure-policy", "--src-tls-verify=false", "--dest-tls-verify=false", "--dest-compress-format"];
    let (from, to) = (format!("docker://{plain}"), format!("docker://{chunked}"));
    let copied = Command::new("skopeo").arg("copy").args(flags).args(["zstd:chunked", &from, &to]).output();
    let copied = match copied {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("SKIPPED: zstd:chunked layers are made by skopeo (install Debian's package skopeo)");
            return Ok(());
        }
        copied => copied?,
    };
    ensure!(copied.status.success(), "skopeo: {}", String::from_utf8_lossy(&copied.stderr));
    runs_before_it_has_arrived(service, "chunked", &digest, "tableOfContents")
}

/// Runs the image `lazy/NAME:1` over a slow link: a program reads a page long before all is here. What arrives meanwhile is read
/// by `read_by`; the rest comes without anybody asking.
fn runs_before_it_has_arrived(service: &Service, name: &str, digest: &str, read_by: &str) -> Result<()> {
    let link = Link::to(service.registry.address(), Shape::new(0, Some(16)))?;
    let reference = format!("{}/lazy/{name}:1", link.address());
    let instance = format!("lazy-first-{name}");
    let script = "dd if=/noise bs=4096 skip=1000 count=1 2>/dev/null | wc -c; sleep 1000";
    service.sampan(["run", "-d", "--name", &instance, &reference, "sh", "-c", script]).ok()?;
    until("the program has read", || Ok(service.sampan(["logs", &instance]).ok()?.contains("4096")))?;
    let passed = link.counts().down_bytes;
    ensure!(passed < FIRST_BYTES_MAX, "{passed} bytes had passed when the program had its page");
    let image = details(service, &reference)?;
    let noise = image["layers"].as_array().and_then(|layers| layers.last()).context("an image without layers")?;
    ensure!(noise["complete"] == false, "it was whole at once: this tests nothing");
    ensure!(noise["readBy"] == read_by, "it is read by something else: {noise}");
    ensure!(!is_moved(service, &reference)?, "its device reads a file that is not whole");
    // The rest comes without anybody asking, and what is mounted moves to it.
    until("the image is whole", || is_complete(service, &reference))?;
    until("its device reads the local file", || is_moved(service, &reference))?;
    drop(link);
    let said = service.sampan(["exec", &instance, "sha256sum", "/noise"]).ok()?;
    ensure!(said == format!("{digest}  /noise"), "wrong bytes: {said}");
    service.remove([instance.as_str()])
}
