//! What a person calls an image: a reference to a registry, a directory in OCI image layout, or an archive of `docker save`.
//!
//! Grammar and normalisation follow the distribution project's `reference` package: `nginx` means
//! `docker.io/library/nginx:latest`; the part before the first `/` is a registry only if it has a dot, a colon or an upper-case
//! letter, or is `localhost`. Invariant: a [`Reference`] in hand is normalised, and its parts are safe inside a URL path.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::digest::{Digest, DigestError};
use crate::limits::{NAME_BYTES_MAX, TAG_BYTES_MAX};
use crate::quote::Quote;

pub const DOCKER_HUB: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReferenceError {
    #[error("the image reference is empty; name an image, such as debian:13")]
    Empty,
    #[error("image reference \"{}\" begins with a URL scheme; leave \"{scheme}://\" out", Quote(.reference))]
    Scheme { reference: String, scheme: String },
    #[error("image reference \"{}\" has upper-case letters in its repository name; write \"{}\"", Quote(.reference), Quote(.lower))]
    UpperCase { reference: String, lower: String },
    #[error("image reference \"{}\" has a malformed registry \"{}\"; write host, host:port or [IPv6]:port", Quote(.reference), Quote(.registry))]
    Registry { reference: String, registry: String },
    #[error(
        "image reference \"{}\" has a malformed repository name \"{}\"; use lower-case letters, digits, and . _ - between them, with / between parts",
        Quote(.reference),
        Quote(.repository)
    )]
    Repository { reference: String, repository: String },
    #[error("image reference \"{}\" is only a digest's digits; name a repository too, as in name@sha256:<digits>", Quote(.0))]
    BareHex(String),
    #[error("image reference \"{}\" has a name of more than {NAME_BYTES_MAX} bytes; use a shorter one", Quote(.0))]
    TooLong(String),
    #[error(
        "image reference \"{}\" has a malformed tag \"{}\"; use at most {TAG_BYTES_MAX} letters, digits, and . _ - after the first",
        Quote(.reference),
        Quote(.tag)
    )]
    Tag { reference: String, tag: String },
    #[error("image reference \"{}\" has a malformed digest; copy it from the registry or leave it out", Quote(.reference))]
    Digest {
        reference: String,
        #[source]
        source: DigestError,
    },
    #[error("\"{}\" names no directory; write oci:/path/to/layout or oci:/path/to/layout:tag", Quote(.0))]
    NoLayoutDirectory(String),
    #[error("\"{}\" names no file; write docker-archive:/path/to/file.tar or docker-archive:/path/to/file.tar:name:tag", Quote(.0))]
    NoArchiveFile(String),
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ImageSource {
    Registry(Reference),
    /// A directory in OCI image layout (`oci:DIR[:TAG]`); without a tag it must hold exactly one image.
    Layout {
        directory: PathBuf,
        tag: Option<String>,
    },
    /// What `docker save` wrote (`docker-archive:FILE[:REFERENCE]`); without a reference it must hold exactly one image. The
    /// file's path has no colon.
    Archive {
        file: PathBuf,
        name: Option<Reference>,
    },
}

impl FromStr for ImageSource {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if let Some(archive) = text.strip_prefix("docker-archive:") {
            let (file, name) = archive.split_once(':').map_or((archive, None), |(file, name)| (file, Some(name)));
            if file.is_empty() {
                return Err(ReferenceError::NoArchiveFile(text.to_owned()));
            }
            return Ok(Self::Archive { file: file.into(), name: name.map(str::parse).transpose()? });
        }
        let Some(layout) = text.strip_prefix("oci:") else { return Ok(Self::Registry(text.parse()?)) };
        let (directory, tag) = match layout.rsplit_once(':') {
            Some((directory, tag)) if !tag.contains('/') => (directory, Some(tag)),
            _ => (layout, None),
        };
        if directory.is_empty() {
            return Err(ReferenceError::NoLayoutDirectory(text.to_owned()));
        }
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag { reference: text.to_owned(), tag: tag.to_owned() });
        }
        Ok(Self::Layout { directory: Path::new(directory).to_owned(), tag: tag.map(str::to_owned) })
    }
}

/// Writes what [`ImageSource::from_str`] reads.
impl fmt::Display for ImageSource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(out),
            Self::Layout { directory, tag: None } => write!(out, "oci:{}", directory.display()),
            Self::Layout { directory, tag: Some(tag) } => write!(out, "oci:{}:{tag}", directory.display()),
            Self::Archive { file, name: None } => write!(out, "docker-archive:{}", file.display()),
            Self::Archive { file, name: Some(name) } => write!(out, "docker-archive:{}:{name}", file.display()),
        }
    }
}

