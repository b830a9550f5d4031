//! How far a pull is, layer by layer.

use sampan_oci::digest::Digest;
use serde::Serialize;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerState {
    /// Others go first.
    Waiting,
    /// Bytes arrive, and are unpacked as they do.
    Downloading,
    /// All bytes are here; the last of them are being unpacked.
    Unpacking,
    Done,
    /// It was here already.
    Cached,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerProgress {
    /// Digest of the layer in the registry.
    pub layer: String,
    pub state: LayerState,
    /// Compressed bytes, so far and in all.
    pub bytes: u64,
    pub total_bytes: u64,
}

impl LayerProgress {
    pub(super) fn cached(layer: &Digest, total_bytes: u64) -> Self {
        Self { layer: layer.to_string(), state: LayerState::Cached, bytes: total_bytes, total_bytes }
    }
}

/// Where progress is told, if anyone listens. The number of messages is bounded: a few dozen a layer.
#[derive(Debug, Clone, Default)]
pub struct ProgressSender(Option<UnboundedSender<LayerProgress>>);

impl ProgressSender {
    /// Nobody listens.
    pub fn none() -> Self {
        Self(None)
    }

    pub fn channel() -> (Self, UnboundedReceiver<LayerProgress>) {
        let (sender, receiver) = unbounded_channel();
        (Self(Some(sender)), receiver)
    }

    /// A listener who has gone is no error.
    pub(super) fn send(&self, progress: LayerProgress) {
        if let Some(sender) = &self.0 {
            sender.send(progress).ok();
        }
    }
}
