//! What the store knows, in memory: records, references, and who uses what. Every change is written before it is seen.

use super::ImageSummary;
use super::paths::Paths;
use super::progress::LayerProgress;
use super::record::{Record, Tag};
use crate::error::ImageError;
use sampan_oci::config::ImageConfig;
use sampan_oci::digest::Digest;
use sampan_oci::reference::ImageSource;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

/// An image on this machine, in use as long as this is held.
#[derive(Debug)]
pub struct Image {
    /// Digest of the configuration.
    pub id: Digest,
    pub manifest_digest: Digest,
    /// The reference it was asked for by, in full; the id if it was asked for by that.
    pub reference: String,
    pub config: ImageConfig,
    /// Allocated bytes, layers shared with other images included.
    pub size_bytes: u64,
    _lease: Arc<Lease>,
}

/// Counted to know whether an image is in use.
#[derive(Debug)]
struct Lease;

#[derive(Debug)]
struct Entry {
    record: Record,
    config: ImageConfig,
    size_bytes: u64,
    lease: Weak<Lease>,
    last_used: SystemTime,
}

#[derive(Debug, Default)]
pub(super) struct Catalog {
    images: HashMap<Digest, Entry>,
    references: HashMap<String, Digest>,
}

impl Catalog {
    /// Takes a record in; of two records that claim a reference, the later claim holds.
    pub(super) fn load(&mut self, record: Record, config: ImageConfig, paths: &Paths) {
        for tag in &record.references {
            let other = self.references.get(&tag.reference).and_then(|id| self.images.get(id));
            let other = other.and_then(|entry| entry.record.tag(&tag.reference)).map(|other| other.since);
            if other.is_none_or(|since| since <= tag.since) {
                self.references.insert(tag.reference.clone(), record.id);
            }
        }
        let size_bytes = size_of(&record, paths);
        // The file's time is when the image was last given to somebody.
        let last_used = std::fs::metadata(paths.record(&record.id)).and_then(|file| file.modified());
        let last_used = last_used.unwrap_or(SystemTime::UNIX_EPOCH);
        self.images.insert(record.id, Entry { record, config, size_bytes, lease: Weak::new(), last_used });
    }

    pub(super) fn by_reference(&mut self, reference: &str) -> Option<Arc<Image>> {
        let id = *self.references.get(reference)?;
        self.image(&id, reference)
    }

    pub(super) fn by_id(&mut self, text: &str) -> Option<Arc<Image>> {
        let id: Digest = text.parse().ok()?;
        self.image(&id, text)
    }

    pub(super) fn image(&mut self, id: &Digest, reference: &str) -> Option<Arc<Image>> {
        let entry = self.images.get_mut(id)?;
        let lease = entry.lease.upgrade().unwrap_or_else(|| Arc::new(Lease));
        entry.lease = Arc::downgrade(&lease);
        entry.last_used = SystemTime::now();
        Some(Arc::new(Image {
            id: *id,
            manifest_digest: entry.record.manifest_digest,
            reference: reference.to_owned(),
            config: entry.config.clone(),
            size_bytes: entry.size_bytes,
            _lease: lease,
        }))
    }

    /// What the registry called `reference` when it was pulled.
    pub(super) fn source_digest(&self, reference: &str) -> Option<Digest> {
        let entry = self.images.get(self.references.get(reference)?)?;
        entry.record.tag(reference).map(|tag| tag.source_digest)
    }

    /// The layers of an image that is here, as progress.
    pub(super) fn cached(&self, id: &Digest) -> Vec<LayerProgress> {
        let layers = self.images.get(id).map(|entry| &entry.record.layers[..]).unwrap_or_default();
        layers.iter().map(|layer| LayerProgress::cached(&layer.digest, layer.bytes)).collect()
    }

    pub(super) fn record(&self, id: &Digest) -> Option<&Record> {
        self.images.get(id).map(|entry| &entry.record)
    }

    pub(super) fn ids(&self) -> Vec<Digest> {
        self.images.keys().copied().collect()
    }

    pub(super) fn unsealed(&self) -> Vec<Digest> {
        let entries = self.images.values().filter(|entry| entry.record.unsealed_boot.is_some());
        entries.map(|entry| entry.record.id).collect()
    }

