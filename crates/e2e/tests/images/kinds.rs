//! Image kinds that must run.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
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

/// Archives by a program that others wrote: one of a single image, one without a name, and standard input.
pub(crate) fn a_saved_archive_is_loaded(service: &Service) -> Result<()> {
    let folder = service.work().join("to-save");
    fs::create_dir(&folder)?;
    busybox::image()?.write_layout(&folder, "tagged")?;
    let save = |file: &str, name: &str| -> Result<()> {
        let path = service.work().join(file);
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy", "--quiet", &format!("oci:{}:tagged", folder.display())]);
        let saved = skopeo.arg(format!("docker-archive:{}{name}", path.display())).output();
        let saved = saved.context("run skopeo, which ./test.sh installs")?;
        ensure!(saved.status.success(), "skopeo: {}", String::from_utf8_lossy(&saved.stderr));
        Ok(())
    };
    save("named.tar", ":example.test/saved:1")?;
    save("nameless.tar", "")?;
    let loaded = service.sampan(["load", "--quiet", "--input", "named.tar"]).ok()?;
    assert!(loaded.starts_with("loaded example.test/saved:1 sha256:"), "{loaded}");
    // Its registry does not exist: nobody is asked.
    assert_eq!(run(service, "example.test/saved:1", "echo loaded")?, "loaded");
    let archive = fs::read(service.work().join("named.tar"))?;
    let again = service.sampan(["load", "--quiet"]).input(archive.clone()).ok()?;
    assert_eq!(again, loaded);
    assert_eq!(run(service, "docker-archive:./nameless.tar", "echo $((1 + 1))")?, "2");
    let images = service.sampan(["images", "--quiet"]).ok()?;
    assert!(images.lines().any(|image| image == "example.test/saved:1"), "{images}");
    fs::write(service.work().join("cut.tar"), &archive[..archive.len() / 2])?;
    service.sampan(["load", "--input", "cut.tar"]).finish()?.fails_with(1, &["cut.tar"])?;
    service.sampan(["load", "--input", "none.tar"]).finish()?.fails_with(1, &["none.tar", "docker save"])?;
    service
        .sampan(["run", "--rm", "docker-archive:./named.tar:other", "true"])
        .finish()?
        .fails_with(125, &["other", "example.test/saved:1"])
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
