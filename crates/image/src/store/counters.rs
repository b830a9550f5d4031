//! What lazy loading has done since the service started, for Prometheus.

use super::ImageStore;
use crate::lazy::traffic::Counters;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that only grow; shown as Prometheus text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageCounters {
    /// Reads of layers on their way whose bytes were here.
    pub hits: u64,
    /// Reads that had to wait.
    pub misses: u64,
    /// Reads that got an error.
    pub failed_reads: u64,
    /// How long reads have waited, all together, in microseconds.
    pub stall_micros: u64,
    /// Compressed bytes that a reader waited for.
    pub demand_bytes: u64,
    /// Compressed bytes that were probably going to be read.
    pub prefetch_bytes: u64,
    /// Compressed bytes that nobody waited for.
    pub background_bytes: u64,
    /// Compressed bytes of layers that were brought whole before they were used.
    pub whole_bytes: u64,
    /// Bytes of what is published with images: front parts of indexes, records of spans, start packs, traces.
    pub index_bytes: u64,
    pub record_bytes: u64,
    pub pack_bytes: u64,
    pub trace_bytes: u64,
    /// Layers that were used before they were here: by an index of this node, a published one, a table of contents of their own.
    pub layers_by_own_index: u64,
    pub layers_by_published_index: u64,
    pub layers_by_contents: u64,
    pub layers_completed: u64,
    /// Layers whose index was not the truth.
    pub layers_refused: u64,
}

impl ImageStore {
    pub fn counters(&self) -> ImageCounters {
        let counters: &Counters = &self.inner.lazy.traffic().counters;
        let published = self.inner.publications.tally();
        let begun = self.inner.lazy.begun();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ImageCounters {
            hits: read(&counters.hits),
            misses: read(&counters.misses),
            failed_reads: read(&counters.failed_reads),
            stall_micros: read(&counters.stall_micros),
            demand_bytes: read(&counters.demand_bytes),
            prefetch_bytes: read(&counters.prefetch_bytes),
            background_bytes: read(&counters.background_bytes),
            whole_bytes: read(&counters.whole_bytes),
            index_bytes: read(&published.fronts),
            record_bytes: read(&published.records),
            pack_bytes: read(&published.packs),
            trace_bytes: read(&published.traces),
            layers_by_own_index: read(&begun.own),
            layers_by_published_index: read(&begun.published),
            layers_by_contents: read(&begun.contents),
            layers_completed: read(&counters.layers_completed),
            layers_refused: read(&counters.layers_refused),
        }
    }
}

impl fmt::Display for ImageCounters {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = |out: &mut fmt::Formatter<'_>, name: &str, help: &str| {
            write!(out, "# HELP {name} {help}\n# TYPE {name} counter\n")
        };
        head(out, "sampan_image_reads_total", "Reads of images that were still arriving.")?;
        for (result, count) in [("hit", self.hits), ("miss", self.misses), ("error", self.failed_reads)] {
            writeln!(out, "sampan_image_reads_total{{result=\"{result}\"}} {count}")?;
        }
        head(out, "sampan_image_stall_seconds_total", "How long such reads have waited, all together.")?;
        writeln!(out, "sampan_image_stall_seconds_total {}", self.stall_micros as f64 / 1e6)?;
        head(out, "sampan_image_fetched_bytes_total", "Bytes fetched for images, by why.")?;
        let classes = [
            ("demand", self.demand_bytes),
            ("prefetch", self.prefetch_bytes),
            ("background", self.background_bytes),
            ("whole", self.whole_bytes),
            ("index", self.index_bytes),
            ("record", self.record_bytes),
            ("pack", self.pack_bytes),
            ("trace", self.trace_bytes),
        ];
        for (class, bytes) in classes {
            writeln!(out, "sampan_image_fetched_bytes_total{{class=\"{class}\"}} {bytes}")?;
        }
        let help = "Layers that were used before they were here, by what was known of them.";
        head(out, "sampan_image_lazy_layers_total", help)?;
        let known = [
            ("own", self.layers_by_own_index),
            ("published", self.layers_by_published_index),
            ("contents", self.layers_by_contents),
        ];
        for (known, layers) in known {
            writeln!(out, "sampan_image_lazy_layers_total{{by=\"{known}\"}} {layers}")?;
        }
        head(out, "sampan_image_layers_total", "Layers that were completed after they had been mounted.")?;
        writeln!(out, "sampan_image_layers_total{{result=\"complete\"}} {}", self.layers_completed)?;
        writeln!(out, "sampan_image_layers_total{{result=\"untrue\"}} {}", self.layers_refused)
    }
}