    /// Whether a record names the layer.
    pub(super) fn has_layer(&self, diff_id: &Digest) -> bool {
        self.images.values().any(|entry| entry.record.layers.iter().any(|layer| layer.diff_id == *diff_id))
    }

    /// The images that need a layer.
    pub(super) fn images_with(&self, diff_id: &Digest) -> Vec<Digest> {
        let needs = |entry: &&Entry| entry.record.layers.iter().any(|layer| layer.diff_id == *diff_id);
        self.images.values().filter(needs).map(|entry| entry.record.id).collect()
    }

    /// The image that nobody uses, and that was used longest ago.
    pub(super) fn least_used(&self) -> Option<Digest> {
        let unused = self.images.values().filter(|entry| entry.lease.strong_count() == 0);
        unused.min_by_key(|entry| (entry.last_used, entry.record.id)).map(|entry| entry.record.id)
    }

    pub(super) fn has_image(&self, id: &Digest) -> bool {
        self.images.contains_key(id)
    }

    /// Adds a new image, written first.
    pub(super) fn add(&mut self, record: Record, config: ImageConfig, paths: &Paths) -> Result<(), ImageError> {
        record.write(paths, false)?;
        self.load(record, config, paths);
        Ok(())
    }

    /// Lets a reference mean an image that is here, and no other any more.
    pub(super) fn tag(&mut self, id: &Digest, tag: Tag, paths: &Paths) -> Result<(), ImageError> {
        let Some(entry) = self.images.get_mut(id) else { return Ok(()) };
        let mut record = entry.record.clone();
        record.references.retain(|known| known.reference != tag.reference);
        record.references.push(tag.clone());
        record.write(paths, record.unsealed_boot.is_none())?;
        entry.record = record;
        let before = self.references.insert(tag.reference.clone(), *id);
        match before {
            Some(before) if before != *id => self.untag(paths, &before, &[tag.reference]),
            _ => Ok(()),
        }
    }

    /// Takes references from an image; it stays, even without any, until it is removed by id.
    pub(super) fn untag(&mut self, paths: &Paths, id: &Digest, references: &[String]) -> Result<(), ImageError> {
        let Some(entry) = self.images.get_mut(id) else { return Ok(()) };
        let mut record = entry.record.clone();
        record.references.retain(|tag| !references.contains(&tag.reference));
        record.write(paths, record.unsealed_boot.is_none())?;
        entry.record = record;
        self.references.retain(|reference, of| of != id || !references.contains(reference));
        Ok(())
    }

    /// Says that everything of an image is on the disk.
    pub(super) fn seal(&mut self, id: &Digest, paths: &Paths) -> Result<(), ImageError> {
        let Some(entry) = self.images.get_mut(id) else { return Ok(()) };
        let record = Record { unsealed_boot: None, ..entry.record.clone() };
        record.write(paths, true)?;
        entry.record = record;
        Ok(())
    }

    pub(super) fn remove(&mut self, paths: &Paths, id: &Digest) -> Result<(), ImageError> {
        paths.remove(&paths.record(id))?;
        self.images.remove(id);
        self.references.retain(|_, of| of != id);
        Ok(())
    }

    pub(super) fn references(&self, id: &Digest) -> Vec<String> {
        let references = self.references.iter().filter(|(_, of)| *of == id);
        references.map(|(reference, _)| reference.clone()).collect()
    }

    pub(super) fn is_in_use(&self, id: &Digest) -> bool {
        self.images.get(id).is_some_and(|entry| entry.lease.strong_count() > 0)
    }

    /// The image that a user means, and the references to take from it: one, or all of them if an id is given, in full or by
    /// at least its first six digits.
    pub(super) fn find_for_removal(&self, text: &str) -> Option<(Digest, Vec<String>)> {
        let reference =
            text.parse::<ImageSource>().map(|source| source.to_string()).unwrap_or_else(|_| text.to_owned());
        if let Some(id) = self.references.get(&reference) {
            return Some((*id, vec![reference]));
        }
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        if prefix.len() < 6 {
            return None;
        }
        let mut matching = self.images.keys().filter(|id| id.hex().starts_with(prefix));
        match (matching.next(), matching.next()) {
            (Some(id), None) => Some((*id, self.references(id))),
            _ => None,
        }
    }

