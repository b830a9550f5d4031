//! OCI image layouts on the disk, as a registry of the simplest kind.

use sampan_oci::digest::Digest;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A layer: its media type, its bytes, and the diffID that the configuration gives it.
pub(crate) struct LayerBytes {
    pub(crate) media_type: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) diff_id: Digest,
}

pub(crate) fn plain_layer(tar: &[u8]) -> LayerBytes {
    LayerBytes { media_type: TAR, bytes: tar.to_vec(), diff_id: Digest::of(tar) }
}

pub(crate) struct Layout {
    pub(crate) directory: PathBuf,
    manifests: Vec<serde_json::Value>,
}

impl Layout {
    pub(crate) fn new(directory: &Path) -> Self {
        fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
        fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { directory: directory.to_owned(), manifests: Vec::new() }
    }

    /// Adds an image and gives the reference that names it.
    pub(crate) fn image(&mut self, tag: &str, architecture: &str, layers: &[LayerBytes]) -> String {
        let diff_ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Cmd": [tag]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let (config, config_bytes) = self.put(config.to_string().as_bytes());
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| {
                let (digest, size) = self.put(&layer.bytes);
                json!({"mediaType": layer.media_type, "digest": digest, "size": size})
            })
            .collect();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type, "layers": layers,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_bytes},
        });
        let (digest, size) = self.put(manifest.to_string().as_bytes());
        let name = json!({"org.opencontainers.image.ref.name": tag});
        self.manifests.push(json!({"mediaType": media_type, "digest": digest, "size": size, "annotations": name}));
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        fs::write(self.directory.join("index.json"), index.to_string()).unwrap();
        format!("oci:{}:{tag}", self.directory.display())
    }

    fn put(&self, bytes: &[u8]) -> (String, usize) {
        let digest = Digest::of(bytes);
        fs::write(self.directory.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        (digest.to_string(), bytes.len())
    }
}
