//! Why an image or a blob could not be fetched: one line that names the registry, the image, the reason and the way out.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sampan_oci::config::ConfigError;
use sampan_oci::digest::Digest;
use sampan_oci::layer::ReadError;
use sampan_oci::manifest::ManifestError;
use sampan_oci::quote::Quote;

use crate::archive::TooManyMembers;
use crate::credentials::CredentialsError;

/// Whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// The same request may succeed later; this crate has already tried it several times.
    Transient,
    /// It fails again until something is changed.
    Permanent,
    /// The caller gave up.
    Cancelled,
}

/// What a request is about, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// The registry as the reference names it, or a mirror.
    pub host: String,
    pub image: String,
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("cannot fetch {}: the registry's host {} is unknown; check its spelling, or this machine's DNS", .site.image, .site.host)]
    UnknownHost {
        site: Arc<Site>,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot fetch {}: {} refuses connections; check that a registry runs there and that the port is right", .site.image, .site.host)]
    Refused { site: Arc<Site> },
    #[error("cannot fetch {}: {} cannot be reached; check the network, firewalls and the proxy settings", .site.image, .site.host)]
    Unreachable {
        site: Arc<Site>,
        #[source]
        source: Cause,
    },
    #[error(
        "cannot fetch {}: the certificate of {} is not accepted; put its CA into /etc/docker/certs.d/{}/ca.crt, or configure the registry as insecure",
        .site.image, .site.host, .site.host
    )]
    Tls {
        site: Arc<Site>,
        #[source]
        source: Cause,
    },
    #[error("cannot fetch {}: {} does not speak HTTPS; configure the registry as insecure if it is meant to use plain HTTP", .site.image, .site.host)]
    PlainHttp { site: Arc<Site> },
    #[error("cannot fetch {}: {} denies access{detail}; check the name, or log in (docker login {}): images that do not exist are often answered so", .site.image, .site.host, .site.host)]
    LoginNeeded { site: Arc<Site>, detail: Detail },
    #[error("cannot fetch {}: {} rejects the credentials given for it{detail}; log in again (docker login {})", .site.image, .site.host, .site.host)]
    LoginRejected { site: Arc<Site>, detail: Detail },
    #[error("cannot fetch {}: {} has no such image{detail}; check name and tag", .site.image, .site.host)]
    ImageNotFound { site: Arc<Site>, detail: Detail },
    #[error("cannot fetch {}: {} has lost blob {blob}; push the image again", .site.image, .site.host)]
    BlobNotFound { site: Arc<Site>, blob: Box<Digest> },
    #[error("cannot fetch {}: {} limits the rate of requests{}; wait, or log in for a higher limit", .site.image, .site.host, after(.retry_after))]
    RateLimited { site: Arc<Site>, retry_after: Option<Duration> },
    #[error("cannot fetch {}: {} answers with status {status}{detail}; try again later, or ask who runs the registry", .site.image, .site.host)]
    Unavailable { site: Arc<Site>, status: u16, detail: Detail },
    #[error("cannot fetch {}: {} answers with unexpected status {status}{detail}; check that it is a registry", .site.image, .site.host)]
    UnexpectedStatus { site: Arc<Site>, status: u16, detail: Detail },
    #[error("cannot fetch {}: {} answers with {what}; check that it is a registry and not something between", .site.image, .site.host)]
    Malformed { site: Arc<Site>, what: &'static str },
    #[error("cannot fetch {}: the connection to {} broke and could not be resumed; try again", .site.image, .site.host)]
    Interrupted {
        site: Arc<Site>,
        #[source]
        source: Cause,
    },
    #[error("cannot fetch {}: {} stopped answering; try again, or check the network", .site.image, .site.host)]
    Stalled { site: Arc<Site> },
    #[error("cannot fetch {}: {} ended a transfer early; try again", .site.image, .site.host)]
    Truncated { site: Arc<Site> },
    #[error("cannot fetch {}: {} does not serve ranges of blobs; use a registry that does", .site.image, .site.host)]
    NoRanges { site: Arc<Site> },
    #[error("cannot fetch {}: {what} from {} has digest {}, not {}; the registry or something between is damaged or hostile: push the image again", .site.image, .site.host, .digests.actual, .digests.expected)]
    DigestMismatch { site: Arc<Site>, what: &'static str, digests: Box<Mismatch> },
    #[error("cannot fetch {}: blob {blob} from {} has {actual} bytes, its manifest says {expected}; push the image again", .site.image, .site.host)]
    SizeMismatch { site: Arc<Site>, blob: Box<Digest>, expected: u64, actual: u64 },
    #[error("cannot fetch {}: {} answers {what} with more than {limit} bytes; check that it is a registry", .site.image, .site.host)]
    TooLarge { site: Arc<Site>, what: &'static str, limit: u64 },
    #[error("cannot fetch {}: {} redirects {reason}; correct the registry, or name the right one", .site.image, .site.host)]
    Redirect { site: Arc<Site>, reason: &'static str },
    #[error("cannot fetch {}: {} asks for authentication in a way that is not supported; Basic and Bearer are", .site.image, .site.host)]
    UnknownChallenge { site: Arc<Site> },
    #[error("cannot fetch {}: the token service \"{}\" of {} {reason}; check the registry's configuration", .site.image, Quote(.realm), .site.host)]
    TokenService { site: Arc<Site>, realm: String, reason: &'static str },
    #[error("cannot fetch {}: the configuration for {} cannot be used", .site.image, .site.host)]
    HostConfiguration {
        site: Arc<Site>,
        #[source]
        source: Cause,
    },
    #[error("cannot fetch {image}")]
    Credentials {
        image: String,
        #[source]
        source: Box<CredentialsError>,
    },
    #[error("cannot use {image}")]
    Manifest {
        image: String,
        #[source]
        source: Box<ManifestError>,
    },
    #[error("cannot use {image}")]
    Config {
        image: String,
        #[source]
        source: Box<ConfigError>,
    },
    #[error("cannot use {image}")]
    Layout {
        image: String,
        #[source]
        source: Box<LayoutError>,
    },
    #[error("cannot use {image}")]
    Archive {
        image: String,
        #[source]
        source: Box<ArchiveError>,
    },
    #[error("cannot fetch {image}: the range {start}..{end} is not inside a blob of {size} bytes or asks for too much")]
    BadRange { image: String, start: u64, end: u64, size: u64 },
    #[error("fetching {image} was cancelled")]
    Cancelled { image: String },
}

impl FetchError {
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Cancelled { .. } => FailureClass::Cancelled,
            Self::Refused { .. }
            | Self::Unreachable { .. }
            | Self::RateLimited { .. }
            | Self::Unavailable { .. }
            | Self::Interrupted { .. }
            | Self::Stalled { .. }
            | Self::Truncated { .. } => FailureClass::Transient,
            // No answer from any name server may pass; "no such name" does not.
            Self::UnknownHost { source, .. } if source.to_string().contains("emporary failure") => {
                FailureClass::Transient
            }
            _ => FailureClass::Permanent,
        }
    }

    /// Whether asking the same again at once, after a short pause, is worth while. A registry that refuses connections or does
    /// not resolve is reported at once instead: far more often it is misspelt than restarting.
    pub(crate) fn is_worth_repeating(&self) -> bool {
        let told = matches!(self, Self::Refused { .. } | Self::UnknownHost { .. });
        self.class() == FailureClass::Transient && !told
    }
}

/// Two digests that should be one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    pub expected: Digest,
    pub actual: Digest,
}

/// A registry's own words, if it had any: shown as ` ("…")`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detail(pub Option<String>);

impl fmt::Display for Detail {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(words) => write!(out, " (\"{}\")", Quote(words)),
            None => Ok(()),
        }
    }
}

