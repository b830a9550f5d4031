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
//! - An index is only used if it was made on this node, or if its [`source`] vouches for it. What it says is checked all the
//!   same: every chunk against its digest before a reader sees it, and the whole of it when the layer is complete.
//! - FUSE threads never wait for the network.

pub mod source;
