//! Archives of `docker save` through the same client, in each form that such programs have written.

use std::fs;
use std::path::{Path, PathBuf};

use expect_test::{Expect, expect};
use proptest::prelude::*;
use sampan_kit::error_chain::ErrorChain;
use sampan_oci::digest::Digest;
use sampan_oci::layer::archive::ArchiveWriter;
use sampan_oci::layer::{Entry, EntryKind, LayerPath, Timestamp};
use sampan_oci::media_type::OCI_LAYER;
use sampan_oci::platform::Platform;
use sampan_oci::reference::ImageSource;
use sampan_registry::Credentials;
use serde_json::json;
use tempfile::TempDir;

use crate::server::{client, noise, read_all};

fn entry(path: &str, kind: EntryKind) -> Entry {
    let path = LayerPath::of_entry(path.as_bytes()).unwrap();
    Entry { path, kind, mode: 0o644, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: Vec::new(), data_offset: 0 }
}

fn file(archive: &mut ArchiveWriter, path: &str, bytes: &[u8]) {
    archive.entry(&entry(path, EntryKind::File { size: bytes.len() as u64, segments: None }), bytes);
}

fn symlink(archive: &mut ArchiveWriter, path: &str, target: &str) {
    archive.entry(&entry(path, EntryKind::Symlink { target: target.into() }), b"");
}

