//! From an image reference to files that the kernel mounts.
//!
//! ```text
//! reference ─ registry ─▶ manifest, configuration
//!                 │
//!                 └─ each layer ─ `unpack` ─▶ blob (contents) + `index` (everything else, with a `tree`)
//!                                                            │
//!                              all trees ─ `merge` ─▶ one EROFS metadata image
//!                                                            │
//!                                     `store` ─▶ detached kernel mount: metadata + blobs as devices
//! ```
//!
//! No file of an image is ever made on this machine. Invariants:
//! - Nothing is mounted whose layers did not have their digest and diffID, and whose metadata our own writer did not make.
//! - What is being made is under `incoming/`; a name elsewhere means whole content.
//! - Image contents and indexes are hostile input; see `limits`.

mod disk;
mod error;
pub mod index;
pub mod keys;
pub mod lazy;
pub mod limits;
pub mod merge;
pub mod pack;
pub mod publish;
mod store;
#[cfg(test)]
mod testing;
pub mod toc;
pub mod trace;
pub mod tree;
mod unpack;

pub use error::ImageError;
pub use lazy::event::ImageEvent;
pub use store::{
    Image, ImageCounters, ImageDetails, ImageStore, ImageStoreConfig, ImageSummary, LayerDetails, LayerProgress,
    LayerState, ProgressSender, PullPolicy, Removed, TraceDetails, Verdict, VerifiedLayer,
};
pub use unpack::UnpackError;