fn after(retry_after: &Option<Duration>) -> String {
    retry_after.map(|pause| format!(" for another {} s", pause.as_secs())).unwrap_or_default()
}

/// Why a directory in OCI image layout cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    #[error("the path {} of the image layout is relative; write it from / on", .0.display())]
    Relative(PathBuf),
    #[error("{} is not a directory in OCI image layout (it has no index.json); make one with \"skopeo copy … oci:DIR:TAG\"", .0.display())]
    NotALayout(PathBuf),
    #[error("{} cannot be read", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} has more than the {limit} bytes allowed; it is damaged", .path.display())]
    TooLarge { path: PathBuf, limit: u64 },
    #[error("{} has {actual} bytes, its manifest says {expected}; copy the image again", .path.display())]
    Size { path: PathBuf, expected: u64, actual: u64 },
    #[error("{} has digest {}, not {}; copy the image again", .path.display(), .digests.actual, .digests.expected)]
    Digest { path: PathBuf, digests: Box<Mismatch> },
    #[error("{} has no image tagged \"{tag}\"; it has {}", .directory.display(), tags(.offered))]
    NoSuchTag { directory: PathBuf, tag: String, offered: Vec<String> },
    #[error("{} holds several images; name one as oci:{}:TAG, where TAG is one of {}", .directory.display(), .directory.display(), tags(.offered))]
    TagNeeded { directory: PathBuf, offered: Vec<String> },
    #[error("{} holds no image; copy one into it", .0.display())]
    Empty(PathBuf),
}

/// Why an archive of `docker save` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("the path {} of the archive is relative; write it from / on", .0.display())]
    Relative(PathBuf),
    #[error("{} cannot be read", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is no archive of images, or it is damaged; write one with \"docker save\" or \"podman save\"", .path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: Box<ReadError<TooManyMembers>>,
    },
    #[error("{} is no archive of images (it has no manifest.json); write one with \"docker save\", or \"podman save --format docker-archive\"", .0.display())]
    NotAnArchive(PathBuf),
    #[error("the manifest.json of {} is not valid; save the image again", .path.display())]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{} has no file {}, which its manifest names; save the image again", .path.display(), Quote(.member))]
    NoMember { path: PathBuf, member: String },
    #[error("{} in {} has more than the {limit} bytes allowed; the archive is damaged", Quote(.member), .path.display())]
    TooLarge { path: PathBuf, member: String, limit: usize },
    #[error("layer {member} in {} has {actual} bytes, not {expected}; the archive has changed, try again", .path.display())]
    Size { path: PathBuf, member: String, expected: u64, actual: u64 },
    #[error("{} has no image \"{}\"; it has {}", .path.display(), Quote(.name), tags(.offered))]
    NoSuchName { path: PathBuf, name: String, offered: Vec<String> },
    #[error("{} holds several images; name one as docker-archive:{}:NAME, where NAME is one of {}", .path.display(), .path.display(), tags(.offered))]
    NameNeeded { path: PathBuf, offered: Vec<String> },
    #[error("{} holds no image; save one into it", .0.display())]
    Empty(PathBuf),
}

fn tags(offered: &[String]) -> String {
    const SHOWN: usize = 12;
    match offered.len() {
        0 => "none".to_owned(),
        count => {
            let shown: Vec<_> = offered.iter().take(SHOWN).map(|tag| Quote(tag).to_string()).collect();
            format!("{}{}", shown.join(", "), if count > SHOWN { ", …" } else { "" })
        }
    }
}
