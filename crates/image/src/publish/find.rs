//! Finding what others have published about an image, and believing only what may be believed.
//!
//! First the registry is asked, then, for layers that it knows nothing of, the index cache. Descriptions are checked before
//! anything that they describe is fetched. Front parts of all layers come at once, together with the head of the pack.

use super::Publications;
use super::cache::CacheEntry;
use super::describe::{ARTIFACT_TYPE, Description, Subject, read_artifact};
use super::pack_reader::SignedPack;
use super::place::Place;
use super::tally::{CountedRecords, Tally};
use crate::index::{HEADER_BYTES, LayerIndex, front_range};
use crate::lazy::source::{IndexSource, PackReader, PublishedImage, PublishedLayer, SourceError, Touch, WantedImage};
use crate::limits::{FIND_MAX, INDEX_FRONT_STORED_BYTES_MAX, TRACE_STORED_BYTES_MAX};
use crate::trace::Trace;
use async_trait::async_trait;
use sampan_kit::error_chain::ErrorChain;
use sampan_oci::manifest::Descriptor;
use sampan_oci::reference::ImageSource;
use sampan_registry::{FetchError, Referrer};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::timeout;

type Found = (Description, Place);

#[async_trait]
impl IndexSource for Publications {
    async fn find(&self, wanted: &WantedImage) -> Option<PublishedImage> {
        let found = timeout(FIND_MAX, self.look(wanted)).await;
        found.unwrap_or_else(|_elapsed| {
            tracing::warn!(image = %wanted.source, "looking for a published index takes too long; doing without");
            None
        })
    }
}

impl Publications {
    async fn look(&self, wanted: &WantedImage) -> Option<PublishedImage> {
        let mut found = self.believed(wanted, self.in_registry(wanted).await).await;
        let missing = layers_without(wanted, &found);
        if self.cache.is_some() {
            let has_pack = found.iter().any(|(description, _)| matches!(description.subject, Subject::Pack { .. }));
            let cached = self.in_cache(wanted, &missing, has_pack).await;
            found.extend(self.believed(wanted, cached).await);
        }
        if layers_without(wanted, &found).len() == wanted.layers.len() {
            return None;
        }
        Some(fetch(wanted, found, &self.tally).await)
    }

    /// What the image's own repository says about it.
    async fn in_registry(&self, wanted: &WantedImage) -> Vec<Found> {
        let ImageSource::Registry(reference) = &wanted.source else { return Vec::new() };
        let (client, credentials) = (self.client.clone(), wanted.credentials.clone());
        let (reference, manifest) = (reference.clone(), wanted.manifest);
        let ask = async move {
            let referrers = client.referrers(&reference, &manifest, ARTIFACT_TYPE, &credentials).await?;
            // The registry lists them as it likes; ours replace one another, so that there is one.
            let Some(newest) = newest(&referrers) else { return Ok(Vec::new()) };
            let bytes = client.artifact(&reference, &newest.digest, &credentials).await?;
            Ok::<_, FetchError>(read_artifact(&bytes))
        };
        let runtime = Handle::current();
        // The client's futures cannot move between threads.
        let asked = tokio::task::spawn_blocking(move || runtime.block_on(ask)).await;
        let descriptions = match asked {
            Ok(Ok(descriptions)) => descriptions,
            Ok(Err(error)) => {
                tracing::info!(image = %wanted.source, error = %ErrorChain(&error), "no published index was found");
                return Vec::new();
            }
            Err(_stopped) => return Vec::new(),
        };
        let place = |description: &Description| Place::Blob {
            client: self.client.clone(),
            source: wanted.source.clone(),
            blob: blob_of(description),
            credentials: wanted.credentials.clone(),
        };
        descriptions
            .into_iter()
            .map(|description| {
                let place = place(&description);
                (description, place)
            })
            .collect()
    }

    async fn in_cache(&self, wanted: &WantedImage, missing: &[usize], has_pack: bool) -> Vec<Found> {
        let Some(cache) = &self.cache else { return Vec::new() };
        let layers = missing.iter().filter_map(|layer| wanted.layers.get(*layer));
        let mut entries: Vec<CacheEntry> = layers.map(|layer| CacheEntry::Index(layer.descriptor.digest)).collect();
        if !has_pack {
            entries.extend([CacheEntry::Pack(wanted.manifest), CacheEntry::Trace(wanted.manifest)]);
        }
        let mut asking = JoinSet::new();
        for entry in entries {
            let cache = cache.clone();
            asking.spawn(async move { cache.find(entry).await });
        }
        asking.join_all().await.into_iter().flatten().collect()
    }

    /// Those that are about this image and signed by somebody whom this machine believes.
    async fn believed(&self, wanted: &WantedImage, found: Vec<Found>) -> Vec<Found> {
        if found.is_empty() {
            return found;
        }
        let (keys, image, manifest) = (self.keys.clone(), wanted.source.to_string(), wanted.manifest);
        let about: Vec<Subject> = subjects(wanted).collect();
        let check = move || {
            let is_ours = |subject: &Subject| match subject {
                Subject::Index { .. } => about.contains(subject),
                Subject::Pack { manifest: of } | Subject::Trace { manifest: of } => *of == manifest,
            };
            let mut said = false;
            let mut believed = Vec::new();
            for (description, place) in found.into_iter().filter(|(description, _)| is_ours(&description.subject)) {
                match description.check(&keys) {
                    Ok(Ok(())) => believed.push((description, place)),
                    Ok(Err(reason)) if !said => {
                        said = true;
                        tracing::warn!(image, %reason, "a published index is not used");
                    }
                    Ok(Err(_)) => {}
                    Err(error) => tracing::error!(error = %ErrorChain(&error), "published indexes cannot be checked"),
                }
            }
            believed
        };
        tokio::task::spawn_blocking(check).await.unwrap_or_default()
    }
}

