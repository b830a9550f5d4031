//! Images that are mounted before they have arrived, from a registry that behaves badly: readers get the right bytes or wait, and
//! a container whose image is complete never notices.
//!
//! Each image is pulled once and removed, so that the service knows its index; it then comes slowly through a bad registry, and
//! the faults begin when its container runs.

use anyhow::{Context, Result, ensure};
use sampan_e2e::fixtures::{Fault, UnrulyRegistry};
use sampan_e2e::harness::pod::text;
use sampan_e2e::harness::wait::until;
use sampan_e2e::service::Service;
use serde_json::Value;

use crate::faults::noisy;

/// So slow that the background does not come far while a test looks around.
const SLOW: Fault = Fault::Slow { bytes_per_second: 256 << 10 };

/// A container on an image that is still arriving.
struct Site<'service> {
    service: &'service Service,
    registry: UnrulyRegistry,
    reference: String,
    name: String,
    /// What `sha256sum` says of the image's file when every byte is right.
    truth: String,
}

impl<'service> Site<'service> {
    fn new(service: &'service Service, name: &str) -> Result<Self> {
        let name = format!("lazy-{name}");
        let seed = name.bytes().fold(0_u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        let (image, digest) = noisy(seed, sampan_e2e::fixtures::Compression::Gzip)?;
        let indexed = service.registry.push(&image, &format!("unruly/{name}:1"))?;
        service.sampan(["pull", &indexed]).ok()?;
        service.sampan(["rmi", &indexed]).ok()?;
        let registry = UnrulyRegistry::in_front_of(service.registry.address())?;
        let reference = registry.reference(&format!("unruly/{name}:1"));
        registry.commit(&[SLOW]);
        service.sampan(["run", "-d", "--name", &name, &reference, "sleep", "1000"]).ok()?;
        let site = Self { service, registry, reference, name, truth: format!("{digest}  /noise") };
        ensure!(!site.is_complete()?, "the image arrived before its container ran: this tests nothing");
        Ok(site)
    }

    /// Whether every layer is here.
    fn is_complete(&self) -> Result<bool> {
        let image = self.service.sampan(["image", "inspect", "-o", "json", &self.reference]).finish()?.json()?;
        let layers = image["layers"].as_array().context("an image without layers")?;
        Ok(layers.iter().all(|layer| layer["complete"] == Value::Bool(true)))
    }

    /// Reads the whole file inside and insists on its bytes.
    fn reads_right(&self, when: &str) -> Result<()> {
        let said = self.service.sampan(["exec", &self.name, "sha256sum", "/noise"]).ok()?;
        ensure!(said == self.truth, "{when}: wrong bytes: {said}");
        Ok(())
    }

    fn waits_until_complete(&self) -> Result<()> {
        until(&format!("{} is complete", self.reference), || self.is_complete())
    }

    fn remove(&self) -> Result<()> {
        self.service.remove([self.name.as_str()])
    }
}

/// Reading in spite of `faults`, which must be met, and completion after them.
fn survives(service: &Service, name: &str, faults: &[Fault]) -> Result<()> {
    let site = Site::new(service, name)?;
    site.registry.commit(faults);
    site.reads_right(&format!("with {faults:?}"))?;
    ensure!(site.registry.spoilt() > 0, "{faults:?} was not met in {} requests", site.registry.requests());
    site.waits_until_complete()?;
    site.remove()
}

pub(crate) fn readers_outlast_throttling_and_outages(service: &Service) -> Result<()> {
    survives(service, "throttled", &[Fault::TooManyRequests { times: 3, retry_after: 1 }])?;
    survives(service, "unavailable", &[Fault::Unavailable { times: 4 }])
}

pub(crate) fn readers_outlast_bad_ranges(service: &Service) -> Result<()> {
    survives(service, "cut", &[Fault::Cut { times: 4, bytes: 100_000 }])?;
    survives(service, "short", &[Fault::ShortRanges { bytes: 1 << 20 }])?;
    survives(service, "whole", &[Fault::IgnoresRanges])
}

pub(crate) fn readers_outlast_expiry(service: &Service) -> Result<()> {
    survives(service, "tokens", &[Fault::ShortTokens { uses: 2 }])?;
    survives(service, "signed", &[Fault::SignedAddresses { uses: 1 }, Fault::Cut { times: 1, bytes: 100_000 }])
}

pub(crate) fn wrong_bytes_are_fetched_again(service: &Service) -> Result<()> {
    survives(service, "corrupt", &[Fault::Corrupt { times: 2 }])
}

pub(crate) fn readers_wait_while_the_registry_is_away(service: &Service) -> Result<()> {
    let site = Site::new(service, "away")?;
    site.registry.commit(&[Fault::Down]);
    let reading = service.sampan(["exec", &site.name, "sha256sum", "/noise"]).start()?;
    until("a reader meets the registry's absence", || Ok(site.registry.spoilt() >= 2))?;
    site.registry.commit(&[]);
    reading.output.wait_for(&site.truth)?;
    site.remove()
}

pub(crate) fn complete_images_need_no_registry(service: &Service) -> Result<()> {
    let site = Site::new(service, "complete")?;
    site.registry.commit(&[]);
    site.waits_until_complete()?;
    site.registry.commit(&[Fault::Down]);
    site.reads_right("without a registry")?;
    let pod = service.pod(&site.name)?;
    ensure!(text(&pod, "/status/phase") == "Running", "the container noticed: {}", pod["status"]);
    ensure!(site.registry.requests() == 0, "a complete image is asked for {} times", site.registry.requests());
    site.remove()
}
