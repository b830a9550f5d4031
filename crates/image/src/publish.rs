//! Indexes, start packs and traces from elsewhere, and our own for others.
//!
//! ```text
//!  registry                                          index cache: a folder, or a web server
//!    image manifest                                    sha256/<layer>.index      the index
//!      ▲ subject                                       sha256/<layer>.json       its description, signed
//!    artifact manifest: one description for each       sha256/<manifest>.pack, .trace, with theirs
//!      layer's index, for packs and traces, signed
//!        └─ blobs: the files themselves
//! ```
//!
//! A *description* ([`describe`]) is an OCI descriptor whose annotations say what the file is about and who signed that. What is signed
//! is a short text ([`describe::Subject`]) that names the layer (digest, size and diffID) or the image (digest of its manifest), and the
//! length and BLAKE3 of the file's *head*. The head of an index or a pack vouches for the rest of the file, so nothing that was
//! not signed is ever used, and no file need be fetched whole to know that.
//!
//! Whom to trust is DESIGN.md's rule: this node, its fleet, and keys that somebody configured ([`crate::keys`]). Everything else
//! is as good as not there, and said once in the log. Finding nothing costs one request (two of a registry whose kind is not
//! known yet); failures cost the time that they take and are never a pull's.

pub mod cache;
pub mod describe;
mod error;
mod find;
mod local_pack;
mod pack_reader;
mod place;
mod push;
mod tally;
#[cfg(test)]
mod tests;

pub use cache::CacheLocation;
pub use error::PublishError;
pub use local_pack::PackReport;
pub use push::{PublishReport, Publishable, PublishableLayer, PublishedFile};

use crate::keys::KeyRing;
use crate::trace::TraceStore;
use cache::IndexCache;
use sampan_registry::RegistryClient;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tally::Tally;

/// What is published about images, both ways. Cheap to clone.
#[derive(Clone)]
pub struct Publications {
    client: RegistryClient,
    keys: KeyRing,
    cache: Option<IndexCache>,
    traces: TraceStore,
    /// Where packs that were made here are kept.
    packs: PathBuf,
    tally: Arc<Tally>,
}

impl Publications {
    /// Below a data directory; `client` is the one that pulls.
    pub fn new(client: RegistryClient, data_dir: &Path, cache: Option<CacheLocation>) -> Self {
        let images = data_dir.join("images");
        Self {
            cache: cache.map(|location| IndexCache::new(location, client.clone())),
            client,
            keys: KeyRing::new(data_dir),
            traces: TraceStore::new(&images),
            packs: images.join("packs"),
            tally: Arc::default(),
        }
    }

    pub fn keys(&self) -> &KeyRing {
        &self.keys
    }

    pub fn traces(&self) -> &TraceStore {
        &self.traces
    }

    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }
}

impl std::fmt::Debug for Publications {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Publications").field("cache", &self.cache).finish_non_exhaustive()
    }
}
