//! Buffers that several threads read and that return to their pool when the last one is done.

use bytes::Bytes;
use sampan_oci::inflate::OutputBuffer;
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers waiting to be used again.
#[derive(Debug, Default)]
pub(super) struct Pool {
    spare: Mutex<Vec<OutputBuffer>>,
}

impl Pool {
    pub(super) fn take(&self, capacity: usize) -> OutputBuffer {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(|| OutputBuffer::with_capacity(capacity))
    }

    fn give(&self, buffer: OutputBuffer) {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

/// Some bytes of the uncompressed stream.
#[derive(Debug)]
pub(super) struct Piece(Content);

#[derive(Debug)]
enum Content {
    /// The buffer is only missing while it is dropped.
    Pooled {
        buffer: Option<OutputBuffer>,
        pool: Arc<Pool>,
    },
    Shared(Bytes),
}

impl Piece {
    pub(super) fn pooled(buffer: OutputBuffer, pool: &Arc<Pool>) -> Self {
        Self(Content::Pooled { buffer: Some(buffer), pool: pool.clone() })
    }

    pub(super) fn shared(bytes: Bytes) -> Self {
        Self(Content::Shared(bytes))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match &self.0 {
            Content::Pooled { buffer, .. } => buffer.as_ref().map(OutputBuffer::bytes).unwrap_or_default(),
            Content::Shared(bytes) => bytes,
        }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Content::Pooled { buffer, pool } = &mut self.0
            && let Some(buffer) = buffer.take()
        {
            pool.give(buffer);
        }
    }
}
