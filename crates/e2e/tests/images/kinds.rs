//! Image kinds that must run.

use std::fs;

use anyhow::{Context, Result};
use sampan_e2e::fixtures::registry::LOGIN;
use sampan_e2e::fixtures::{Flavour, Registry, busybox, variants};
use sampan_e2e::service::Service;

fn run(service: &Service, image: &str, script: &str) -> Result<String> {
    service.sampan(["run", "--rm", image, "sh", "-c", script]).ok()
}

pub(crate) fn every_compression_and_flavour_runs(service: &Service) -> Result<()> {
    let images = [
        ("kinds:oci-gzip", busybox::image()?),
        ("kinds:zstd", variants::zstd()?),
        ("kinds:tar", variants::uncompressed()?),
        ("kinds:docker", variants::docker()?),
    ];
    for (name, image) in images {
        let image = service.registry.push(&image, name)?;
        assert_eq!(run(service, &image, "id -un; cat /etc/group | wc -l")?, "root\n4", "{name}");
    }
    Ok(())
}

pub(crate) fn an_index_gives_this_machines_image(service: &Service) -> Result<()> {
    for (name, flavour) in [("multi:oci", Flavour::Oci), ("multi:docker", Flavour::Docker)] {
        let image = service.registry.push_index(&variants::multi_platform(flavour)?, name)?;
        assert_eq!(run(service, &image, "echo right")?, "right");
    }
    Ok(())
}

pub(crate) fn a_hundred_and_twenty_seven_layers_are_one(service: &Service) -> Result<()> {
    let image = service.image("layers:127", variants::many_layers)?;
    assert_eq!(run(service, &image, "cat /last; ls /layers")?, "126\n125\n126");
    // What is hidden below can be made anew, and what is there can be hidden.
    assert_eq!(run(service, &image, "mkdir /layers/1; rm /layers/126; ls /layers")?, "1\n125");
    Ok(())
}

pub(crate) fn every_kind_of_entry_is_kept(service: &Service) -> Result<()> {
    let image = service.image("entries:all", variants::every_entry)?;
    let script = "cd /odd; ls opaque; cat linked twice; stat -c '%a %h' twice below; cat missing/parents/file; \
                  stat -c %F fifo null disk; cat d*/f*; cat not-utf8-*; stat -c %s sparse; \
                  dd if=sparse bs=4 skip=131072 count=1 2>/dev/null; echo; head -c 524288 sparse | tr -d '\\0' | wc -c";
    let lines = [
        "seen",
        "from the lower layer",
        "second",
        "640 1",
        "644 2",
        "here",
        "fifo",
        // Devices become empty files that carry no power.
        "regular empty file",
        "regular empty file",
        "long",
        "bytes",
        "1048576",
        "data",
        "0",
    ];
    assert_eq!(run(service, &image, script)?, lines.join("\n"));
    Ok(())
}

pub(crate) fn a_layout_directory_is_an_image(service: &Service) -> Result<()> {
    let folder = service.work().join("layout");
    fs::create_dir(&folder)?;
    busybox::image()?.write_layout(&folder, "tagged")?;
    for reference in ["oci:./layout:tagged".to_owned(), format!("oci:{}", folder.display())] {
        assert_eq!(run(service, &reference, "echo $((1 + 1))")?, "2", "{reference}");
    }
    service.sampan(["run", "--rm", "oci:./layout:other", "true"]).finish()?.fails_with(125, &["other", "tagged"])?;
    service.sampan(["run", "--rm", "oci:./nothing", "true"]).finish()?.fails_with(125, &["oci:./nothing"])
}

pub(crate) fn a_registry_with_a_login_is_entered(service: &Service) -> Result<()> {
    let registry = Registry::start_with_login()?;
    let image = registry.push(&busybox::image()?, "private/busybox:1")?;
    let refused = service.sampan(["run", "--rm", &image, "true"]).finish()?;
    refused.fails_with(125, &[&image, "login"])?;
    let (name, password) = LOGIN;
    let encoded = base64(&format!("{name}:{password}"));
    let file = serde_json::json!({"auths": {registry.address(): {"auth": encoded}}});
    fs::create_dir_all(service.work().join(".docker"))?;
    fs::write(service.work().join(".docker/config.json"), file.to_string())?;
    assert_eq!(run(service, &image, "echo entered")?, "entered");
    Ok(())
}

pub(crate) fn a_digest_names_an_image(service: &Service) -> Result<()> {
    let image = busybox::builder(sampan_e2e::fixtures::Compression::Gzip)?.env("BY", "digest").build();
    let tagged = service.registry.push(&image, "digested:1")?;
    let (repository, _) = tagged.rsplit_once(':').context("a reference without a tag")?;
    let exact = format!("{repository}@{}", image.manifest.digest);
    assert_eq!(run(service, &exact, "echo $BY")?, "digest");
    let other = format!("{repository}@sha256:{}", "0".repeat(64));
    service.sampan(["run", "--rm", &other, "true"]).finish()?.fails_with(125, &[&other])
}

/// RFC 4648, for a few bytes.
fn base64(text: &str) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for piece in text.as_bytes().chunks(3) {
        let bits = piece.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - piece.len()));
        for nth in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * nth) & 63) as usize];
            encoded.push(if nth > piece.len() { '=' } else { letter.into() });
        }
    }
    encoded
}
