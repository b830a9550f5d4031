//! Images to run: real ones from Debian packages, odd ones, hostile ones, and a real registry to pull them from.
//!
//! - [`tar`] writes layers entry by entry, wrong ones too; [`image`] makes images of layers; both are plain code in
//!   memory.
//! - [`busybox`] and [`debian`] make the real images, [`real`] the larger ones that are measured. What takes long is built once and
//!   kept in [`cache`].
//! - [`variants`] are the legal oddities, [`hostile`] the attacks and accidents.
//! - [`registry`] runs Debian's `docker-registry` on loopback and pushes to it; [`unruly`] stands in front of it and does what
//!   bad registries do.
//!
//! Everything here needs root and a Debian machine with its package mirror reachable, once.

pub mod busybox;
pub mod cache;
pub mod debian;
pub mod hostile;
mod http;
pub mod image;
pub mod real;
pub mod registry;
pub mod tar;
pub mod unruly;
pub mod variants;

pub use image::{Blob, Compression, Flavour, Image, ImageBuilder, Index, Layer};
pub use registry::Registry;
pub use tar::TarWriter;
pub use unruly::{Fault, UnrulyRegistry};
