//! Manifests as registries serve them, and as an attacker would.

use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::config::ImageConfig;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn layer(media_type: &str) -> Value {
    json!({"mediaType": media_type, "digest": DIGEST, "size": 7})
}

fn image(layers: &[&str]) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": {"mediaType": media_type::OCI_CONFIG, "digest": DIGEST, "size": 2},
        "layers": layers.iter().map(|media_type| layer(media_type)).collect::<Vec<_>>(),
    })
}

fn parse(document: &Value) -> Result<Document, ManifestError> {
    Document::parse(&serde_json::to_vec(document).unwrap(), None)
}

fn index(platforms: &[(&str, &str, &str)]) -> Index {
    let entry = |(os, architecture, variant): &(&str, &str, &str)| Descriptor {
        media_type: media_type::OCI_MANIFEST.to_owned(),
        digest: Digest::of(format!("{os}/{architecture}/{variant}").as_bytes()),
        size: 1,
        annotations: BTreeMap::new(),
        platform: Some(Platform::new(os, architecture, variant)),
    };
    Index { manifests: platforms.iter().map(entry).collect(), annotations: BTreeMap::new() }
}

#[test]
fn layers_of_every_supported_kind_are_read() {
    let document = parse(&image(&[
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.v1.tar",
    ]));
    let Ok(Document::Manifest(manifest)) = document else { panic!("not a manifest: {document:?}") };
    let kinds: Vec<_> = manifest.layers.iter().map(|layer| layer.compression).collect();
    assert_eq!(kinds, [Compression::Gzip, Compression::Gzip, Compression::Zstd, Compression::None]);
    assert_eq!(manifest.layers_bytes(), 28);
}

#[test]
fn a_document_without_a_type_of_its_own_is_told_by_its_members() {
    let mut document = image(&[]);
    document.as_object_mut().unwrap().remove("mediaType");
    assert!(matches!(parse(&document), Ok(Document::Manifest(_))));
    assert!(matches!(parse(&json!({"schemaVersion": 2, "manifests": []})), Ok(Document::Index(_))));
}

#[test]
fn what_cannot_be_run_is_refused_by_name() {
    let check = |document: Value, expected: Expect| expected.assert_eq(&parse(&document).unwrap_err().to_string());
    check(
        json!({"schemaVersion": 1, "fsLayers": []}),
        expect![
            "the image has a Docker schema 1 manifest, a form withdrawn since 2019; pull and push it again with a current docker or skopeo"
        ],
    );
    check(
        image(&["application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"]),
        expect![[
            r#"layer sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 has the media type "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", which is not distributed by registries (a foreign layer); use an image without such layers"#
        ]],
    );
    check(
        image(&["application/vnd.oci.image.layer.v1.tar+lzma"]),
        expect![[
            r#"layer sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 has the unknown media type "application/vnd.oci.image.layer.v1.tar+lzma"; tar, tar+gzip and tar+zstd layers are supported"#
        ]],
    );
    check(
        json!({"schemaVersion": 2, "mediaType": "application/x-thing"}),
        expect![[
            r#"the manifest has the unknown media type "application/x-thing"; only OCI and Docker schema 2 images are supported"#
        ]],
    );
    let mut chart = image(&[]);
    chart["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
    check(
        chart,
        expect![[
            r#"this is not a container image but an artifact of type "application/vnd.cncf.helm.config.v1+json"; name an image that can be run"#
        ]],
    );
}

#[test]
fn a_document_that_is_two_things_is_refused() {
    let mut both = image(&[]);
    both["manifests"] = json!([]);
    assert!(matches!(parse(&both), Err(ManifestError::Ambiguous)));
    let mut disguised = image(&[]);
    disguised["mediaType"] = json!(media_type::OCI_INDEX);
    assert!(matches!(parse(&disguised), Err(ManifestError::Ambiguous)));
}

#[test]
fn sizes_and_counts_have_limits() {
    let many = vec!["application/vnd.oci.image.layer.v1.tar"; LAYERS_MAX + 1];
    assert!(matches!(parse(&image(&many)), Err(ManifestError::TooManyEntries(_))));
    let mut wide = image(&[]);
    wide["config"]["size"] = json!(1_u64 << 40);
    assert!(matches!(parse(&wide), Err(ManifestError::ConfigTooLarge { .. })));
    let mut negative = image(&[]);
    negative["config"]["size"] = json!(-1);
    assert!(matches!(parse(&negative), Err(ManifestError::Json(_))));
    assert!(matches!(Document::parse(&vec![b' '; MANIFEST_BYTES_MAX + 1], None), Err(ManifestError::TooLarge { .. })));
}

#[test]
fn the_best_platform_is_chosen() {
    let offered = index(&[
        ("linux", "arm64", "v8"),
        ("linux", "amd64", ""),
        ("linux", "amd64", "v3"),
        ("unknown", "unknown", ""),
    ]);
    let chosen = |architecture, variant| {
        offered
            .select(&Platform::new("linux", architecture, variant))
            .map(|entry| entry.platform.clone().unwrap().to_string())
    };
    assert_eq!(chosen("amd64", "v2").unwrap(), "linux/amd64");
    assert_eq!(chosen("amd64", "v4").unwrap(), "linux/amd64/v3");
    assert_eq!(chosen("arm64", "v8").unwrap(), "linux/arm64/v8");
    expect!["the image is not made for this machine: it offers linux/arm64/v8, linux/amd64, linux/amd64/v3, this machine is linux/s390x; use an image built for linux/s390x"]
        .assert_eq(&chosen("s390x", "").unwrap_err().to_string());
}

#[test]
fn a_configuration_must_belong_to_its_manifest_and_machine() {
    let Ok(Document::Manifest(manifest)) = parse(&image(&["application/vnd.oci.image.layer.v1.tar"])) else { panic!() };
    let host = Platform::new("linux", "amd64", "v2");
    let mut config = ImageConfig::default();
    assert!(matches!(manifest.check_config(&config, &host), Err(ManifestError::LayerCount { layers: 1, diff_ids: 0 })));
    config.rootfs.diff_ids.push(DIGEST.parse().unwrap());
    manifest.check_config(&config, &host).unwrap();
    config.platform = Platform::new("linux", "arm64", "");
    expect!["the image is not made for this machine: it offers linux/arm64, this machine is linux/amd64/v2; use an image built for linux/amd64/v2"]
        .assert_eq(&manifest.check_config(&config, &host).unwrap_err().to_string());
}

proptest! {
    #[test]
    fn mangled_manifests_never_panic(at in 0_usize..200, byte in any::<u8>(), cut in 0_usize..400) {
        let mut bytes = serde_json::to_vec(&image(&["application/vnd.oci.image.layer.v1.tar+gzip"])).unwrap();
        bytes[at] = byte;
        Document::parse(&bytes, None).ok();
        Document::parse(&bytes[..cut.min(bytes.len())], Some("application/json")).ok();
    }

    #[test]
    fn selection_picks_something_that_runs(offers in proptest::collection::vec(("linux|windows", "amd64|arm64|386", "|v1|v2|v3|v8|x"), 0..8)) {
        let offers: Vec<_> = offers.iter().map(|(os, architecture, variant)| (os.as_str(), architecture.as_str(), variant.as_str())).collect();
        let host = Platform::new("linux", "amd64", "v2");
        let index = index(&offers);
        let fits = offers.iter().filter_map(|(os, architecture, variant)| host.fit(&Platform::new(os, architecture, variant))).max();
        let chosen = index.select(&host).ok().and_then(|entry| host.fit(entry.platform.as_ref().unwrap()));
        prop_assert_eq!(chosen, fits);
    }
}