fn newest(referrers: &[Referrer]) -> Option<&Referrer> {
    const CREATED: &str = "org.opencontainers.image.created";
    // RFC 3339 in UTC, as we write it, sorts as text.
    referrers.iter().max_by(|one, two| one.annotations.get(CREATED).cmp(&two.annotations.get(CREATED)))
}

fn subjects(wanted: &WantedImage) -> impl Iterator<Item = Subject> {
    wanted.layers.iter().zip(&wanted.diff_ids).map(|(layer, diff_id)| Subject::Index {
        layer: layer.descriptor.digest,
        layer_bytes: layer.descriptor.size,
        diff_id: *diff_id,
    })
}

fn layers_without(wanted: &WantedImage, found: &[Found]) -> Vec<usize> {
    let has = |subject: &Subject| found.iter().any(|(description, _)| description.subject == *subject);
    subjects(wanted).enumerate().filter(|(_, subject)| !has(subject)).map(|(number, _)| number).collect()
}

fn blob_of(description: &Description) -> Descriptor {
    Descriptor {
        media_type: String::new(),
        digest: description.digest,
        size: description.size,
        annotations: BTreeMap::new(),
        platform: None,
    }
}

/// Brings front parts, the pack's head and the trace here, all at once. What cannot be had, or is not what was signed, is left out.
async fn fetch(wanted: &WantedImage, found: Vec<Found>, tally: &Arc<Tally>) -> PublishedImage {
    let image = wanted.source.to_string();
    let mut fronts = JoinSet::new();
    for (number, subject) in subjects(wanted).enumerate() {
        let Some((description, place)) = found.iter().find(|(description, _)| description.subject == subject).cloned()
        else {
            continue;
        };
        let tally = tally.clone();
        fronts.spawn(async move { (number, front(&description, place, tally).await) });
    }
    let of_image = |is: fn(&Subject) -> bool| found.iter().find(|(description, _)| is(&description.subject)).cloned();
    let pack = of_image(|subject| matches!(subject, Subject::Pack { .. }));
    let diff_ids = wanted.diff_ids.clone();
    let pack = async {
        let (description, place) = pack?;
        SignedPack::open(&description, place, &diff_ids, tally.clone())
            .await
            .map_err(|error| complain(&image, "pack", &error))
            .ok()
    };
    let trace = of_image(|subject| matches!(subject, Subject::Trace { .. }));
    let trace = async {
        let (description, place) = trace?;
        touches(&description, &place, tally).await.map_err(|error| complain(&image, "trace", &error)).ok()
    };
    let (pack, trace, fronts) = tokio::join!(pack, trace, fronts.join_all());
    let mut layers: Vec<Option<PublishedLayer>> = wanted.layers.iter().map(|_| None).collect();
    for (number, outcome) in fronts {
        match outcome {
            Ok(layer) => layers[number] = Some(layer),
            Err(error) => complain(&image, "index", &error),
        }
    }
    let pack = pack.map(|pack| Box::new(pack) as Box<dyn PackReader>);
    PublishedImage { layers, pack, trace: trace.unwrap_or_default() }
}

fn complain(image: &str, what: &'static str, error: &SourceError) {
    tracing::warn!(image, what, error = %ErrorChain(error), "something published with an image cannot be used");
}

async fn front(description: &Description, place: Place, tally: Arc<Tally>) -> Result<PublishedLayer, SourceError> {
    let head = description.head;
    if head.bytes > INDEX_FRONT_STORED_BYTES_MAX + HEADER_BYTES as u64 {
        return Err(SourceError::Damaged("the front part is larger than the limit".to_owned()));
    }
    let bytes = place.read_all(0..head.bytes).await?;
    Tally::add(&tally.fronts, &bytes);
    if !head.matches(&bytes) {
        return Err(SourceError::Damaged("it is not what was signed".to_owned()));
    }
    let decoded = tokio::task::spawn_blocking(move || {
        // What was signed may still be no index of ours: an older program's, for example.
        let end = front_range(&bytes)?.end;
        Ok::<_, crate::index::IndexError>((LayerIndex::decode(&bytes)?, end == bytes.len() as u64))
    });
    let decoded = decoded.await.map_err(|_stopped| SourceError::Damaged("decoding it broke off".to_owned()))?;
    let (front, is_whole) = decoded.map_err(|error| SourceError::Damaged(ErrorChain(&error).to_string()))?;
    let Subject::Index { layer, layer_bytes, diff_id } = description.subject else {
        return Err(SourceError::Damaged("it is no index".to_owned()));
    };
    if !is_whole || front.layer_digest != layer || front.layer_bytes != layer_bytes || front.diff_id != diff_id {
        return Err(SourceError::Damaged("it describes another layer than its signature says".to_owned()));
    }
    Ok(PublishedLayer { front, front_end: head.bytes, records: Arc::new(CountedRecords { place, tally }) })
}

async fn touches(description: &Description, place: &Place, tally: &Tally) -> Result<Vec<Touch>, SourceError> {
    if description.size > TRACE_STORED_BYTES_MAX || description.head.bytes != description.size {
        return Err(SourceError::Damaged("the trace is larger than the limit".to_owned()));
    }
    let bytes = place.read_all(0..description.size).await?;
    Tally::add(&tally.traces, &bytes);
    if !description.head.matches(&bytes) {
        return Err(SourceError::Damaged("it is not what was signed".to_owned()));
    }
    let trace = Trace::decode(&bytes).map_err(|fault| SourceError::Damaged(fault.to_string()))?;
    Ok(trace.touches())
}
