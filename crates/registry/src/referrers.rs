//! What a repository holds *about* an image: artifacts with a `subject`.
//!
//! Source: OCI distribution specification 1.1, "Listing referrers" and "Referrers tag schema". A registry that has the referrers
//! API answers it; of one that has not, the tag `ALGORITHM-HEX` of the subject names an index of the same form, which clients
//! keep. Which of the two a registry has is remembered, so that an image about which there is nothing costs one request.
//!
//! Invariant: nothing here is trusted; who uses an artifact checks who made it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use reqwest::{Method, Url};
use sampan_oci::digest::Digest;
use sampan_oci::limits::{INDEX_ENTRIES_MAX, MANIFEST_BYTES_MAX};
use sampan_oci::media_type::OCI_INDEX;
use sampan_oci::reference::Reference;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::body;
use crate::client::RegistryClient;
use crate::credentials::Credentials;
use crate::error::{FetchError, Site};
use crate::push::{PushError, Pushed};
use crate::repository::{Ask, Repository, Target};
use crate::transport::lock;

/// One artifact about a subject, as a list of referrers shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub artifact_type: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl RegistryClient {
    /// Artifacts of one type about the manifest `subject`; none where the registry knows nothing of it.
    pub async fn referrers(
        &self,
        reference: &Reference,
        subject: &Digest,
        artifact_type: &str,
        credentials: &Credentials,
    ) -> Result<Vec<Referrer>, FetchError> {
        let repository = self.repository(reference.registry(), reference, credentials).await?;
        let lacks_api = lock(&self.without_referrers).contains(reference.registry());
        if !lacks_api {
            let name = subject.to_string();
            let target = Target::Referrers { subject: &name, artifact_type };
            if let Some(bytes) = repository.list(target).await? {
                return Ok(read_list(&bytes, artifact_type));
            }
            let mut known = lock(&self.without_referrers);
            if known.len() < crate::limits::CLIENTS_MAX {
                known.insert(reference.registry().to_owned());
            }
        }
        let tag = fallback_tag(subject);
        let bytes = repository.list(Target::Manifest(&tag)).await?;
        Ok(bytes.map(|bytes| read_list(&bytes, artifact_type)).unwrap_or_default())
    }

    /// An artifact's manifest, whose digest was right.
    pub async fn artifact(
        &self,
        reference: &Reference,
        digest: &Digest,
        credentials: &Credentials,
    ) -> Result<Bytes, FetchError> {
        let repository = self.repository(reference.registry(), reference, credentials).await?;
        repository.manifest(&digest.to_string(), Some(digest)).await.map(|(bytes, ..)| bytes)
    }

    /// Enters an artifact, which must be there, into the tag that stands for its subject's referrers. Older artifacts of the
    /// same type go from the list; those of other types stay. For registries that do not do this by themselves.
    pub async fn tag_referrer(
        &self,
        reference: &Reference,
        subject: &Digest,
        referrer: Referrer,
        credentials: &Credentials,
    ) -> Result<Pushed, PushError> {
        let tag = fallback_tag(subject);
        let fail = |source| PushError::Registry { image: reference.to_string(), source: Box::new(source) };
        let repository = self.repository(reference.registry(), reference, credentials).await.map_err(fail)?;
        let before = repository.list(Target::Manifest(&tag)).await.map_err(fail)?;
        let list = merged(before.as_deref(), &referrer);
        let bytes = Bytes::from(list.to_string());
        self.push_manifest(reference, Some(&tag), OCI_INDEX, bytes, credentials).await
    }
}