/// A normalised reference to an image in a registry: `registry/repository[:tag][@digest]`, with a tag, a digest, or both.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Host with optional port: `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path inside the registry: `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What the registry is asked for: the digest if there is one (it then wins over the tag), else the tag.
    pub fn manifest_name(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    /// The same repository at exactly `digest`.
    pub fn at(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The shortest spelling that means the same: `nginx:1.27` for `docker.io/library/nginx:1.27`.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        match full.strip_prefix("docker.io/") {
            Some(path) => path
                .strip_prefix("library/")
                .filter(|_| self.repository.matches('/').count() == 1)
                .unwrap_or(path)
                .to_owned(),
            None => full,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(out, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(out, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let whole = || text.to_owned();
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(ReferenceError::Scheme { reference: whole(), scheme: scheme.to_owned() });
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|source| ReferenceError::Digest { reference: whole(), source })?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') && !tag.contains(']') => (name, Some(tag)),
            _ => (rest, None),
        };
        let (registry, repository) = split_name(name);
        check_name(text, &registry, &repository)?;
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag { reference: whole(), tag: tag.to_owned() });
        }
        let tag = tag.or_else(|| digest.is_none().then_some(DEFAULT_TAG)).map(str::to_owned);
        Ok(Self { registry, repository, tag, digest })
    }
}

/// Registry and repository of a name, with Docker Hub's short forms written out.
fn split_name(name: &str) -> (String, String) {
    let is_registry = |first: &str| {
        first.contains(['.', ':']) || first == "localhost" || first.chars().any(|letter| letter.is_ascii_uppercase())
    };
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if is_registry(first) => (first, rest),
        _ => (DOCKER_HUB, name),
    };
    let registry = if registry == "index.docker.io" { DOCKER_HUB } else { registry };
    if registry == DOCKER_HUB && !repository.contains('/') && !repository.is_empty() {
        return (registry.to_owned(), format!("library/{repository}"));
    }
    (registry.to_owned(), repository.to_owned())
}

fn check_name(reference: &str, registry: &str, repository: &str) -> Result<(), ReferenceError> {
    let whole = || reference.to_owned();
    if !is_registry_host(registry) {
        return Err(ReferenceError::Registry { reference: whole(), registry: registry.to_owned() });
    }
    let short = repository.strip_prefix("library/").unwrap_or(repository);
    if !repository.split('/').all(is_path_component) {
        let lower = repository.to_ascii_lowercase();
        if lower != repository && lower.split('/').all(is_path_component) {
            return Err(ReferenceError::UpperCase {
                reference: whole(),
                lower: reference.replace(short, &short.to_ascii_lowercase()),
            });
        }
        return Err(ReferenceError::Repository { reference: whole(), repository: short.to_owned() });
    }
    if short.len() == 64 && short.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(ReferenceError::BareHex(whole()));
    }
    if registry.len() + 1 + repository.len() > NAME_BYTES_MAX {
        return Err(ReferenceError::TooLong(whole()));
    }
    Ok(())
}

/// `host`, `host:port`, `[IPv6]` or `[IPv6]:port`.
fn is_registry_host(registry: &str) -> bool {
    let is_port = |port: &str| !port.is_empty() && port.len() <= 5 && port.parse::<u16>().is_ok();
    if let Some(rest) = registry.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        return address.parse::<std::net::Ipv6Addr>().is_ok()
            && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    let (host, port) = match registry.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (registry, None),
    };
    let is_label = |label: &str| {
        label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && label.bytes().next().is_some_and(|byte| byte != b'-')
            && label.bytes().last().is_some_and(|byte| byte != b'-')
    };
    host.split('.').all(is_label) && port.is_none_or(is_port)
}