fn config(diff_ids: &[Digest]) -> Vec<u8> {
    let config = json!({
        "os": "linux", "architecture": Platform::host().architecture, "config": {"Cmd": ["true"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    config.to_string().into_bytes()
}

fn save(archive: &mut ArchiveWriter) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("saved.tar");
    fs::write(&path, archive.finish()).unwrap();
    (directory, path)
}

fn source(path: &Path, name: &str) -> ImageSource {
    format!("docker-archive:{}{name}", path.display()).parse().unwrap()
}

/// Two images: one of two layers that share a file, as the oldest form writes them; one of a gzip and a plain layer.
fn two_images() -> (TempDir, PathBuf, [Vec<u8>; 3]) {
    let layers = [noise(70_000).to_vec(), [&[0x1f, 0x8b, 8, 0][..], &noise(5_001)].concat(), noise(1).to_vec()];
    let [plain, gzip, tiny] = &layers;
    let mut archive = ArchiveWriter::new();
    file(&mut archive, "aaa/layer.tar", plain);
    symlink(&mut archive, "bbb/layer.tar", "../aaa/layer.tar");
    file(&mut archive, "one.json", &config(&[Digest::of(plain), Digest::of(plain)]));
    file(&mut archive, "blobs/sha256/gzip", gzip);
    file(&mut archive, "tiny.tar", tiny);
    file(&mut archive, "two.json", &config(&[Digest::of(b"inflated"), Digest::of(tiny)]));
    let manifest = json!([
        {"Config": "one.json", "RepoTags": ["one:v1", "x.io/one:v2"], "Layers": ["aaa/layer.tar", "bbb/layer.tar"]},
        {"Config": "two.json", "RepoTags": ["two"], "Layers": ["blobs/sha256/gzip", "tiny.tar"]},
        {"Config": "two.json", "RepoTags": null, "Layers": null},
    ]);
    file(&mut archive, "manifest.json", manifest.to_string().as_bytes());
    let (directory, path) = save(&mut archive);
    (directory, path, layers)
}

#[tokio::test]
async fn every_form_of_layer_is_read() {
    let (_directory, path, [plain, gzip, tiny]) = two_images();
    for (name, layers, types) in [
        (":one:v1", [&plain, &plain], ["", ""]),
        (":x.io/one:v2", [&plain, &plain], ["", ""]),
        (":two:latest", [&gzip, &tiny], ["+gzip", ""]),
    ] {
        let source = source(&path, name);
        let resolved = client().resolve(&source, &Platform::host(), &Credentials::host()).await.unwrap();
        assert_eq!(client().current_digest(&source, &Credentials::host()).await.unwrap(), resolved.digest);
        assert_eq!(Digest::of(&resolved.manifest_bytes), resolved.manifest_digest);
        let ImageSource::Archive { name, .. } = &source else { unreachable!() };
        assert_eq!(resolved.name, *name);
        for ((layer, bytes), kind) in resolved.manifest.layers.iter().zip(layers).zip(types) {
            let layer = &layer.descriptor;
            assert_eq!(layer.digest, Digest::of(bytes));
            assert_eq!(layer.media_type, format!("{OCI_LAYER}{kind}"));
            let mut reader = client().open_blob(&source, layer, &Credentials::host()).await.unwrap();
            assert!(read_all(&mut reader).await.unwrap() == *bytes);
            let range = bytes.len() as u64 / 2..bytes.len() as u64;
            let part = client().read_range(&source, layer, range.clone(), &Credentials::host()).await.unwrap();
            assert!(part == bytes[range.start as usize..]);
            let opened = client().ranged_blob(&source, layer, 0..1, &Credentials::host()).await;
            let (_blob, mut stream) = opened.unwrap();
            assert!(stream.recv().await.unwrap().unwrap() == bytes[..1]);
        }
    }
    let names = client().archive_names(&path).await.unwrap();
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["docker.io/library/one:v1", "x.io/one:v2", "docker.io/library/two:latest"]);
}

#[tokio::test]
async fn what_is_wrong_with_an_archive_is_told() {
    let (directory, path, _) = two_images();
    let check = async |path: &Path, name: &str, expected: Expect| {
        let resolved = client().resolve(&source(path, name), &Platform::host(), &Credentials::host()).await;
        let message = ErrorChain(&resolved.unwrap_err()).to_string();
        expected.assert_eq(&message.replace(&path.display().to_string(), "FILE"));
    };
    check(
        &path,
        "",
        expect!["cannot use docker-archive:FILE: FILE holds several images; name one as docker-archive:FILE:NAME, where NAME is one of docker.io/library/one:v1, x.io/one:v2, docker.io/library/two:latest"],
    )
    .await;
    check(
        &path,
        ":three",
        expect![[r#"cannot use docker-archive:FILE:docker.io/library/three:latest: FILE has no image "docker.io/library/three:latest"; it has docker.io/library/one:v1, x.io/one:v2, docker.io/library/two:latest"#]],
    )
    .await;
    let other = directory.path().join("other");
    check(
        &other,
        "",
        expect!["cannot use docker-archive:FILE: FILE cannot be read: No such file or directory (os error 2)"],
    )
    .await;
    fs::write(&other, noise(3000)).unwrap();
    check(
        &other,
        "",
        expect![[r#"cannot use docker-archive:FILE: FILE is no archive of images, or it is damaged; write one with "docker save" or "podman save": tar header at byte 0 has a wrong checksum: this is no tar archive, or it is damaged"#]],
    )
    .await;
    let damage = async |manifest: &[u8], expected: Expect| {
        let mut archive = ArchiveWriter::new();
        file(&mut archive, "c.json", &config(&[Digest::of(b"layer")]));
        symlink(&mut archive, "round", "round");
        symlink(&mut archive, "out", "../../etc/passwd");
        file(&mut archive, "manifest.json", manifest);
        fs::write(&other, archive.finish()).unwrap();
        check(&other, "", expected).await;
    };
    damage(b"[]", expect!["cannot use docker-archive:FILE: FILE holds no image; save one into it"]).await;
    damage(b"{", expect!["cannot use docker-archive:FILE: the manifest.json of FILE is not valid; save the image again: invalid type: map, expected a sequence at line 1 column 0"]).await;
    for name in ["gone", "round", "out", "../c.json"] {
        let manifest = json!([{"Config": name, "Layers": []}]);
        let message = format!(
            "cannot use docker-archive:FILE: FILE has no file {name}, which its manifest names; save the image again"
        );
        let mut archive = ArchiveWriter::new();
        symlink(&mut archive, "round", "round");
        symlink(&mut archive, "out", "../../etc/passwd");
        file(&mut archive, "manifest.json", manifest.to_string().as_bytes());
        let (_kept, path) = save(&mut archive);
        let resolved = client().resolve(&source(&path, ""), &Platform::host(), &Credentials::host()).await;
        let told = ErrorChain(&resolved.unwrap_err()).to_string().replace(&path.display().to_string(), "FILE");
        assert_eq!(told, message);
    }
    damage(
        br#"[{"Config": "c.json", "Layers": []}]"#,
        expect!["cannot use docker-archive:FILE: the image has 0 layers but its configuration lists 1 diffIDs; rebuild or re-push it"],
    )
    .await;
}

#[tokio::test]
async fn a_layer_that_is_not_what_its_name_says_is_refused() {
    let mut archive = ArchiveWriter::new();
    file(&mut archive, "layer.tar", b"something else");
    file(&mut archive, "c.json", &config(&[Digest::of(b"the truth")]));
    file(&mut archive, "manifest.json", br#"[{"Config": "c.json", "Layers": ["layer.tar"]}]"#);
    let (_directory, path) = save(&mut archive);
    let source = source(&path, "");
    let resolved = client().resolve(&source, &Platform::host(), &Credentials::host()).await.unwrap();
    let layer = &resolved.manifest.layers[0].descriptor;
    let mut reader = client().open_blob(&source, layer, &Credentials::host()).await.unwrap();
    let error = ErrorChain(&read_all(&mut reader).await.unwrap_err()).to_string();
    assert!(error.contains("has digest") && error.contains(&Digest::of(b"the truth").to_string()), "{error}");
}

proptest! {
    /// Bytes that nobody wrote for us, and a good archive with some of them changed, end in an image or an error.
    #[test]
    fn any_archive_is_survived(noise in prop::collection::vec(any::<u8>(), 0..2000), places in prop::collection::vec((any::<u16>(), any::<u8>()), 0..12)) {
        let (directory, path, _) = two_images();
        let mut damaged = fs::read(&path).unwrap();
        for (place, byte) in places {
            let place = usize::from(place) % damaged.len();
            damaged[place] = byte;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for bytes in [noise, damaged] {
            let file = directory.path().join("any.tar");
            fs::write(&file, bytes).unwrap();
            for name in ["", ":one:v1"] {
                let source = source(&file, name);
                let resolved = runtime.block_on(client().resolve(&source, &Platform::host(), &Credentials::host()));
                if let Ok(resolved) = resolved {
                    prop_assert_eq!(resolved.manifest.layers.len(), resolved.config.rootfs.diff_ids.len());
                }
            }
        }
    }
}
