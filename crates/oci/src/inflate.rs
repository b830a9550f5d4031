//! DEFLATE (RFC 1951), decoded as fast as safe Rust can and able to stop anywhere: at any bit of the input, at any
//! byte of the output.
//!
//! Why our own: an image layer is inflated once, and that one pass must also find the places where a later reader can
//! start in the middle (block boundaries) and what such a reader must know (the bytes before it that it refers to).
//! No library reports either without a second decode. See `docs/decisions/0001-inflate.md`.
//!
//! How it is built:
//! - `bits` holds what was taken from the input and not yet decoded: at most 63 bits. Nothing is decoded by halves:
//!   when a whole symbol is not there yet, the decoder suspends before it.
//! - `tables` turns code lengths into lookup tables.
//! - `fast` decodes while input and output are both far from their ends; `block` does the rest, a symbol at a time, and
//!   owns the state machine.
//! - `output` is the buffer that the caller hands in, with the 32 KiB of history in front of it.
//! - `span` notes the checkpoints and prunes the windows.
//!
//! Invariant: the input is hostile. No input panics, none makes this code allocate.

mod bits;
mod block;
mod error;
mod fast;
mod output;
mod span;
mod tables;

pub use error::{Corruption, InflateError};
pub use output::OutputBuffer;
pub use span::{CheckpointPolicy, Span, StreamPosition};

pub(crate) use bits::{Carry, Input};
pub(crate) use block::{BlockDecoder, BlockStop};
pub(crate) use span::SpanRecorder;

/// How far back a DEFLATE match can reach, in bytes.
pub const WINDOW_BYTES: usize = 32 * 1024;
