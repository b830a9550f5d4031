//! One image as it is remembered across restarts.

use super::paths::{Paths, rename, write_new};
use crate::error::ImageError;
use crate::limits::RECORD_BYTES_MAX;
use sampan_oci::digest::Digest;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The version that is written and read.
const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    pub(super) version: u32,
    /// Digest of the configuration.
    pub(super) id: Digest,
    pub(super) manifest_digest: Digest,
    pub(super) references: Vec<Tag>,
    /// The configuration as the registry has it, byte for byte.
    pub(super) config: String,
    /// Lowest first.
    pub(super) layers: Vec<LayerRecord>,
    /// diffIDs of the blobs that the metadata names, in the order of its device table.
    pub(super) devices: Vec<Digest>,
    pub(super) metadata_bytes: u64,
    /// Whether any file has a POSIX ACL, so that the mount must know them; assumed of records that do not say.
    #[serde(default = "unless_said")]
    pub(super) acls: bool,
    /// It was pulled with a login that somebody brought; see `access`.
    #[serde(default)]
    pub(super) guarded: bool,
    pub(super) pulled_at: jiff::Timestamp,
    /// The boot in which the files were written, until they are known to be on the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) unsealed_boot: Option<String>,
}

const fn unless_said() -> bool {
    true
}

/// A reference that means this image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Tag {
    pub(super) reference: String,
    /// What the registry says the reference is: a manifest, or an index of several.
    pub(super) source_digest: Digest,
    pub(super) since: jiff::Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LayerRecord {
    pub(super) digest: Digest,
    /// Bytes as the registry has it.
    pub(super) bytes: u64,
    pub(super) diff_id: Digest,
    pub(super) blob_bytes: u64,
}

impl Record {
    /// Reads a record that is whole and is what its name says.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let mut bytes = Vec::new();
        File::open(path).ok()?.take(RECORD_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        let record: Self = serde_json::from_slice(&bytes).ok()?;
        let is_right = record.version == VERSION
            && path.file_name().is_some_and(|name| name == record.id.hex().as_str())
            && record.id.matches(record.config.as_bytes());
        is_right.then_some(record)
    }

    /// Replaces the record's file at once. `sync` waits for the disk.
    pub(super) fn write(&self, paths: &Paths, sync: bool) -> Result<(), ImageError> {
        let path = paths.record(&self.id);
        let temporary = paths.incoming.join(format!("record-{}", self.id.hex()));
        let bytes = serde_json::to_vec_pretty(self).map_err(|error| ImageError::file("encode", &path)(error.into()))?;
        paths.remove(&temporary)?;
        let file = write_new(&temporary, &bytes)?;
        if sync {
            file.sync_all().map_err(ImageError::file("sync", &temporary))?;
        }
        rename(&temporary, &path)?;
        if sync {
            sync_directory(&paths.records)?;
        }
        Ok(())
    }

    pub(super) fn new_version() -> u32 {
        VERSION
    }
}

pub(super) fn sync_directory(path: &Path) -> Result<(), ImageError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(ImageError::file("sync", path))
}
