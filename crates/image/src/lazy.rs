//! Layers that are mounted before their bytes are here.
//!
//! ```text
//!  kernel ── EROFS ── loop ── FUSE ──▶ PartialFile: one blob, some of whose pages are here
//!                                           │ missing
//!                                           ▼
//!             index: page ─▶ bytes of the stream ─▶ spans ─▶ bytes of the compressed layer ─▶ registry
//! ```
//!
//! Invariants:
//! - An index is only used if it was made on this node, or if its [`source`] vouches for it, or if it was made here from a table
//!   of contents for which the image's manifest vouches. What it says is checked all the same: every chunk or piece against its
//!   digest before a reader sees it, and the whole of it when the layer is complete.
//! - FUSE threads never wait for the network.

pub(crate) mod blob_map;
pub(crate) mod complete;
pub(crate) mod compressed;
pub(crate) mod connection;
mod contents;
pub(crate) mod decode;
pub(crate) mod demand;
pub(crate) mod device;
pub(crate) mod error;
pub mod event;
mod fuse;
pub(crate) mod layer;
pub(crate) mod limits;
pub(crate) mod pages;
pub(crate) mod partial_file;
mod pieces;
mod range_set;
pub(crate) mod records;
pub(crate) mod remote;
pub mod source;
pub(crate) mod state;
#[cfg(test)]
mod tests;
pub(crate) mod touches;
pub(crate) mod traffic;
