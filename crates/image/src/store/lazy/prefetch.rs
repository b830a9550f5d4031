//! Bringing beforehand what a start will read.

use super::super::{Image, ImageStore, Inner};
use super::{Outcome, Served};
use crate::lazy::layer::LazyLayer;
use crate::lazy::limits::START_MAX;
use crate::lazy::source::{PackReader, PackedPages, PageNumber, PublishedImage, Touch};
use crate::lazy::traffic::Traffic;
use crate::trace::shape_of;
use crate::tree::BLOCK_BYTES;
use sampan_kit::error_chain::ErrorChain;
use sampan_oci::digest::Digest;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

type Layers = HashMap<u32, Arc<LazyLayer>>;

/// Brings a start pack, or else what a trace names, into the layers that are on their way. What this node has seen of earlier
/// starts serves where nothing is published.
pub(crate) fn prefetch(inner: &Inner, manifest: &Digest, diff_ids: &[Digest], published: Option<PublishedImage>) {
    let (pack, mut trace) = published.map_or((None, Vec::new()), |published| (published.pack, published.trace));
    if trace.is_empty() {
        let newest = inner.publications.traces().newest(manifest);
        trace = newest.map(|(_, trace)| trace.touches()).unwrap_or_default();
    }
    let numbered = diff_ids.iter().zip(0u32..);
    let layers: Layers =
        numbered.filter_map(|(id, number)| Some((number, inner.lazy.get(id)?.layer.clone()))).collect();
    let runtime = inner.lazy.around.runtime.clone();
    match pack {
        Some(pack) => {
            expect(&layers, pack.as_ref());
            let traffic = inner.lazy.around.traffic.clone();
            runtime.spawn(async move { bring_pack(layers, pack, trace, &traffic).await });
        }
        None => follow_trace(&layers, &trace),
    }
}

fn expect(layers: &Layers, pack: &dyn PackReader) {
    let mut pages: HashMap<u32, HashSet<u32>> = HashMap::new();
    for page in pack.pages() {
        pages.entry(page.layer).or_default().insert(page.page);
    }
    for (layer, pages) in pages {
        if let Some(layer) = layers.get(&layer) {
            layer.expect_pack(pages);
        }
    }
}

async fn bring_pack(layers: Layers, mut pack: Box<dyn PackReader>, trace: Vec<Touch>, traffic: &Traffic) {
    // Readers wait for it: the background keeps off the line.
    let urgent = traffic.urgent();
    let mut failed = false;
    loop {
        match pack.next().await {
            Ok(Some(pages)) => {
                traffic.expect_readers();
                if let Err(error) = accept(&layers, &pages).await {
                    tracing::warn!(%error, "a start pack cannot be kept");
                    failed = true;
                    break;
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "a start pack cannot be read to its end");
                failed = true;
                break;
            }
        }
    }
    drop(urgent);
    for layer in layers.values() {
        layer.pack_ended();
    }
    if failed {
        follow_trace(&layers, &trace);
    }
}

async fn accept(layers: &Layers, packed: &PackedPages) -> std::io::Result<()> {
    let (layers, packed) = (layers.clone(), packed.clone());
    let kept = tokio::task::spawn_blocking(move || {
        for (number, layer) in &layers {
            let pages = packed.pages.iter().zip(packed.bytes.chunks_exact(BLOCK_BYTES as usize));
            let own = pages.filter(|(page, _)| page.layer == *number);
            layer.accept(own.map(|(page, bytes)| (page.page, bytes)))?;
        }
        Ok(())
    });
    kept.await.unwrap_or_else(|panic| Err(std::io::Error::other(panic)))
}

fn follow_trace(layers: &Layers, trace: &[Touch]) {
    for touch in trace {
        if let Some(layer) = layers.get(&touch.first.layer) {
            let first = u64::from(touch.first.page);
            layer.prefetch(first..first + u64::from(touch.pages));
        }
    }
}

impl ImageStore {
    /// Remembers what the first start of an image that is still arriving reads, for later starts of the same command here and,
    /// once it is published, elsewhere. Returns at once.
    pub fn trace_start(&self, image: &Arc<Image>, command: &[String]) {
        let diff_ids = image.config.rootfs.diff_ids.clone();
        let arriving: Vec<Option<Arc<Served>>> = diff_ids.iter().map(|id| self.inner.lazy.get(id)).collect();
        let first_layer = arriving.iter().flatten().next().cloned();
        // Only one start of an image reads pages for the first time.
        let Some(first_layer) = first_layer.filter(|served| !served.traced.swap(true, Ordering::AcqRel)) else {
            return;
        };
        let (store, manifest, shape) = (Arc::downgrade(&self.inner), image.manifest_digest, shape_of(command));
        tokio::spawn(async move {
            let mut outcome = first_layer.outcome.subscribe();
            let ended = outcome.wait_for(|outcome| matches!(outcome, Outcome::Ended { .. }));
            // Whichever comes first.
            tokio::time::timeout(START_MAX, ended).await.ok();
            let Some(inner) = store.upgrade() else { return };
            let touches = touches_of(&arriving);
            let recorded =
                tokio::task::spawn_blocking(move || inner.publications.traces().record(&manifest, &shape, &touches));
            if let Ok(Err(error)) = recorded.await {
                tracing::warn!(image = %manifest, error = %ErrorChain(&error), "a start cannot be remembered");
            }
        });
    }
}

/// What was read of an image's layers, in the order of the first read.
fn touches_of(arriving: &[Option<Arc<Served>>]) -> Vec<Touch> {
    let numbered = arriving.iter().zip(0u32..).filter_map(|(served, layer)| Some((served.as_ref()?, layer)));
    let mut pages: Vec<(u64, PageNumber)> = numbered
        .flat_map(|(served, layer)| {
            let touched = served.layer.touched().into_iter();
            touched.map(move |(when, page)| (when, PageNumber { layer, page }))
        })
        .collect();
    pages.sort_unstable();
    let mut touches: Vec<Touch> = Vec::new();
    for (_, page) in pages {
        match touches.last_mut() {
            Some(last) if last.first.layer == page.layer && last.first.page + last.pages == page.page => {
                last.pages += 1
            }
            _ => touches.push(Touch { first: page, pages: 1 }),
        }
    }
    touches
}