/// Runs of lower-case letters and digits, joined by `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let separators = component.split(|letter: char| letter.is_ascii() && is_alphanumeric(letter as u8));
    component.bytes().next().is_some_and(is_alphanumeric)
        && component.bytes().last().is_some_and(is_alphanumeric)
        && separators
            .into_iter()
            .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= TAG_BYTES_MAX
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_names_are_written_out() {
        for (text, full) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("bitnami/redis", "docker.io/bitnami/redis:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("ghcr.io/Owner/x".to_lowercase().as_str(), "ghcr.io/owner/x:latest"),
            ("HOST/app", "HOST/app:latest"),
            ("a--b/c__d.e", "docker.io/a--b/c__d.e:latest"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), full, "{text}");
        }
    }

    #[test]
    fn digests_win_and_tags_are_kept() {
        let both: Reference = format!("nginx:1@{DIGEST}").parse().unwrap();
        assert_eq!(both.manifest_name(), DIGEST);
        assert_eq!(both.tag(), Some("1"));
        let pinned: Reference = format!("nginx@{DIGEST}").parse().unwrap();
        assert_eq!((pinned.tag(), pinned.to_string()), (None, format!("docker.io/library/nginx@{DIGEST}")));
    }

    #[test]
    fn familiar_names_are_short_and_mean_the_same() {
        for text in ["nginx:1", "bitnami/redis:latest", "quay.io/a/b:c", "library/a/b:c"] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.familiar(), text);
        }
    }

    #[test]
    fn bad_references_say_what_why_and_the_way_out() {
        let check = |text: &str, expected: Expect| {
            expected.assert_eq(&text.parse::<ImageSource>().unwrap_err().to_string());
        };
        check("", expect!["the image reference is empty; name an image, such as debian:13"]);
        check(
            "https://quay.io/x",
            expect![[r#"image reference "https://quay.io/x" begins with a URL scheme; leave "https://" out"#]],
        );
        check(
            "Nginx",
            expect![[r#"image reference "Nginx" has upper-case letters in its repository name; write "nginx""#]],
        );
        check(
            "a//b",
            expect![[
                r#"image reference "a//b" has a malformed repository name "a//b"; use lower-case letters, digits, and . _ - between them, with / between parts"#
            ]],
        );
        check(
            "x.io:99999/a",
            expect![[
                r#"image reference "x.io:99999/a" has a malformed registry "x.io:99999"; write host, host:port or [IPv6]:port"#
            ]],
        );
        check(
            "nginx:",
            expect![[
                r#"image reference "nginx:" has a malformed tag ""; use at most 128 letters, digits, and . _ - after the first"#
            ]],
        );
        check(
            "nginx@sha256:12",
            expect![[
                r#"image reference "nginx@sha256:12" has a malformed digest; copy it from the registry or leave it out"#
            ]],
        );
        check(
            "docker-archive:",
            expect![[
                r#""docker-archive:" names no file; write docker-archive:/path/to/file.tar or docker-archive:/path/to/file.tar:name:tag"#
            ]],
        );
        check("oci:", expect![[r#""oci:" names no directory; write oci:/path/to/layout or oci:/path/to/layout:tag"#]]);
        assert_eq!(DIGEST[7..].parse::<Reference>(), Err(ReferenceError::BareHex(DIGEST[7..].to_owned())));
        assert!(matches!("a".repeat(300).parse::<Reference>(), Err(ReferenceError::TooLong(_))));
    }

    #[test]
    fn layouts_have_a_directory_and_perhaps_a_tag() {
        for (text, directory, tag) in [
            ("oci:/srv/images", "/srv/images", None),
            ("oci:/srv/images:v1", "/srv/images", Some("v1")),
            ("oci:/srv/a:b/c", "/srv/a:b/c", None),
        ] {
            let source: ImageSource = text.parse().unwrap();
            assert_eq!(source, ImageSource::Layout { directory: directory.into(), tag: tag.map(str::to_owned) });
            assert_eq!(source.to_string(), text);
        }
    }

    #[test]
    fn archives_have_a_file_and_perhaps_a_name() {
        for (text, file, name) in [
            ("docker-archive:/srv/a.tar", "/srv/a.tar", None),
            ("docker-archive:/srv/a.tar:nginx", "/srv/a.tar", Some("docker.io/library/nginx:latest")),
            ("docker-archive:/srv/a.tar:x.io:5000/b/c:v1", "/srv/a.tar", Some("x.io:5000/b/c:v1")),
        ] {
            let source: ImageSource = text.parse().unwrap();
            let name = name.map(|name| name.parse::<Reference>().unwrap());
            assert_eq!(source, ImageSource::Archive { file: file.into(), name });
            assert_eq!(source.to_string().parse::<ImageSource>().unwrap(), source);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_normalised_or_refused(text in "((docker-archive|oci):)?([a-zA-Z0-9:/@._\\[\\]-]{0,60}|\\PC{0,40})") {
            if let Ok(source) = text.parse::<ImageSource>() {
                let again: ImageSource = source.to_string().parse().unwrap();
                prop_assert_eq!(again, source);
            }
        }

        #[test]
        fn parts_are_safe_in_a_url(text in "[a-zA-Z0-9:/@._%?#-]{1,60}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert!(!reference.repository().contains(['%', '?', '#', '@', ':']));
                prop_assert!(reference.repository().split('/').all(|part| !part.is_empty() && part != "..") );
            }
        }
    }
}
