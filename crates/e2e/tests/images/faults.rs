//! Images from a registry that behaves badly: what can be had is had, byte for byte; what cannot be had ends in one line and
//! leaves nothing behind.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sampan_e2e::fixtures::{Compression, Fault, Image, Layer, TarWriter, UnrulyRegistry, busybox, image};
use sampan_e2e::service::Service;

/// More than two of the ranges that a blob comes in.
const NOISE_BYTES: usize = 18 << 20;

/// busybox and a layer that no other image has, and that no packing makes smaller; with the digest of the file in it.
pub(crate) fn noisy(seed: u64, compression: Compression) -> Result<(Image, String)> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed + 1);
    let mut noise = Vec::with_capacity(NOISE_BYTES);
    while noise.len() < NOISE_BYTES {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    let digest = image::digest(&noise).trim_start_matches("sha256:").to_owned();
    let tar = TarWriter::in_memory().file("noise", 0o644, noise).into_bytes();
    let layer = Layer::new(&tar, compression)?;
    Ok((busybox::builder(Compression::Gzip)?.layer(layer).build(), digest))
}

/// A bad registry with one image in it.
struct Site {
    registry: UnrulyRegistry,
    reference: String,
    digest: String,
}

impl Site {
    fn new(service: &Service, name: &str) -> Result<Self> {
        let seed = name.bytes().fold(0_u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        let (image, digest) = noisy(seed, Compression::None)?;
        let registry = UnrulyRegistry::in_front_of(service.registry.address())?;
        let name = format!("unruly/{name}:1");
        service.registry.push(&image, &name)?;
        let reference = registry.reference(&name);
        Ok(Self { registry, reference, digest })
    }

    /// Runs the image in spite of `faults`, at least `least` of which must have been met.
    fn survives(&self, service: &Service, faults: &[Fault], least: u32) -> Result<()> {
        self.registry.commit(faults);
        let said = service.sampan(["run", "--rm", &self.reference, "sha256sum", "/noise"]).ok()?;
        ensure!(said == format!("{}  /noise", self.digest), "after {faults:?} the image holds other bytes: {said}");
        let spoilt = self.registry.spoilt();
        ensure!(spoilt >= least, "{faults:?} was met {spoilt} times only, of {} requests", self.registry.requests());
        Ok(())
    }

    /// Does not run because of `faults`, says so with `words`, and leaves nothing.
    fn fails(&self, service: &Service, faults: &[Fault], words: &[&str]) -> Result<()> {
        self.registry.commit(faults);
        let name = format!("unruly-{}", &self.digest[..8]);
        let run = ["run", "--rm", "--name", &name, &self.reference, "true"];
        service.sampan(run).finish()?.fails_with(125, &[&[self.reference.as_str()], words].concat())?;
        ensure!(!service.sampan(["ps", "-aq"]).ok()?.contains(&name), "an instance is left");
        let listed = service.sampan(["images"]).ok()?;
        ensure!(!listed.contains(self.registry.address()), "an image that never came is listed: {listed}");
        Ok(())
    }
}

pub(crate) fn registries_that_throttle_and_fail_for_a_while(service: &Service) -> Result<()> {
    let site = Site::new(service, "throttles")?;
    let begin = Instant::now();
    site.survives(service, &[Fault::TooManyRequests { times: 2, retry_after: 1 }], 2)?;
    ensure!(begin.elapsed() >= Duration::from_secs(1), "the registry's wish for a pause is ignored");
    let site = Site::new(service, "unavailable")?;
    site.survives(service, &[Fault::Unavailable { times: 3 }], 3)
}

pub(crate) fn a_registry_that_asks_for_more_patience_than_is_sensible(service: &Service) -> Result<()> {
    let site = Site::new(service, "impatient")?;
    site.fails(
        service,
        &[Fault::TooManyRequests { times: u32::MAX, retry_after: 3600 }],
        &["limits the rate", "3600 s"],
    )?;
    site.survives(service, &[], 0)
}

pub(crate) fn slow_and_silent_registries(service: &Service) -> Result<()> {
    Site::new(service, "slow")?.survives(service, &[Fault::Slow { bytes_per_second: 4 << 20 }], 1)?;
    let pause = Duration::from_secs(2);
    Site::new(service, "silent")?.survives(service, &[Fault::Silent { times: 2, pause }], 2)
}

pub(crate) fn tokens_that_expire_and_credentials_that_are_revoked(service: &Service) -> Result<()> {
    Site::new(service, "tokens")?.survives(service, &[Fault::ShortTokens { uses: 2 }], 2)?;
    let site = Site::new(service, "revoked")?;
    // Enough for the manifest and the configuration, not for all ranges.
    site.fails(service, &[Fault::Revoked { after: 4 }], &["denies access", "log in"])?;
    site.survives(service, &[Fault::ShortTokens { uses: u32::MAX }], 1)
}

pub(crate) fn ranges_that_are_cut_shortened_or_ignored(service: &Service) -> Result<()> {
    Site::new(service, "cut")?.survives(service, &[Fault::Cut { times: 6, bytes: 1 << 20 }], 6)?;
    Site::new(service, "short")?.survives(service, &[Fault::ShortRanges { bytes: 2 << 20 }], 8)?;
    Site::new(service, "whole")?.survives(service, &[Fault::IgnoresRanges], 1)?;
    let both = [Fault::IgnoresRanges, Fault::Cut { times: 2, bytes: 5 << 20 }];
    Site::new(service, "whole-and-cut")?.survives(service, &both, 2)
}

pub(crate) fn signed_addresses_that_expire(service: &Service) -> Result<()> {
    let site = Site::new(service, "signed")?;
    site.survives(service, &[Fault::SignedAddresses { uses: 1 }, Fault::Cut { times: 2, bytes: 1 << 20 }], 2)
}

pub(crate) fn bytes_that_are_wrong(service: &Service) -> Result<()> {
    let site = Site::new(service, "corrupt")?;
    site.fails(service, &[Fault::Corrupt { times: u32::MAX }], &["digest", "damaged or hostile"])?;
    site.survives(service, &[], 0)
}

pub(crate) fn a_registry_that_goes_away_and_comes_back(service: &Service) -> Result<()> {
    let site = Site::new(service, "down")?;
    site.fails(service, &[Fault::Down], &["127.0.0.1"])?;
    site.survives(service, &[], 0)
}
