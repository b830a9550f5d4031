//! Counts and times of requests.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use sampan_store::Store;

use crate::error::ApiError;

/// What a request was.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    /// `get`, `list`, `create` …
    pub(crate) verb: &'static str,
    /// `pods`, `pods/log`; empty for what is no resource. From the table of resources, so bounded.
    pub(crate) resource: String,
    /// The answer's status.
    pub(crate) code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TimeLabels {
    verb: &'static str,
    resource: String,
}

type Times = Family<TimeLabels, Histogram, fn() -> Histogram>;

pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    times: Times,
    revision: Gauge,
}

/// From half a millisecond to a minute.
fn histogram() -> Histogram {
    Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0])
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("sampan_apiserver");
        let requests = Family::default();
        registry.register("requests", "Requests answered", requests.clone());
        let times = Times::new_with_constructor(histogram);
        registry.register("request_duration_seconds", "Time to the head of the answer", times.clone());
        let revision = Gauge::default();
        registry.register("store_revision", "The store's newest revision", revision.clone());
        Self { registry, requests, times, revision }
    }

    pub(crate) fn observe(&self, labels: RequestLabels, took: Duration) {
        let time = TimeLabels { verb: labels.verb, resource: labels.resource.clone() };
        // How long a stream is open says nothing about the server.
        if labels.verb != "connect" {
            self.times.get_or_create(&time).observe(took.as_secs_f64());
        }
        self.requests.get_or_create(&labels).inc();
    }

    /// In the OpenMetrics text format.
    pub(crate) fn encode(&self, store: &Store) -> Result<String, ApiError> {
        self.revision.set(i64::try_from(store.revision()).unwrap_or(i64::MAX));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .map_err(|error| ApiError::internal(format!("cannot encode metrics: {error}")))?;
        Ok(text)
    }
}
