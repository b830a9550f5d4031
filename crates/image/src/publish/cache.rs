//! The index cache: a folder, or a web server that serves such a folder, where what is published lies by digest.
//!
//! ```text
//! <ALGORITHM>/<HEX of a layer's digest>.index       and .index.json, its description
//! <ALGORITHM>/<HEX of a manifest's digest>.pack     and .pack.json
//! <ALGORITHM>/<HEX of a manifest's digest>.trace    and .trace.json
//! ```
//!
//! Several machines may write into one folder: every file is replaced whole, the description after what it describes. A reader
//! that meets a description of a newer file sees a head that does not fit, and does without.

use super::describe::{Description, Subject};
use super::error::PublishError;
use super::place::Place;
use crate::limits::{CACHE_ANSWER_MAX, DESCRIPTION_BYTES_MAX};
use sampan_oci::digest::Digest;
use sampan_registry::RegistryClient;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use tokio::time::timeout;

/// Where an index cache is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheLocation {
    Folder(PathBuf),
    /// Begins with `http://` or `https://`, and ends with `/`.
    Url(String),
}

impl FromStr for CacheLocation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("http://") || text.starts_with("https://") {
            let slash = if text.ends_with('/') { "" } else { "/" };
            return Ok(Self::Url(format!("{text}{slash}")));
        }
        let path = Path::new(text);
        if path.is_absolute() && !text.contains("://") {
            return Ok(Self::Folder(path.to_owned()));
        }
        Err("write an absolute path, or an address that begins with http:// or https://".to_owned())
    }
}

impl std::fmt::Display for CacheLocation {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Folder(folder) => write!(out, "{}", folder.display()),
            Self::Url(url) => out.write_str(url),
        }
    }
}

/// What is looked for in a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CacheEntry {
    Index(Digest),
    Pack(Digest),
    Trace(Digest),
}

impl CacheEntry {
    fn of(subject: &Subject) -> Self {
        match subject {
            Subject::Index { layer, .. } => Self::Index(*layer),
            Subject::Pack { manifest } => Self::Pack(*manifest),
            Subject::Trace { manifest } => Self::Trace(*manifest),
        }
    }

    /// Relative, with `/` between its parts.
    fn name(&self) -> String {
        let (digest, extension) = match self {
            Self::Index(layer) => (layer, "index"),
            Self::Pack(manifest) => (manifest, "pack"),
            Self::Trace(manifest) => (manifest, "trace"),
        };
        format!("{}/{}.{extension}", digest.algorithm().name(), digest.hex())
    }
}

#[derive(Clone)]
pub(super) struct IndexCache {
    location: CacheLocation,
    client: RegistryClient,
}

impl std::fmt::Debug for IndexCache {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}", self.location)
    }
}

impl IndexCache {
    pub(super) fn new(location: CacheLocation, client: RegistryClient) -> Self {
        Self { location, client }
    }

    /// A description and where the file lies; not checked yet. What cannot be had is logged.
    pub(super) async fn find(&self, entry: CacheEntry) -> Option<(Description, Place)> {
        let name = entry.name();
        let (bytes, place) = match &self.location {
            CacheLocation::Folder(folder) => {
                let path = folder.join(format!("{name}.json"));
                let read = tokio::task::spawn_blocking(move || read_bounded(&path)).await;
                match read.unwrap_or_else(|error| Err(io::Error::other(error))) {
                    Ok(bytes) => (bytes, Place::File(folder.join(&name))),
                    Err(error) if error.kind() == ErrorKind::NotFound => return None,
                    Err(error) => {
                        tracing::warn!(folder = %folder.display(), %error, "the index cache cannot be read");
                        return None;
                    }
                }
            }
            CacheLocation::Url(base) => {
                let url = format!("{base}{name}.json");
                let asked = timeout(CACHE_ANSWER_MAX, self.client.read_url(&url, None, DESCRIPTION_BYTES_MAX)).await;
                let Ok(answer) = asked else {
                    tracing::warn!(cache = base, "the index cache does not answer in time");
                    return None;
                };
                match answer {
                    Ok(found) => {
                        let place = Place::Url { client: self.client.clone(), url: format!("{base}{name}") };
                        (found?.to_vec(), place)
                    }
                    Err(error) => {
                        tracing::warn!(cache = base, %error, "the index cache cannot be asked");
                        return None;
                    }
                }
            }
        };
        let description = Description::parse(&bytes)?;
        (CacheEntry::of(&description.subject) == entry).then_some((description, place))
    }

    /// Enters a file with its description; `false` where the cache is one that is only read. Blocks.
    pub(super) fn put(&self, description: &Description, file: &Path) -> Result<bool, PublishError> {
        let CacheLocation::Folder(folder) = &self.location else { return Ok(false) };
        let path = folder.join(CacheEntry::of(&description.subject).name());
        let write = || {
            fs::create_dir_all(path.parent().unwrap_or(folder))?;
            let temporary = temporary(&path);
            fs::copy(file, &temporary)?;
            fs::set_permissions(&temporary, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
            fs::rename(&temporary, &path)?;
            let json = with_json(&path);
            fs::write(&temporary, description.to_json().to_string())?;
            fs::rename(&temporary, json)
        };
        write().map_err(|source| PublishError::Cache { path: path.clone(), source })?;
        Ok(true)
    }
}

fn with_json(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".json");
    name.into()
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    name.into()
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(DESCRIPTION_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_folders_or_addresses() {
        let location = |text: &str| text.parse::<CacheLocation>().map(|location| location.to_string());
        assert_eq!(location("/srv/cache").as_deref(), Ok("/srv/cache"));
        assert_eq!(location("https://cache.example/x").as_deref(), Ok("https://cache.example/x/"));
        for wrong in ["cache", "ftp://x", "", "file:///x"] {
            assert!(location(wrong).is_err(), "{wrong}");
        }
    }
}
