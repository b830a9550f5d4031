//! What is said about a published file, and signed.
//!
//! The description is an OCI descriptor, as it stands in an artifact's manifest and in a file of its own in an index cache:
//!
//! ```text
//! mediaType     application/vnd.sampan.layer.index.v1 | …start.pack.v1 | …start.trace.v1
//! digest, size  of the file
//! annotations   vnd.sampan.about         digest of the layer, or of the image's manifest
//!               vnd.sampan.about-bytes   size of the layer            (indexes only)
//!               vnd.sampan.diff-id       diffID of the layer          (indexes only)
//!               vnd.sampan.head          LENGTH:BLAKE3 of the file's head (of a trace: of all of it)
//!               vnd.sampan.command       shape of the command         (packs and traces; for people, the head has it too)
//!               vnd.sampan.signatures    KEYID:SIGNATURE …
//! ```
//!
//! Signed is the text that [`Subject::statement`] makes of the same numbers. Descriptions are foreign bytes; any are safe to read.

use crate::index::Hash;
use crate::keys::{KeyError, KeyRing, Signature, TrustError};
use crate::limits::{PUBLISHED_ENTRIES_MAX, SHAPE_BYTES_MAX};
use sampan_oci::digest::Digest;
use sampan_oci::limits::MANIFEST_BYTES_MAX;
use sampan_oci::manifest::Descriptor;
use sampan_oci::media_type::OCI_MANIFEST;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The type of the artifact that holds what is published about one image.
pub const ARTIFACT_TYPE: &str = "application/vnd.sampan.image.index.v1";
/// OCI's configuration of an artifact that has none: `{}`.
pub(crate) const EMPTY_CONFIG: &[u8] = b"{}";
const EMPTY_CONFIG_TYPE: &str = "application/vnd.oci.empty.v1+json";
const INDEX_TYPE: &str = "application/vnd.sampan.layer.index.v1";
const PACK_TYPE: &str = "application/vnd.sampan.start.pack.v1";
const TRACE_TYPE: &str = "application/vnd.sampan.start.trace.v1";

const ABOUT: &str = "vnd.sampan.about";
const ABOUT_BYTES: &str = "vnd.sampan.about-bytes";
const DIFF_ID: &str = "vnd.sampan.diff-id";
const HEAD: &str = "vnd.sampan.head";
const COMMAND: &str = "vnd.sampan.command";
const SIGNATURES: &str = "vnd.sampan.signatures";

/// What a file is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    Index { layer: Digest, layer_bytes: u64, diff_id: Digest },
    Pack { manifest: Digest },
    Trace { manifest: Digest },
}

/// The beginning of a file that vouches for the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub bytes: u64,
    pub hash: Hash,
}

impl Head {
    pub fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, hash: *blake3::hash(bytes).as_bytes() }
    }

    pub fn matches(&self, bytes: &[u8]) -> bool {
        *self == Self::of(bytes)
    }
}

impl Subject {
    /// What is signed. Nothing in it is free text, so two different subjects never give the same.
    pub fn statement(&self, head: &Head) -> Vec<u8> {
        let hash = blake3::Hash::from_bytes(head.hash).to_hex();
        let about = match self {
            Self::Index { layer, layer_bytes, diff_id } => {
                format!("sampan index 1\nlayer {layer} {layer_bytes}\ndiff-id {diff_id}\n")
            }
            Self::Pack { manifest } => format!("sampan pack 1\nmanifest {manifest}\n"),
            Self::Trace { manifest } => format!("sampan trace 1\nmanifest {manifest}\n"),
        };
        format!("{about}head {} blake3:{hash}\n", head.bytes).into_bytes()
    }

    fn media_type(&self) -> &'static str {
        match self {
            Self::Index { .. } => INDEX_TYPE,
            Self::Pack { .. } => PACK_TYPE,
            Self::Trace { .. } => TRACE_TYPE,
        }
    }
}

/// A published file as its publisher describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    pub digest: Digest,
    pub size: u64,
    pub subject: Subject,
    pub head: Head,
    /// The command that a pack or a trace was made from, for people.
    pub command: String,
    pub signatures: Vec<Signature>,
}

