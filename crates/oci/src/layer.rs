//! The layer stream: a tar archive, pushed through a reader that hands entries and file bytes to a sink.
//!
//! A layer is foreign input. Everything that it may ask for is bounded in [`limits`], nothing here allocates by a number that
//! the stream names, and whatever is refused is refused with the name of the entry in the message.
//!
//! ```text
//! bytes ──feed──▶ LayerReader ──entry(Entry)──▶ LayerSink
//!                             ──data(&[u8])───▶   (only after the entry of a file, in order, no holes)
//!                             ──end_of_file()─▶
//! ```
//!
//! Understood: v7, ustar, star, GNU (long names, long links, base-256 numbers, old sparse headers) and PAX (local and global,
//! GNU sparse 0.0, 0.1 and 1.0, `SCHILY.xattr`). Names are bytes; they need not be UTF-8. Whiteouts are told apart by name,
//! as in the OCI image specification, `layer.md`.
//!
//! Format: POSIX.1-2017 `pax`, "ustar Interchange Format"; GNU tar manual, "Sparse Formats".
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

#[doc(hidden)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "writes for tests; reads nothing foreign")]
pub mod archive;
mod entry;
mod error;
mod header;
pub mod limits;
mod name;
mod pax;
mod reader;
mod sparse;
#[cfg(test)]
mod tests;

pub use entry::{Entry, EntryKind, Segment, Timestamp, Xattr};
pub use error::{LayerError, ReadError};
pub use name::{LayerPath, Meaning, display_name, meaning};
pub use reader::{LayerReader, LayerSink};
