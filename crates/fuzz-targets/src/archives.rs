//! Archives of `docker save`, read as whoever pulls an image from one does.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, memfd_create};
use sampan_oci::digest::Digest;
use sampan_oci::layer::archive::ArchiveWriter;
use sampan_oci::platform::Platform;
use sampan_oci::reference::ImageSource;
use sampan_registry::{Credentials, RegistryClient, RegistryConfig};
use serde_json::json;

use crate::images::with_right_checksums;

/// Images of one archive that are looked at.
const IMAGES_MAX: usize = 4;
/// Bytes of a layer that are read.
const READ_BYTES: u64 = 4096;
const LAYER: &[u8] = b"what a layer would be";

thread_local! {
    static CLIENT: RegistryClient = RegistryClient::new(RegistryConfig::default());
}

/// An archive, with the headers' checksums that it has and with right ones; what begins like a list is the `manifest.json` of one.
pub fn docker_archive(bytes: &[u8]) -> bool {
    if bytes.trim_ascii_start().starts_with(b"[") {
        return check(&around(bytes));
    }
    let as_is = check(bytes);
    check(&with_right_checksums(bytes)) || as_is
}

/// An archive with this `manifest.json`, a configuration `config.json`, and its one layer, `layer.tar`, to which `link` leads.
pub(crate) fn around(manifest: &[u8]) -> Vec<u8> {
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(LAYER)]},
    });
    let config = config.to_string();
    let mut writer = ArchiveWriter::new();
    for (name, bytes) in [("config.json", config.as_bytes()), ("layer.tar", LAYER), ("manifest.json", manifest)] {
        writer.header(name.as_bytes(), b'0', bytes.len() as u64).data(bytes);
    }
    writer.pax(b"linkpath", b"./layer.tar").header(b"link", b'2', 0).finish()
}

/// Whether there is an image in it. What is said of one must be so.
fn check(archive: &[u8]) -> bool {
    let Ok(memory) = memfd_create(c"archive", MemfdFlags::CLOEXEC) else { return false };
    let mut memory = File::from(memory);
    if memory.write_all(archive).is_err() {
        return false;
    }
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build() else {
        return false;
    };
    let file = PathBuf::from(format!("/proc/self/fd/{}", memory.as_raw_fd()));
    let client = CLIENT.with(RegistryClient::clone);
    runtime.block_on(async {
        let names = client.archive_names(&file).await.unwrap_or_default();
        let wanted = names.into_iter().take(IMAGES_MAX).map(Some).chain([None]);
        let mut is_any = false;
        for name in wanted {
            is_any |= check_image(&client, &ImageSource::Archive { file: file.clone(), name }).await;
        }
        is_any
    })
}

async fn check_image(client: &RegistryClient, source: &ImageSource) -> bool {
    let (platform, nobody) = (Platform::new("linux", "amd64", ""), Credentials::anonymous());
    let Ok(image) = client.resolve(source, &platform, &nobody).await else { return false };
    assert_eq!(image.digest, Digest::of(&image.manifest_bytes), "a manifest has another digest");
    assert_eq!(image.manifest.layers.len(), image.config.rootfs.diff_ids.len(), "layers without diffIDs");
    for layer in &image.manifest.layers {
        let range = 0..layer.descriptor.size.min(READ_BYTES);
        let length = range.end;
        if let Ok(read) = client.read_range(source, &layer.descriptor, range, &nobody).await {
            assert_eq!(read.len() as u64, length, "a layer is shorter than the archive said");
        }
    }
    true
}