impl Description {
    /// Describes and signs a file.
    pub fn signed(
        keys: &KeyRing,
        digest: Digest,
        size: u64,
        subject: Subject,
        head: Head,
        command: &str,
    ) -> Result<Self, KeyError> {
        let signatures = keys.sign(&subject.statement(&head))?;
        Ok(Self { digest, size, subject, head, command: command.to_owned(), signatures })
    }

    /// Whether somebody whom `keys` believe has signed it. Reads files.
    pub fn check(&self, keys: &KeyRing) -> Result<Result<(), TrustError>, KeyError> {
        Ok(keys.check(&self.subject.statement(&self.head), &self.signatures)?.map(drop))
    }

    pub fn to_json(&self) -> Value {
        let mut annotations = BTreeMap::new();
        let hash = blake3::Hash::from_bytes(self.head.hash).to_hex();
        annotations.insert(HEAD, format!("{}:{hash}", self.head.bytes));
        let signatures: Vec<String> = self.signatures.iter().map(Signature::to_string).collect();
        annotations.insert(SIGNATURES, signatures.join(" "));
        match self.subject {
            Subject::Index { layer, layer_bytes, diff_id } => {
                annotations.insert(ABOUT, layer.to_string());
                annotations.insert(ABOUT_BYTES, layer_bytes.to_string());
                annotations.insert(DIFF_ID, diff_id.to_string());
            }
            Subject::Pack { manifest } | Subject::Trace { manifest } => {
                annotations.insert(ABOUT, manifest.to_string());
                annotations.insert(COMMAND, self.command.clone());
            }
        }
        json!({"mediaType": self.subject.media_type(), "digest": self.digest, "size": self.size, "annotations": annotations})
    }

    fn from_descriptor(descriptor: &Descriptor) -> Option<Self> {
        let text = |name: &str| descriptor.annotations.get(name).map(String::as_str);
        let about = text(ABOUT)?.parse().ok()?;
        let subject = match descriptor.media_type.as_str() {
            INDEX_TYPE => Subject::Index {
                layer: about,
                layer_bytes: text(ABOUT_BYTES)?.parse().ok()?,
                diff_id: text(DIFF_ID)?.parse().ok()?,
            },
            PACK_TYPE => Subject::Pack { manifest: about },
            TRACE_TYPE => Subject::Trace { manifest: about },
            _ => return None,
        };
        let (bytes, hash) = text(HEAD)?.split_once(':')?;
        let head = Head { bytes: bytes.parse().ok()?, hash: *blake3::Hash::from_hex(hash).ok()?.as_bytes() };
        let command = match subject {
            Subject::Index { .. } => "",
            Subject::Pack { .. } | Subject::Trace { .. } => text(COMMAND).unwrap_or_default(),
        };
        // It is for people only: one that is too long to be a command's shape is left out.
        let command = if command.len() > SHAPE_BYTES_MAX { String::new() } else { command.to_owned() };
        let signatures = Signature::read_all(text(SIGNATURES).unwrap_or_default());
        let (digest, size) = (descriptor.digest, descriptor.size);
        (head.bytes <= size).then_some(Self { digest, size, subject, head, command, signatures })
    }

    /// Reads one description, as an index cache has it.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return None;
        }
        Self::from_descriptor(&serde_json::from_slice(bytes).ok()?)
    }
}

/// The manifest of an artifact about the image whose manifest `subject` describes.
pub fn artifact(subject: &Descriptor, files: &[Description]) -> Value {
    let subject = json!({"mediaType": subject.media_type, "digest": subject.digest, "size": subject.size});
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": EMPTY_CONFIG_TYPE, "digest": Digest::of(EMPTY_CONFIG), "size": EMPTY_CONFIG.len()},
        "layers": files.iter().map(Description::to_json).collect::<Vec<_>>(),
        "subject": subject,
    })
}