    /// See [`super::ImageStore::find`].
    pub(super) fn find(&mut self, text: &str) -> Option<Arc<Image>> {
        let reference = text.parse::<ImageSource>().ok().map(|source| source.to_string());
        if let Some(reference) = reference.filter(|reference| self.references.contains_key(reference)) {
            return self.by_reference(&reference);
        }
        let id = self.find_id(text)?;
        self.image(&id, text)
    }

    /// See [`super::ImageStore::find_id`].
    pub(super) fn find_id(&self, text: &str) -> Option<Digest> {
        let source = text.parse::<ImageSource>().ok();
        let reference = source.as_ref().map(ToString::to_string);
        if let Some(id) = reference.and_then(|reference| self.references.get(&reference)) {
            return Some(*id);
        }
        let digested = match &source {
            Some(ImageSource::Registry(wanted)) => wanted.digest().and_then(|digest| {
                let name = |tag: &Tag| repository_of(&tag.reference);
                let wanted = Some((wanted.registry().to_owned(), wanted.repository().to_owned()));
                let has = |entry: &&Entry| {
                    entry.record.has(digest) && entry.record.references.iter().any(|tag| name(tag) == wanted)
                };
                self.images.values().find(has).map(|entry| entry.record.id)
            }),
            _ => None,
        };
        digested.or_else(|| self.find_for_removal(text).map(|(id, _)| id))
    }

    pub(super) fn summary(&self, id: &Digest, paths: &Paths) -> Option<ImageSummary> {
        let entry = self.images.get(id)?;
        let mut references = self.references(id);
        references.sort();
        let is_ours = |tag: &&Tag| references.contains(&tag.reference);
        let mut repo_digests: Vec<String> =
            entry.record.references.iter().filter(is_ours).filter_map(Tag::repo_digest).collect();
        repo_digests.sort();
        repo_digests.dedup();
        Some(ImageSummary {
            id: entry.record.id,
            references,
            manifest_digest: entry.record.manifest_digest,
            repo_digests,
            user: entry.config.config.user.clone(),
            created: entry.config.created.clone(),
            pulled_at: entry.record.pulled_at,
            size_bytes: size_of(&entry.record, paths),
            architecture: entry.config.platform.architecture.clone(),
            in_use: entry.lease.strong_count() > 0,
        })
    }

    pub(super) fn list(&self, paths: &Paths) -> Result<Vec<ImageSummary>, ImageError> {
        let mut list: Vec<ImageSummary> = self.images.keys().filter_map(|id| self.summary(id, paths)).collect();
        list.sort_by(|one, two| (&one.references, &one.id).cmp(&(&two.references, &two.id)));
        Ok(list)
    }
}

/// Registry and repository of a reference; a directory has none.
fn repository_of(reference: &str) -> Option<(String, String)> {
    match reference.parse().ok()? {
        ImageSource::Registry(reference) => Some((reference.registry().to_owned(), reference.repository().to_owned())),
        _ => None,
    }
}

impl Tag {
    /// The reference's name with the digest that it stood for.
    fn repo_digest(&self) -> Option<String> {
        let (registry, repository) = repository_of(&self.reference)?;
        Some(format!("{registry}/{repository}@{}", self.source_digest))
    }
}

impl Record {
    /// Whether the image's manifest, or what a reference to it stood for, has this digest.
    fn has(&self, digest: &Digest) -> bool {
        self.manifest_digest == *digest || self.references.iter().any(|tag| tag.source_digest == *digest)
    }

    fn tag(&self, reference: &str) -> Option<&Tag> {
        self.references.iter().find(|tag| tag.reference == reference)
    }
}

fn size_of(record: &Record, paths: &Paths) -> u64 {
    let mut diff_ids: Vec<&Digest> = record.layers.iter().map(|layer| &layer.diff_id).collect();
    diff_ids.sort();
    diff_ids.dedup();
    let layers = diff_ids.into_iter().map(|id| paths.allocated(&paths.blob(id)) + paths.allocated(&paths.index(id)));
    layers.sum::<u64>() + paths.allocated(&paths.metadata(&record.id))
}
