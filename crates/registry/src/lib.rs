//! Client of OCI registries, and reader of image layout directories and of archives, behind one face.
//!
//! ```text
//! RegistryClient::new(RegistryConfig::from_environment())            // Clone, cheap
//!   .current_digest(&source, &credentials)  -> Digest                // HEAD: has a tag moved?
//!   .resolve(&source, &platform, &credentials) -> Resolved           // manifest and configuration, checked
//!   .open_blob(&source, &descriptor, &credentials) -> BlobReader     // in order, parallel ranges, resumed, digest checked
//!   .read_range(&source, &descriptor, range, &credentials) -> Bytes  // random read, not checked
//!   .ranged_blob(&source, &descriptor, first, &credentials)          // many random reads: RangedBlob::stream(range)
//!   .push_blob(…), .push_manifest(…)                                // monolithic, or in pieces when large
//!   .archive_names(&file) -> Vec<Reference>                         // what the images of an archive are called
//!   .referrers(&reference, &subject, type, &credentials) -> Vec<Referrer>   // the API, or the tag that stands for it
//! BlobReader: next().await -> Option<Bytes>; blocking() -> BlockingBlob: Read + BufRead; canceller()
//! ```
//!
//! Everything that this crate returns was checked against the digest that named it, except random ranges, which cannot be.
//! Requests are tried again when that can help ([`FailureClass`]); what is permanent is reported at once. A blob that comes in
//! ranges is read by several connections (HTTP/1.1 on purpose: one HTTP/2 connection is one TCP stream) and handed over in order
//! without copying. Dropping a reader, or a future of this crate, ends its transfers.

mod archive;
mod blob;
mod body;
mod challenge;
mod client;
pub mod config;
pub mod credentials;
mod document;
mod error;
mod file;
mod layout;
pub mod limits;
mod patience;
mod plain;
mod push;
mod ranged;
mod referrers;
mod repository;
mod tls;
mod token;
mod transfer;
mod transport;

pub use archive::TooManyMembers;
pub use blob::{BlobReader, BlockingBlob, Canceller};
pub use client::{RegistryClient, Resolved};
pub use config::RegistryConfig;
pub use credentials::{AuthFile, Credentials, Login};
pub use error::{ArchiveError, Detail, FailureClass, FetchError, LayoutError, Mismatch, Site};
pub use push::{Content, PushError, Pushed};
pub use ranged::{RangeStream, RangedBlob};
pub use referrers::Referrer;
