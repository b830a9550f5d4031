//! Indexes, packs and keys from machine to machine: two services, one registry, and who believes whom.

use anyhow::{Context, Result, ensure};
use sampan_e2e::fixtures::{Compression, Fault, UnrulyRegistry};
use sampan_e2e::harness::wait::until;
use sampan_e2e::service::Service;
use serde_json::Value;

use crate::faults::noisy;

/// So slow that an image has not arrived when its container runs.
const SLOW: Fault = Fault::Slow { bytes_per_second: 512 << 10 };

fn json<const N: usize>(service: &Service, words: [&str; N]) -> Result<Value> {
    service.sampan(words).finish()?.expect(0)?.json()
}

/// Publishes an image that no other has, and gives its name and what `sha256sum` says of its file.
fn publish(service: &Service, name: &str, seed: u64) -> Result<String> {
    let (image, digest) = noisy(seed, Compression::Gzip)?;
    let reference = service.registry.push(&image, name)?;
    let index = json(service, ["image", "index", "-o", "json", &reference])?;
    let layers = index["layers"].as_array().context("an image without layers")?;
    ensure!(layers.iter().all(|layer| layer["indexBytes"].as_u64() > Some(0)), "a layer has no index: {index}");
    let report = json(service, ["image", "push-index", "-o", "json", &reference])?;
    ensure!(report["artifact"].as_str().is_some_and(|digest| digest.starts_with("sha256:")), "{report}");
    ensure!(report["files"].as_array().map(Vec::len) == Some(layers.len()), "an index for each layer: {report}");
    Ok(format!("{digest}  /noise"))
}

fn is_complete(service: &Service, reference: &str) -> Result<bool> {
    let image = json(service, ["image", "inspect", "-o", "json", reference])?;
    let layers = image["layers"].as_array().context("an image without layers")?;
    Ok(layers.iter().all(|layer| layer["complete"] == Value::Bool(true)))
}

pub(crate) fn a_published_index_is_used_by_those_who_trust_its_maker(service: &Service) -> Result<()> {
    let keys = json(service, ["image", "keys", "-o", "json"])?;
    let key = keys["keys"][0]["key"].as_str().context("a service without a key")?.to_owned();
    let other = Service::prepare("trust")?;
    other.serve()?;
    let registry = UnrulyRegistry::in_front_of(service.registry.address())?;

    // Nobody told it whom to believe: it pulls the image whole, and says why.
    let truth = publish(service, "published/stranger:1", 7001)?;
    let reference = registry.reference("published/stranger:1");
    let said = other.sampan(["run", "--rm", &reference, "sha256sum", "/noise"]).ok()?;
    ensure!(said == truth, "wrong bytes: {said}");
    ensure!(is_complete(&other, &reference)?, "an index of a stranger was used");
    ensure!(other.log().contains("a published index is not used"), "the log does not say why");

    // It is told: the container runs before the image has arrived, by an index that this service never made.
    other.sampan(["image", "keys", "add", "maker", &key]).ok()?;
    let truth = publish(service, "published/friend:1", 7002)?;
    let reference = registry.reference("published/friend:1");
    registry.commit(&[SLOW]);
    other.sampan(["run", "-d", "--name", "friend", &reference, "sleep", "1000"]).ok()?;
    ensure!(!is_complete(&other, &reference)?, "the image arrived before its container ran: this tests nothing");
    registry.commit(&[]);
    let said = other.sampan(["exec", "friend", "sha256sum", "/noise"]).ok()?;
    ensure!(said == truth, "wrong bytes: {said}");
    until("the image is complete", || is_complete(&other, &reference))?;
    other.remove(["friend"])?;

    // It is told otherwise.
    other.sampan(["image", "keys", "remove", "maker"]).ok()?;
    let refused = other.sampan(["image", "keys", "remove", "maker"]).finish()?;
    refused.fails_with(1, &["maker", "sampan image keys"])?;
    other.stop()
}

pub(crate) fn what_cannot_be_published_is_explained(service: &Service) -> Result<()> {
    service.sampan(["image", "push-index", "nothing:here"]).finish()?.fails_with(1, &["nothing:here", "sampan"])?;
    service
        .sampan(["image", "inspect", "nothing:here"])
        .finish()?
        .fails_with(1, &["nothing:here", "sampan image ls"])?;
    let image = service.busybox()?;
    service.sampan(["image", "prefetch", &image]).ok()?;
    service.sampan(["image", "pack", &image]).finish()?.fails_with(1, &["traced", "sampan image pack"])?;
    let verified = json(service, ["image", "verify", "-o", "json", &image])?;
    ensure!(verified["layers"][0]["verdict"] == "good", "{verified}");
    service.sampan(["image", "keys", "add", "x", "rubbish:1"]).finish()?.fails_with(1, &["sampan-ed25519-public"])?;
    service.sampan(["image", "gc", "--keep", "1Ti"]).ok().map(drop)
}

pub(crate) fn a_start_pack_of_a_real_start_serves_elsewhere(service: &Service) -> Result<()> {
    let truth = publish(service, "published/packed:1", 7003)?;
    let own = service.registry.reference("published/packed:1");
    service.sampan(["rmi", &own]).ok()?;
    // Not so fast that the image has arrived before the start has read it.
    let registry = UnrulyRegistry::in_front_of(service.registry.address())?;
    let reference = registry.reference("published/packed:1");
    registry.commit(&[Fault::Slow { bytes_per_second: 4 << 20 }]);
    let start = ["head", "-c", "300000", "/noise"];
    let command: Vec<&str> = ["image", "pack", "-o", "json", &reference, "--"].into_iter().chain(start).collect();
    let report = service.sampan(&command).finish()?.expect(0)?.json()?;
    ensure!(report["pages"].as_u64() >= Some(74), "the start read more than that: {report}");
    registry.commit(&[]);
    service.sampan(["pull", &own]).ok()?;
    let published = json(service, ["image", "push-index", "-o", "json", &own])?;
    let kinds: Vec<&str> =
        published["files"].as_array().into_iter().flatten().filter_map(|file| file["kind"].as_str()).collect();
    ensure!(kinds.ends_with(&["pack", "trace"]), "{kinds:?}");
    let traced = json(service, ["image", "trace", "-o", "json", &own])?;
    ensure!(traced["traces"][0]["command"] == "head -c 0 /noise", "{traced}");

    let keys = json(service, ["image", "keys", "-o", "json"])?;
    let other = Service::prepare("packed")?;
    other.serve()?;
    other.sampan(["image", "keys", "add", "maker", keys["keys"][0]["key"].as_str().context("no key")?]).ok()?;
    registry.commit(&[SLOW]);
    other.sampan(["run", "-d", "--name", "packed", &reference, "sleep", "1000"]).ok()?;
    ensure!(!is_complete(&other, &reference)?, "the image arrived before its container ran: this tests nothing");
    registry.commit(&[]);
    let said = other.sampan(["exec", "packed", "sha256sum", "/noise"]).ok()?;
    ensure!(said == truth, "wrong bytes: {said}");
    until("the image is complete", || is_complete(&other, &reference))?;
    ensure!(!other.log().contains("cannot be used"), "something published could not be used: {}", other.log());
    other.remove(["packed"])?;
    other.stop()
}
