//! Putting blobs and manifests into a registry.
//!
//! Source: OCI distribution specification, "Pushing blobs" and "Pushing manifests". A small blob goes in one request, a larger one
//! in pieces, so that no request takes longer than a server's or our own patience, and no file is held in memory whole.
//!
//! Invariants: a login for writing is asked for apart from one for reading, so that neither takes the other's token; nothing
//! but the registry's own scheme, host and port is shown it; what is already there is not sent again.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Request, Response, Url};
use sampan_oci::digest::Digest;
use sampan_oci::reference::Reference;

use crate::body;
use crate::client::RegistryClient;
use crate::credentials::Credentials;
use crate::error::{Detail, FetchError, Site};
use crate::limits::PUSH_PIECE_BYTES;
use crate::repository::{Ask, Repository, Target};

/// Why something could not be written to a registry.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error("cannot write to the repository of {}: {} does not allow it{detail}; log in as somebody who may write there (docker login {})", .site.image, .site.host, .site.host)]
    Denied { site: Arc<Site>, detail: Detail },
    #[error("cannot write to the repository of {}: {} answers with status {status}{detail}; ask who runs the registry", .site.image, .site.host)]
    Refused { site: Arc<Site>, status: u16, detail: Detail },
    #[error("cannot write to the repository of {image}")]
    Registry {
        image: String,
        #[source]
        source: Box<FetchError>,
    },
    #[error("cannot read {} to write it to a registry", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// What is written.
#[derive(Debug, Clone)]
pub enum Content {
    Bytes(Bytes),
    /// A file and its length; it must not change meanwhile.
    File(PathBuf, u64),
}

impl Content {
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, bytes) => *bytes,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    async fn piece(&self, start: u64, end: u64) -> Result<Bytes, PushError> {
        let length = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
        match self {
            Self::Bytes(bytes) => {
                let start = usize::try_from(start).unwrap_or(usize::MAX).min(bytes.len());
                Ok(bytes.slice(start..start.saturating_add(length).min(bytes.len())))
            }
            Self::File(path, _) => {
                let path = path.clone();
                let failed = {
                    let path = path.clone();
                    move |source| PushError::Read { path, source }
                };
                let read = tokio::task::spawn_blocking(move || {
                    let mut piece = vec![0; length];
                    std::fs::File::open(&path)?.read_exact_at(&mut piece, start)?;
                    Ok::<_, std::io::Error>(piece)
                });
                let read = read.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
                read.map(Bytes::from).map_err(failed)
            }
        }
    }
}

/// A manifest that a registry has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pushed {
    pub digest: Digest,
    /// Whether the registry lists it under its subject by itself (`OCI-Subject`); where not, the client keeps a tag for that.
    pub knows_subjects: bool,
}

impl RegistryClient {
    /// Writes a blob into the repository of `reference`, unless it is there.
    pub async fn push_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        content: &Content,
        credentials: &Credentials,
    ) -> Result<(), PushError> {
        let repository = self.writer(reference, credentials).await.map_err(|error| failed(reference, error))?;
        if repository.has_blob(digest, content.len()).await.map_err(|error| failed(reference, error))? {
            return Ok(());
        }
        repository.upload(digest, content).await
    }

    /// Writes a manifest, by `tag` or by its digest alone.
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        tag: Option<&str>,
        media_type: &str,
        bytes: Bytes,
        credentials: &Credentials,
    ) -> Result<Pushed, PushError> {
        let repository = self.writer(reference, credentials).await.map_err(|error| failed(reference, error))?;
        let digest = Digest::of(&bytes);
        let name = tag.map_or_else(|| digest.to_string(), str::to_owned);
        let url = repository.url(&Target::Manifest(&name)).map_err(|error| failed(reference, error))?;
        let headers = [(CONTENT_TYPE, header(media_type))];
        let response = repository.deliver(Method::PUT, &url, &headers, Some(bytes)).await?;
        let knows_subjects = response.headers().contains_key("oci-subject");
        repository.expect(response, &[201]).await?;
        Ok(Pushed { digest, knows_subjects })
    }

    async fn writer(&self, reference: &Reference, credentials: &Credentials) -> Result<Repository, FetchError> {
        let mut repository = self.repository(reference.registry(), reference, credentials).await?;
        repository.key.writes = true;
        Ok(repository)
    }
}