/// The descriptions in an artifact's manifest; what cannot be read is passed over, and so is a manifest that is none.
pub fn read_artifact(bytes: &[u8]) -> Vec<Description> {
    #[derive(Deserialize, Default)]
    struct Wire {
        #[serde(default)]
        layers: Vec<Value>,
    }
    if bytes.len() > MANIFEST_BYTES_MAX {
        return Vec::new();
    }
    let wire: Wire = serde_json::from_slice(bytes).unwrap_or_default();
    let descriptors = wire.layers.into_iter().take(PUBLISHED_ENTRIES_MAX);
    let read = |value| Description::from_descriptor(&serde_json::from_value(value).ok()?);
    descriptors.filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn descriptions(keys: &KeyRing) -> Vec<Description> {
        let about = Digest::of(b"about");
        let subjects = [
            Subject::Index { layer: about, layer_bytes: 7, diff_id: Digest::of(b"diff") },
            Subject::Pack { manifest: about },
            Subject::Trace { manifest: about },
        ];
        let sign =
            |subject| Description::signed(keys, Digest::of(b"file"), 100, subject, Head::of(b"head"), "").unwrap();
        subjects.map(sign).to_vec()
    }

    #[test]
    fn descriptions_survive_an_artifact() {
        let directory = tempfile::tempdir().unwrap();
        let keys = KeyRing::new(directory.path());
        let files = descriptions(&keys);
        let subject = serde_json::from_value(json!({"mediaType": OCI_MANIFEST, "digest": Digest::of(b""), "size": 5}));
        let manifest = artifact(&subject.unwrap(), &files).to_string();
        assert_eq!(read_artifact(manifest.as_bytes()), files);
        for file in &files {
            assert_eq!(Description::parse(file.to_json().to_string().as_bytes()).as_ref(), Some(file));
            assert_eq!(file.check(&keys).unwrap(), Ok(()));
        }
    }

    #[test]
    fn a_signature_covers_everything_that_counts() {
        let directory = tempfile::tempdir().unwrap();
        let keys = KeyRing::new(directory.path());
        let other = Digest::of(b"other");
        let refused = |change: &dyn Fn(&mut Description)| {
            for mut file in descriptions(&keys) {
                let before = file.clone();
                change(&mut file);
                let outcome = file.check(&keys).unwrap();
                assert!(file == before || outcome.is_err(), "{file:?}");
            }
        };
        refused(&|file| file.head.hash[0] ^= 1);
        refused(&|file| file.head.bytes += 1);
        refused(&|file| file.signatures.clear());
        refused(&|file| {
            file.subject = match file.subject {
                Subject::Index { layer, layer_bytes, .. } => Subject::Index { layer, layer_bytes, diff_id: other },
                Subject::Pack { .. } => Subject::Pack { manifest: other },
                Subject::Trace { .. } => Subject::Trace { manifest: other },
            };
        });
        refused(&|file| {
            file.subject = match file.subject {
                Subject::Index { diff_id, layer_bytes, .. } => Subject::Index { layer: other, layer_bytes, diff_id },
                Subject::Pack { manifest } => Subject::Trace { manifest },
                Subject::Trace { manifest } => Subject::Pack { manifest },
            };
        });
        refused(&|file| {
            if let Subject::Index { layer_bytes, .. } = &mut file.subject {
                *layer_bytes += 1;
            }
        });
    }

    proptest! {
        #[test]
        fn any_artifact_is_read(text in "[\\[\\]{}:,\"a-z0-9.]{0,80}", value in "\\PC{0,80}") {
            read_artifact(text.as_bytes());
            read_artifact(format!("{{\"layers\":[{text}]}}").as_bytes());
            let mut description = json!({
                "mediaType": INDEX_TYPE, "digest": Digest::of(b""), "size": 9,
                "annotations": {ABOUT: Digest::of(b""), ABOUT_BYTES: "1", DIFF_ID: Digest::of(b""), HEAD: value, SIGNATURES: value},
            });
            Description::parse(description.to_string().as_bytes());
            description["annotations"][HEAD] = json!(format!("9:{}", blake3::hash(b"").to_hex()));
            prop_assert!(Description::parse(description.to_string().as_bytes()).is_some());
        }
    }
}
