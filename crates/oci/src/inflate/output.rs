//! The buffer that a decoder fills: new bytes, and in front of them the 32 KiB of history that matches reach into.

use super::WINDOW_BYTES;

/// A buffer for decoded bytes.
///
/// Only [`bytes`](Self::bytes) concerns a caller; the history in front is the decoder's business. A buffer can leave
/// the decoder (to be written or hashed elsewhere) while another takes its place, and come back later: see
/// [`GzipDecoder::replace_output`](crate::gzip::GzipDecoder::replace_output).
#[derive(Debug)]
pub struct OutputBuffer {
    /// History at `..WINDOW_BYTES`, right-aligned; new bytes at `WINDOW_BYTES..end`.
    pub(super) bytes: Box<[u8]>,
    pub(super) end: usize,
}

impl OutputBuffer {
    /// A buffer for `capacity` new bytes (at least one). 256 KiB to 4 MiB are good sizes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { bytes: vec![0; WINDOW_BYTES + capacity.max(1)].into_boxed_slice(), end: WINDOW_BYTES }
    }

    /// The decoded bytes it holds.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[WINDOW_BYTES..self.end]
    }

    /// How many new bytes it can hold in all.
    pub fn capacity(&self) -> usize {
        self.bytes.len() - WINDOW_BYTES
    }

    pub(crate) fn is_full(&self) -> bool {
        self.end == self.bytes.len()
    }

    pub(crate) fn filled(&self) -> usize {
        self.end - WINDOW_BYTES
    }

    /// Forgets the new bytes; the last 32 KiB become history.
    pub(crate) fn clear(&mut self) {
        self.bytes.copy_within(self.end - WINDOW_BYTES..self.end, 0);
        self.end = WINDOW_BYTES;
    }

    /// Empties this buffer and takes over the history at the end of `previous`.
    pub(crate) fn follow(&mut self, previous: &Self) {
        self.bytes[..WINDOW_BYTES].copy_from_slice(&previous.bytes[previous.end - WINDOW_BYTES..previous.end]);
        self.end = WINDOW_BYTES;
    }

    /// Empties this buffer and makes the last 32 KiB of `window` its history, zeros where it is shorter.
    pub(crate) fn preset(&mut self, window: &[u8]) {
        let tail = &window[window.len().saturating_sub(WINDOW_BYTES)..];
        let (zeros, history) = self.bytes[..WINDOW_BYTES].split_at_mut(WINDOW_BYTES - tail.len());
        zeros.fill(0);
        history.copy_from_slice(tail);
        self.end = WINDOW_BYTES;
    }
}