impl Repository {
    async fn has_blob(&self, digest: &Digest, bytes: u64) -> Result<bool, FetchError> {
        let ask = Ask { method: Method::HEAD, target: Target::Blob(digest), accept: None, range: None };
        match self.patiently(|| self.once(&ask, None)).await {
            // A server that leaves the length out of an answer to HEAD says nothing wrong.
            Ok(answer) => Ok(length_of(answer.response.headers()).is_none_or(|there| there == bytes)),
            Err(FetchError::BlobNotFound { .. }) => Ok(false),
            // Some registries let a login that may write not read.
            Err(FetchError::LoginNeeded { .. } | FetchError::LoginRejected { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn upload(&self, digest: &Digest, content: &Content) -> Result<(), PushError> {
        let begin = self.join(&self.base.url, &format!("v2/{}/blobs/uploads/", self.key.repository))?;
        let response =
            self.deliver(Method::POST, &begin, &[(CONTENT_LENGTH, HeaderValue::from_static("0"))], None).await?;
        let mut place = self.place(&begin, self.expect(response, &[202]).await?)?;
        let bytes = content.len();
        let mut last = content.piece(0, bytes.min(PUSH_PIECE_BYTES)).await?;
        if bytes > PUSH_PIECE_BYTES {
            let mut start = 0;
            while start < bytes {
                let end = bytes.min(start.saturating_add(PUSH_PIECE_BYTES));
                let piece = content.piece(start, end).await?;
                let range = format!("{start}-{}", end.saturating_sub(1));
                let headers = [(CONTENT_RANGE, header(&range)), (CONTENT_TYPE, header(OCTETS))];
                let response = self.deliver(Method::PATCH, &place, &headers, Some(piece)).await?;
                place = self.place(&place, self.expect(response, &[202, 204]).await?)?;
                start = end;
            }
            last = Bytes::new();
        }
        place.query_pairs_mut().append_pair("digest", &digest.to_string());
        let response = self.deliver(Method::PUT, &place, &[(CONTENT_TYPE, header(OCTETS))], Some(last)).await?;
        self.expect(response, &[201, 204]).await.map(drop)
    }

    /// Sends one request to a registry, or to where it sent an upload. A challenge is answered once.
    async fn deliver(
        &self,
        method: Method,
        url: &Url,
        headers: &[(HeaderName, HeaderValue)],
        content: Option<Bytes>,
    ) -> Result<Response, PushError> {
        let failed = |error| self.failed_push(error);
        let own = url.origin() == self.base.url.origin();
        let mut granted = if own { self.shared.grants.current(&self.key).await } else { None };
        let mut answered_challenge = false;
        loop {
            let mut request = Request::new(method.clone(), url.clone());
            request.headers_mut().extend(headers.iter().cloned());
            if let Some(grant) = &granted {
                request.headers_mut().insert(AUTHORIZATION, grant.header.clone());
            }
            *request.body_mut() = content.clone().map(Into::into);
            let verification = self.shared.transport.verification(&self.base, url);
            let response = self.shared.transport.send(&self.site, verification, request).await.map_err(failed)?;
            if response.status().as_u16() == 401 && own && !answered_challenge {
                answered_challenge = true;
                granted = Some(self.answer_challenge(&response, granted.as_ref()).await.map_err(failed)?);
                continue;
            }
            return Ok(response);
        }
    }

    async fn expect(&self, response: Response, wanted: &[u16]) -> Result<HeaderMap, PushError> {
        let status = response.status().as_u16();
        if wanted.contains(&status) {
            return Ok(response.headers().clone());
        }
        let (site, detail) = (Arc::clone(&self.site), body::detail(response).await);
        Err(match status {
            401 | 403 => PushError::Denied { site, detail },
            _ => PushError::Refused { site, status, detail },
        })
    }

    /// Where an upload goes on.
    fn place(&self, from: &Url, headers: HeaderMap) -> Result<Url, PushError> {
        let location = headers.get("location").and_then(|location| location.to_str().ok());
        let mut url = self.join(from, location.unwrap_or_default())?;
        let is_downgrade = url.scheme() != "https" && from.scheme() == "https";
        let stripped = url.set_username("").and(url.set_password(None)).is_ok();
        if location.is_none() || is_downgrade || !stripped || !matches!(url.scheme(), "http" | "https") {
            let reason = "an upload to an address that cannot be used";
            return Err(self.failed_push(FetchError::Redirect { site: Arc::clone(&self.site), reason }));
        }
        Ok(url)
    }

    fn join(&self, base: &Url, path: &str) -> Result<Url, PushError> {
        base.join(path).map_err(|error| {
            let site = Arc::clone(&self.site);
            self.failed_push(FetchError::HostConfiguration { site, source: error.into() })
        })
    }

    fn failed_push(&self, error: FetchError) -> PushError {
        push_error(&self.site.image, error)
    }
}

const OCTETS: &str = "application/octet-stream";

fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_unprintable| HeaderValue::from_static(OCTETS))
}

fn length_of(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn failed(reference: &Reference, error: FetchError) -> PushError {
    push_error(&reference.to_string(), error)
}

fn push_error(image: &str, error: FetchError) -> PushError {
    match error {
        FetchError::LoginNeeded { site, detail } | FetchError::LoginRejected { site, detail } => {
            PushError::Denied { site, detail }
        }
        error => PushError::Registry { image: image.to_owned(), source: Box::new(error) },
    }
}
