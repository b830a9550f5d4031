//! Small documents of a repository, whole and checked: manifests, indexes, configurations.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, Response};
use sampan_oci::digest::{Digest, Hasher};
use sampan_oci::limits::MANIFEST_BYTES_MAX;
use sampan_oci::media_type::ACCEPTED_MANIFESTS;
use sampan_oci::reference::Reference;
use tokio::time::timeout;

use crate::body;
use crate::error::{FetchError, Mismatch};
use crate::repository::{Answer, Ask, Repository, Target};

impl Repository {
    /// The digest that the registry gives for a reference, asked without its body where the registry tells.
    pub(crate) async fn manifest_digest(&self, reference: &Reference) -> Result<Digest, FetchError> {
        let named = reference.manifest_name();
        let ask = Ask { method: Method::HEAD, ..manifest_ask(&named) };
        let attempt = || async { self.once(&ask, None).await.map(|answer| digest_header(&answer.response)) };
        match self.in_time(self.patiently(attempt)).await? {
            Some(digest) => Ok(digest),
            None => self.manifest(&named, reference.digest()).await.map(|(_, digest, _)| digest),
        }
    }

    /// A manifest or index by tag or digest: bytes, digest, and what the registry calls it.
    pub(crate) async fn manifest(
        &self,
        named: &str,
        expected: Option<&Digest>,
    ) -> Result<(Bytes, Digest, Option<String>), FetchError> {
        let ask = manifest_ask(named);
        let attempt = || async {
            let Answer { response, site, .. } = self.once(&ask, None).await?;
            let media_type =
                response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
            // A registry's own word must be true too, where nothing else is known.
            let expected = expected.copied().or_else(|| digest_header(&response));
            let bytes = body::collect(&site, response, MANIFEST_BYTES_MAX, "a manifest request").await?;
            let digest = self.check(&bytes, expected, "the manifest")?;
            Ok((bytes, digest, media_type))
        };
        self.in_time(self.patiently(attempt)).await
    }

    /// A blob that is small by its nature.
    pub(crate) async fn document(&self, digest: &Digest, limit: usize) -> Result<Bytes, FetchError> {
        let ask = Ask { method: Method::GET, target: Target::Blob(digest), accept: None, range: None };
        let attempt = || async {
            let Answer { response, site, .. } = self.once(&ask, None).await?;
            let bytes = body::collect(&site, response, limit, "a request for an image configuration").await?;
            self.check(&bytes, Some(*digest), "the image configuration")?;
            Ok(bytes)
        };
        self.in_time(self.patiently(attempt)).await
    }

    fn check(&self, bytes: &[u8], expected: Option<Digest>, what: &'static str) -> Result<Digest, FetchError> {
        let mut hasher =
            expected.map_or_else(|| Hasher::new(sampan_oci::digest::Algorithm::Sha256), |digest| digest.hasher());
        hasher.update(bytes);
        let actual = hasher.finish();
        match expected {
            Some(expected) if expected != actual => {
                let digests = Box::new(Mismatch { expected, actual });
                Err(FetchError::DigestMismatch { site: Arc::clone(&self.site), what, digests })
            }
            _ => Ok(actual),
        }
    }

    /// Bounds the time of everything about one document.
    pub(crate) async fn in_time<T>(
        &self,
        future: impl Future<Output = Result<T, FetchError>>,
    ) -> Result<T, FetchError> {
        let outcome = timeout(self.shared.config.transfer.document_timeout, future).await;
        outcome.unwrap_or_else(|_elapsed| Err(FetchError::Stalled { site: Arc::clone(&self.site) }))
    }
}

fn manifest_ask(named: &str) -> Ask<'_> {
    Ask { method: Method::GET, target: Target::Manifest(named), accept: Some(ACCEPTED_MANIFESTS), range: None }
}

fn digest_header(response: &Response) -> Option<Digest> {
    response.headers().get("docker-content-digest")?.to_str().ok()?.parse().ok()
}
