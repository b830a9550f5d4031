//! Bringing beforehand what a start will read.

use super::super::Inner;
use crate::lazy::layer::LazyLayer;
use crate::lazy::source::{PackReader, PackedPages, PublishedImage, Touch};
use crate::tree::BLOCK_BYTES;
use sampan_kit::error_chain::ErrorChain;
use sampan_oci::digest::Digest;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

type Layers = HashMap<u32, Arc<LazyLayer>>;

/// Brings a start pack, or else what a trace names, into the layers that are on their way.
pub(crate) fn prefetch(inner: &Inner, diff_ids: &[Digest], published: Option<PublishedImage>) {
    let Some(PublishedImage { pack, trace, .. }) = published else { return };
    let numbered = diff_ids.iter().zip(0u32..);
    let layers: Layers =
        numbered.filter_map(|(id, number)| Some((number, inner.lazy.get(id)?.layer.clone()))).collect();
    let runtime = inner.lazy.around.runtime.clone();
    match pack {
        Some(pack) => {
            expect(&layers, pack.as_ref());
            runtime.spawn(async move { bring_pack(layers, pack, trace).await });
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

async fn bring_pack(layers: Layers, mut pack: Box<dyn PackReader>, trace: Vec<Touch>) {
    let mut failed = false;
    loop {
        match pack.next().await {
            Ok(Some(pages)) => {
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
