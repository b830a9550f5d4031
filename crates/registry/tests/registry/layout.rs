//! Image layouts through the same client.

use std::fs;
use std::path::Path;

use expect_test::{Expect, expect};
use sampan_kit::error_chain::ErrorChain;
use sampan_oci::digest::Digest;
use sampan_oci::platform::Platform;
use sampan_oci::reference::ImageSource;
use sampan_registry::Credentials;
use serde_json::{Value, json};

use crate::server::{TestImage, client, descriptor, read_all};

fn write_blob(directory: &Path, bytes: &[u8]) {
    fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
    fs::write(directory.join("blobs/sha256").join(Digest::of(bytes).hex()), bytes).unwrap();
}

fn entry(image: &TestImage, tag: Option<&str>) -> Value {
    let mut entry = serde_json::to_value(descriptor(&image.manifest, sampan_oci::media_type::OCI_MANIFEST)).unwrap();
    if let Some(tag) = tag {
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    }
    entry
}

fn layout(image: &TestImage, entries: &[Value]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for blob in [&image.layer, &image.config, &image.manifest] {
        write_blob(directory.path(), blob);
    }
    let index = json!({"schemaVersion": 2, "manifests": entries});
    fs::write(directory.path().join("index.json"), index.to_string()).unwrap();
    directory
}

fn source(directory: &Path, tag: &str) -> ImageSource {
    format!("oci:{}{tag}", directory.display()).parse().unwrap()
}

#[tokio::test]
async fn images_are_found_with_and_without_a_tag() {
    let image = TestImage::new(3_000_000);
    let directory = layout(&image, &[entry(&image, Some("example.test/app:v1"))]);
    for tag in ["", ":v1"] {
        let source = source(directory.path(), tag);
        let resolved = client().resolve(&source, &Platform::host(), &Credentials::host()).await.unwrap();
        assert_eq!(resolved.digest, Digest::of(&image.manifest));
        assert_eq!(client().current_digest(&source, &Credentials::host()).await.unwrap(), resolved.digest);
        let layer = &resolved.manifest.layers[0].descriptor;
        let mut reader = client().open_blob(&source, layer, &Credentials::host()).await.unwrap();
        assert_eq!(read_all(&mut reader).await.unwrap(), image.layer);
        let range = client().read_range(&source, layer, 1000..1010, &Credentials::host()).await.unwrap();
        assert_eq!(range, image.layer[1000..1010]);
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_layout_is_told() {
    let image = TestImage::new(10);
    let two = layout(&image, &[entry(&image, Some("a")), entry(&image, Some("b"))]);
    let check = async |directory: &Path, tag: &str, expected: Expect| {
        let resolved = client().resolve(&source(directory, tag), &Platform::host(), &Credentials::host()).await;
        let message = ErrorChain(&resolved.unwrap_err()).to_string();
        expected.assert_eq(&message.replace(&directory.display().to_string(), "DIR"));
    };
    check(
        two.path(),
        "",
        expect!["cannot use oci:DIR: DIR holds several images; name one as oci:DIR:TAG, where TAG is one of a, b"],
    )
    .await;
    check(two.path(), ":c", expect![[r#"cannot use oci:DIR:c: DIR has no image tagged "c"; it has a, b"#]]).await;
    check(
        Path::new("/proc/self"),
        "",
        expect![[r#"cannot use oci:DIR: DIR is not a directory in OCI image layout (it has no index.json); make one with "skopeo copy … oci:DIR:TAG""#]],
    )
    .await;
    check(
        Path::new("images"),
        "",
        expect!["cannot use oci:DIR: the path DIR of the image layout is relative; write it from / on"],
    )
    .await;
    check(layout(&image, &[]).path(), "", expect!["cannot use oci:DIR: DIR holds no image; copy one into it"]).await;
}

#[tokio::test]
async fn damaged_blobs_are_found() {
    let image = TestImage::new(5000);
    let directory = layout(&image, &[entry(&image, None)]);
    let path = directory.path().join("blobs/sha256").join(Digest::of(&image.layer).hex());
    let read = async || {
        let source = source(directory.path(), "");
        let mut reader = client().open_blob(&source, &image.layer_descriptor(), &Credentials::host()).await?;
        read_all(&mut reader).await
    };
    let mut bent = image.layer.to_vec();
    bent[7] ^= 1;
    fs::write(&path, &bent).unwrap();
    let message = ErrorChain(&read().await.unwrap_err()).to_string();
    assert!(
        message.contains(&format!("has digest {}, not {}", Digest::of(&bent), Digest::of(&image.layer))),
        "{message}"
    );
    fs::write(&path, &bent[..100]).unwrap();
    let message = ErrorChain(&read().await.unwrap_err()).to_string();
    assert!(message.contains("has 100 bytes, its manifest says 5000"), "{message}");
    fs::write(directory.path().join("blobs/sha256").join(Digest::of(&image.manifest).hex()), "{}").unwrap();
    let resolved = client().resolve(&source(directory.path(), ""), &Platform::host(), &Credentials::host()).await;
    assert!(ErrorChain(&resolved.unwrap_err()).to_string().contains("has digest"));
}
