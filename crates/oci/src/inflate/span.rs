//! Checkpoints: where a later reader may start, and the part of the window that it needs.
//!
//! A checkpoint stands at the first block boundary at or after a set amount of output since the last one. The span that
//! begins there refers to bytes before it only in its own first 32 KiB, so that watching costs nothing for the rest of
//! it. What it refers to is copied, at the moment it is referred to, into a window that begins as zeros: that *is* the
//! pruned window.

use super::WINDOW_BYTES;

/// Where checkpoints stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckpointPolicy {
    /// Least output between two checkpoints, in bytes.
    pub output_bytes_min: u64,
}

impl Default for CheckpointPolicy {
    /// 256 KiB: below it, real encoders' blocks cannot honour the policy; above it, a lazy reader fetches more than it
    /// needs.
    fn default() -> Self {
        Self { output_bytes_min: 256 * 1024 }
    }
}

/// A place in both streams at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamPosition {
    /// Offset of the byte that holds the next bit of the compressed stream.
    pub compressed: u64,
    /// Which bit of that byte is next, 0 (the least significant) to 7.
    pub bit: u8,
    /// Offset in the decoded stream.
    pub uncompressed: u64,
}

/// A piece of the stream that can be decoded by itself with [`GzipDecoder::resume`](crate::gzip::GzipDecoder::resume).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Where it begins: at a block's header.
    pub start: StreamPosition,
    /// Where it ends. Its last bits are in the byte before `end.compressed`, or in that byte when `end.bit` is not 0.
    pub end: StreamPosition,
    /// The bytes right before `start` that it refers to, every other byte zero, leading zeros cut off: at most 32 KiB,
    /// ending at `start.uncompressed`.
    pub window: Vec<u8>,
}

impl Span {
    /// Decoded bytes in it.
    pub fn uncompressed_bytes(&self) -> u64 {
        self.end.uncompressed - self.start.uncompressed
    }

    /// The byte range of the compressed stream that is needed to decode it.
    pub fn compressed_range(&self) -> std::ops::Range<u64> {
        self.start.compressed..self.end.compressed + u64::from(self.end.bit != 0)
    }
}

/// Notes spans while a stream is decoded.
#[derive(Debug)]
pub(crate) struct SpanRecorder {
    policy: CheckpointPolicy,
    start: Option<StreamPosition>,
    /// The pruned window of the span being decoded; its last byte is the one right before the span.
    window: Box<[u8]>,
    /// First byte of `window` in use.
    lowest: usize,
    done: Vec<Span>,
}

impl SpanRecorder {
    pub(crate) fn new(policy: CheckpointPolicy) -> Self {
        Self {
            policy,
            start: None,
            window: vec![0; WINDOW_BYTES].into_boxed_slice(),
            lowest: WINDOW_BYTES,
            done: Vec::new(),
        }
    }

    /// Decoded offset up to which references must be reported: there the current span's reach into its window ends.
    pub(super) fn watch_until(&self) -> u64 {
        self.start.map_or(0, |start| if start.uncompressed == 0 { 0 } else { start.uncompressed + WINDOW_BYTES as u64 })
    }

    /// Decoded offset at which the current span begins.
    pub(super) fn span_start(&self) -> u64 {
        self.start.map_or(0, |start| start.uncompressed)
    }

    /// A block begins here.
    pub(super) fn block_boundary(&mut self, here: StreamPosition) {
        match self.start {
            Some(start) if here.uncompressed - start.uncompressed < self.policy.output_bytes_min => {}
            Some(_) => self.close(here, Some(here)),
            None => self.start = Some(here),
        }
    }

    /// The span refers to `bytes`, the first of which lies `before` bytes before its start; what reaches past the start
    /// is ignored.
    #[inline]
    pub(super) fn refer(&mut self, before: usize, bytes: &[u8]) {
        let Some(from) = WINDOW_BYTES.checked_sub(before) else { return };
        let n = bytes.len().min(before);
        self.window[from..from + n].copy_from_slice(&bytes[..n]);
        self.lowest = self.lowest.min(from);
    }

    /// The stream ends here.
    pub(crate) fn finish(&mut self, here: StreamPosition) {
        self.close(here, None);
    }

    pub(crate) fn take(&mut self) -> Vec<Span> {
        std::mem::take(&mut self.done)
    }

    fn close(&mut self, end: StreamPosition, next: Option<StreamPosition>) {
        let Some(start) = std::mem::replace(&mut self.start, next) else { return };
        if end.uncompressed > start.uncompressed {
            self.done.push(Span { start, end, window: self.window[self.lowest..].to_vec() });
        }
        self.window[self.lowest..].fill(0);
        self.lowest = WINDOW_BYTES;
    }
}
