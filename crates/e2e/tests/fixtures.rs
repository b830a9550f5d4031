//! The fixtures themselves: every small image can be made, pushed and is what its description says.

use std::collections::HashSet;
use std::io::Read;

use anyhow::Result;
use flate2::read::GzDecoder;
use sampan_e2e::fixtures::{Flavour, Image, Registry, busybox, debian, hostile, variants};

#[test]
fn small_images_can_be_pushed() -> Result<()> {
    let registry = Registry::start()?;
    let images: [(&str, Image); 18] = [
        ("busybox", busybox::image()?),
        ("busybox:zstd", variants::zstd()?),
        ("busybox:tar", variants::uncompressed()?),
        ("busybox:docker", variants::docker()?),
        ("busybox:layers", variants::many_layers()?),
        ("busybox:entries", variants::every_entry()?),
        ("other", variants::other_architecture()?),
        ("bad:diff-id", hostile::wrong_diff_id()?),
        ("bad:truncated", hostile::truncated_gzip()?),
        ("bad:corrupt", hostile::corrupt_gzip()?),
        ("bad:tar", hostile::truncated_tar()?),
        ("bad:parent", hostile::parent_directory()?),
        ("bad:absolute", hostile::absolute_path("/tmp/sampan-escaped")?),
        ("bad:symlink", hostile::escaping_symlink("/tmp")?),
        ("bad:hard-link", hostile::dangling_hard_link()?),
        ("bad:media-type", hostile::unknown_media_type()?),
        ("bad:foreign", hostile::foreign_layer()?),
        ("bad:command", hostile::no_command()?),
    ];
    let references: HashSet<String> =
        images.iter().map(|(name, image)| registry.push(image, name)).collect::<Result<_>>()?;
    assert_eq!(references.len(), images.len());
    assert!(references.contains(&registry.reference("busybox:zstd")));

    registry.push(&hostile::pax_bomb()?, "bad:pax")?;
    registry.push(&hostile::expanding_layer(1 << 30)?, "bad:expanding")?;
    registry.push_index(&variants::multi_platform(Flavour::Oci)?, "multi:oci")?;
    registry.push_index(&variants::multi_platform(Flavour::Docker)?, "multi:docker")?;
    let (image, digest, other) = hostile::wrong_digest()?;
    registry.push(&image, "bad:digest")?;
    registry.replace_blob(&digest, &other)
}

#[test]
fn debian_images_share_their_base() -> Result<()> {
    let (python, nginx, privileges) = (debian::python()?, debian::nginx()?, debian::privileges()?);
    assert_eq!(python.layers.len(), 3);
    for image in [&nginx, &privileges] {
        assert_eq!(image.layers[0].diff_id, python.layers[0].diff_id);
    }
    let base = python.layers[0].blob.read()?;
    assert_eq!(sampan_e2e::fixtures::image::digest(&base), python.layers[0].blob.digest);
    let registry = Registry::start()?;
    registry.push(&privileges, "privileges").map(drop)
}

#[test]
fn a_registry_with_a_login_takes_it() -> Result<()> {
    let registry = Registry::start_with_login()?;
    registry.push(&busybox::image()?, "private/busybox:1").map(drop)
}

#[test]
fn busybox_has_a_shell_and_a_named_user() -> Result<()> {
    let tar = busybox::tar()?;
    let has = |needle: &[u8]| tar.windows(needle.len()).any(|window| window == needle);
    assert!(has(b"bin/sh\0"));
    assert!(has(b"sampan:x:1000:1000"));
    let (program, applets) = busybox::program()?;
    assert!(program.starts_with(b"\x7fELF"));
    assert!(applets.len() > 100);
    Ok(())
}

#[test]
fn the_two_contents_of_a_wrong_digest_have_one_length() -> Result<()> {
    let (image, digest, other) = hostile::wrong_digest()?;
    let layer = image.layers.iter().find(|layer| layer.blob.digest == digest).unwrap();
    assert_eq!(layer.blob.size, other.len() as u64);
    let mut tar = String::new();
    GzDecoder::new(&other[..]).read_to_string(&mut tar)?;
    assert!(tar.contains("the wrong one"));
    Ok(())
}

#[test]
fn a_layout_is_complete() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let image = busybox::image()?;
    image.write_layout(directory.path(), "latest")?;
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(directory.path().join("index.json"))?)?;
    let digest = index["manifests"][0]["digest"].as_str().unwrap();
    assert_eq!(digest, image.manifest.digest);
    let blobs = directory.path().join("blobs/sha256");
    assert!(blobs.join(digest.trim_start_matches("sha256:")).exists());
    assert_eq!(std::fs::read_dir(blobs)?.count(), 3);
    Ok(())
}
