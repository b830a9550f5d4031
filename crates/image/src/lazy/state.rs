//! What is kept of a layer on its way, so that the next process of the same boot goes on where this one was killed.
//!
//! ```text
//! DATA_DIR/images/lazy/<diffID>/
//!   state.json   which layer, from where, under which number it is served, in which boot
//!   index        the index it is read by
//!   pages, map           see `pages`
//!   compressed, extents  see `compressed`
//! ```
//!
//! A folder is made under another name and renamed, so that a folder of that name is whole. None of it is ever synced: in another
//! boot it is not believed and removed.

use crate::error::ImageError;
use crate::store::write_new;
use sampan_oci::digest::Digest;
use sampan_oci::manifest::Descriptor;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::path::Path;

const VERSION: u32 = 1;
const NAME: &str = "state.json";
/// Name of the index in the folder.
pub(crate) const INDEX: &str = "index";
const STATE_BYTES_MAX: u64 = 1 << 20;

/// What an index was made from, and so what the records of its spans are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum ReadBy {
    /// From the whole layer, here or elsewhere.
    #[default]
    Index,
    /// From the layer's own table of contents.
    Contents,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LayerState {
    version: u32,
    /// Under which it is served.
    pub(crate) number: u64,
    /// Uncompressed.
    pub(crate) diff_id: Digest,
    /// As the registry has it.
    pub(crate) layer: Descriptor,
    /// The image by which it is fetched.
    pub(crate) source: String,
    /// Where the front part ends in the file that was published; nothing for an index that is here whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) published_front_end: Option<u64>,
    #[serde(default)]
    pub(crate) read_by: ReadBy,
    /// The boot in which all this was written.
    pub(crate) boot_id: String,
}

impl LayerState {
    pub(crate) fn new(number: u64, diff_id: Digest, layer: Descriptor, source: String, boot_id: String) -> Self {
        let (published_front_end, read_by) = (None, ReadBy::Index);
        Self { version: VERSION, number, diff_id, layer, source, published_front_end, read_by, boot_id }
    }

    /// Says that the index was published, in a file whose front part ends there.
    pub(crate) fn published(self, front_end: Option<u64>) -> Self {
        Self { published_front_end: front_end, ..self }
    }

    pub(crate) fn read_by(self, read_by: ReadBy) -> Self {
        Self { read_by, ..self }
    }

    pub(crate) fn write(&self, directory: &Path) -> Result<(), ImageError> {
        let path = directory.join(NAME);
        let bytes = serde_json::to_vec(self).map_err(|error| ImageError::file("encode", &path)(error.into()))?;
        write_new(&path, &bytes)?;
        Ok(())
    }

    /// `None` where there is nothing to be believed.
    pub(crate) fn read(directory: &Path, boot_id: &str) -> Option<Self> {
        let mut bytes = Vec::new();
        File::open(directory.join(NAME)).ok()?.take(STATE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        let state: Self = serde_json::from_slice(&bytes).ok()?;
        (state.version == VERSION && state.boot_id == boot_id).then_some(state)
    }
}