impl Repository {
    /// An index of referrers; `None` where the registry has no such thing.
    async fn list(&self, target: Target<'_>) -> Result<Option<Bytes>, FetchError> {
        let ask = Ask { method: Method::GET, target, accept: Some(OCI_INDEX), range: None };
        let attempt = || async {
            let answer = self.once(&ask, None).await?;
            body::collect(&answer.site, answer.response, MANIFEST_BYTES_MAX, "a list of referrers").await
        };
        match self.in_time(self.patiently(attempt)).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(FetchError::ImageNotFound { .. }) => Ok(None),
            // Registries without the API answer so, too.
            Err(FetchError::UnexpectedStatus { status: 400 | 405 | 406 | 415, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The address of the referrers API.
    pub(crate) fn referrers_url(&self, subject: &str, artifact_type: &str) -> Result<Url, FetchError> {
        let joined = self.base.url.join(&format!("v2/{}/referrers/{subject}", self.key.repository));
        let mut url = joined.map_err(|error| {
            let site: Arc<Site> = Arc::clone(&self.site);
            FetchError::HostConfiguration { site, source: error.into() }
        })?;
        url.query_pairs_mut().append_pair("artifactType", artifact_type);
        Ok(url)
    }
}

/// The tag that stands for a subject's referrers: the digest's algorithm and digits, cut to what a tag may have.
fn fallback_tag(subject: &Digest) -> String {
    let mut tag = format!("{}-{}", subject.algorithm().name(), subject.hex());
    tag.truncate(sampan_oci::limits::TAG_BYTES_MAX);
    tag
}

/// The entries of one type; those that cannot be read are left out, and so is a list that is none.
fn read_list(bytes: &[u8], artifact_type: &str) -> Vec<Referrer> {
    entries(bytes)
        .filter_map(|entry| serde_json::from_value::<Referrer>(entry).ok())
        .filter(|entry| entry.artifact_type == artifact_type)
        .take(INDEX_ENTRIES_MAX)
        .collect()
}

fn entries(bytes: &[u8]) -> impl Iterator<Item = Value> {
    let document: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let manifests = match document {
        Value::Object(mut members) => members.remove("manifests").unwrap_or_default(),
        _ => Value::Null,
    };
    match manifests {
        Value::Array(entries) => entries.into_iter(),
        _ => Vec::new().into_iter(),
    }
}

/// A list with `referrer` in it.
fn merged(before: Option<&[u8]>, referrer: &Referrer) -> Value {
    let is_older = |entry: &Value| {
        let is_same_type = entry.get("artifactType").and_then(Value::as_str) == Some(referrer.artifact_type.as_str());
        is_same_type || entry.get("digest").and_then(Value::as_str) == Some(referrer.digest.to_string().as_str())
    };
    let mut list: Vec<Value> = entries(before.unwrap_or_default()).filter(|entry| !is_older(entry)).collect();
    list.truncate(INDEX_ENTRIES_MAX - 1);
    list.push(serde_json::to_value(referrer).unwrap_or_default());
    serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list})
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn referrer(kind: &str, bytes: &[u8]) -> Referrer {
        Referrer {
            media_type: sampan_oci::media_type::OCI_MANIFEST.to_owned(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            artifact_type: kind.to_owned(),
            annotations: BTreeMap::new(),
        }
    }

    #[test]
    fn a_newer_artifact_takes_the_place_of_its_like_only() {
        let list = merged(None, &referrer("a", b"1"));
        let list = merged(Some(list.to_string().as_bytes()), &referrer("b", b"2"));
        let list = merged(Some(list.to_string().as_bytes()), &referrer("a", b"3")).to_string();
        assert_eq!(read_list(list.as_bytes(), "a"), [referrer("a", b"3")]);
        assert_eq!(read_list(list.as_bytes(), "b"), [referrer("b", b"2")]);
    }

    #[test]
    fn a_tag_is_never_too_long() {
        let long: Digest = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
        assert_eq!(fallback_tag(&long).len(), 128);
        assert!(fallback_tag(&Digest::of(b"")).starts_with("sha256-e3b0c442"));
    }

    proptest! {
        #[test]
        fn any_list_is_read(text in "[\\[\\]{}:,\"a-z0-9]{0,60}") {
            read_list(text.as_bytes(), "a");
            read_list(format!("{{\"manifests\":{text}}}").as_bytes(), "a");
        }
    }
}
