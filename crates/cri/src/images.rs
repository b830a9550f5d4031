//! Images, as the interface speaks of them.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sampan_image::{Image, ImageError, ImageSummary, ProgressSender, PullPolicy};
use sampan_oci::reference::ImageSource;
use sampan_registry::{Credentials, Login};

use crate::engine::{Engine, now};
use crate::error::CallError;
use crate::proto::v1::{self, AuthConfig, FilesystemIdentifier, FilesystemUsage, Int64Value, UInt64Value};

impl Engine {
    /// An image that is on this machine; in use as long as it is held.
    pub(crate) fn present(&self, name: &str) -> Result<Arc<Image>, CallError> {
        self.images.find(name).ok_or_else(|| CallError::NotFound { what: "image", id: name.to_owned() })
    }

    /// A name with a digest, where the image has one; else its id.
    pub(crate) async fn image_ref(&self, image: &Image) -> String {
        let summary = self.images.describe(image.id).await.ok().flatten();
        let digested = summary.and_then(|summary| summary.repo_digests.into_iter().next());
        digested.unwrap_or_else(|| image.id.to_string())
    }

    pub(crate) async fn list_images(&self, name: &str) -> Result<Vec<v1::Image>, CallError> {
        if !name.is_empty() {
            return Ok(self.image_status(name).await?.into_iter().collect());
        }
        let all = self.images.list().await?;
        Ok(all.into_iter().map(|summary| self.described(summary)).collect())
    }

    pub(crate) async fn image_status(&self, name: &str) -> Result<Option<v1::Image>, CallError> {
        if name.is_empty() {
            return Err(CallError::Invalid("image.image: is empty".to_owned()));
        }
        let Some(id) = self.images.find_id(name) else { return Ok(None) };
        Ok(self.images.describe(id).await?.map(|summary| self.described(summary)))
    }

    fn described(&self, summary: ImageSummary) -> v1::Image {
        let (uid, username) = user(&summary.user);
        let tag = |text: &String| match text.parse() {
            Ok(ImageSource::Registry(reference)) if reference.digest().is_none() => Some(text.clone()),
            _ => None,
        };
        let repo_tags: Vec<String> = summary.references.iter().filter_map(tag).collect();
        let pinned = summary.references.iter().any(|reference| self.pinned.contains(reference));
        v1::Image {
            id: summary.id.to_string(),
            repo_tags,
            repo_digests: summary.repo_digests,
            size: summary.size_bytes,
            uid,
            username,
            spec: None,
            pinned,
        }
    }

    /// Brings what the name means now; gives the image's id. Dropping the future gives up.
    pub(crate) async fn pull_image(&self, name: &str, auth: Option<AuthConfig>) -> Result<String, CallError> {
        let source: ImageSource =
            name.parse().map_err(|source| ImageError::Reference { reference: name.to_owned(), source })?;
        let credentials = match (&source, auth) {
            (ImageSource::Registry(reference), Some(auth)) => credentials(reference.registry(), auth)?,
            _ => Credentials::host(),
        };
        let pulled = self.images.ensure_as(name, PullPolicy::Always, credentials, ProgressSender::none()).await?;
        Ok(pulled.id.to_string())
    }

    /// Removes an image with all its names. One that is not here is no failure.
    pub(crate) async fn remove_image(&self, name: &str) -> Result<(), CallError> {
        let Some(id) = self.images.find_id(name) else { return Ok(()) };
        match self.images.remove(&id.to_string()).await {
            Ok(_) | Err(ImageError::Unknown { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Where the images are.
    pub(crate) fn image_folder(&self) -> String {
        self.data_dir.join("images").to_string_lossy().into_owned()
    }

    /// What images and writable layers take on the disk. They share it: the kubelet is told of one file system.
    pub(crate) async fn filesystem(&self) -> Result<FilesystemUsage, CallError> {
        let folders = ["images", "sandboxes"].map(|name| self.data_dir.join(name));
        let counted = tokio::task::spawn_blocking(move || {
            folders.iter().map(|folder| allocated(folder)).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
        });
        let (bytes, files) = counted.await.map_err(|_panic| CallError::Broken)?;
        Ok(FilesystemUsage {
            timestamp: now(),
            fs_id: Some(FilesystemIdentifier { mountpoint: self.image_folder() }),
            used_bytes: Some(UInt64Value { value: bytes }),
            inodes_used: Some(UInt64Value { value: files }),
        })
    }
}

/// Bytes and number of files below a folder. What goes while it is counted is not counted.
fn allocated(folder: &Path) -> (u64, u64) {
    /// What `st_blocks` counts in (stat(3type)).
    const BLOCK_BYTES: u64 = 512;
    let (mut bytes, mut files) = (0, 0);
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                folders.push(entry.path());
            }
            bytes += metadata.blocks() * BLOCK_BYTES;
            files += 1;
        }
    }
    (bytes, files)
}

/// The user of an image as the kubelet checks it against `runAsNonRoot`: a number or a name, without the group.
fn user(text: &str) -> (Option<Int64Value>, String) {
    let user = text.split(':').next().unwrap_or_default();
    match user.parse::<i64>() {
        Ok(value) => (Some(Int64Value { value }), String::new()),
        Err(_name) => (None, user.to_owned()),
    }
}

/// What the request knows of a registry. Logins for another registry than the image's are not shown to it.
fn credentials(registry: &str, auth: AuthConfig) -> Result<Credentials, CallError> {
    if !auth.server_address.is_empty() && !is_same_registry(&auth.server_address, registry) {
        return Ok(Credentials::host());
    }
    let login = if !auth.registry_token.is_empty() {
        Some(Login::RegistryToken(auth.registry_token))
    } else if !auth.identity_token.is_empty() {
        Some(Login::IdentityToken(auth.identity_token))
    } else if !auth.username.is_empty() {
        Some(Login::Password { username: auth.username, password: auth.password })
    } else if !auth.auth.is_empty() {
        let invalid = || CallError::Invalid("auth.auth: is not base64 of USER:PASSWORD".to_owned());
        let plain = STANDARD.decode(&auth.auth).map_err(|_error| invalid())?;
        let plain = String::from_utf8(plain).map_err(|_error| invalid())?;
        let (username, password) = plain.split_once(':').ok_or_else(invalid)?;
        // Docker pads passwords with zeros.
        let password = password.trim_end_matches('\0').to_owned();
        Some(Login::Password { username: username.to_owned(), password })
    } else {
        None
    };
    Ok(login.map_or_else(Credentials::host, Credentials::login))
}

/// Whether an address such as `https://index.docker.io/v1/` means this registry.
fn is_same_registry(address: &str, registry: &str) -> bool {
    let host = |text: &str| {
        let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
        let host = rest.split('/').next().unwrap_or_default();
        match host {
            "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
            host => host.to_owned(),
        }
    };
    host(address) == host(registry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_number_or_a_name() {
        let number = |value| Some(Int64Value { value });
        assert_eq!(user("1002"), (number(1002), String::new()));
        assert_eq!(user("1003:users"), (number(1003), String::new()));
        assert_eq!(user("www-data:www"), (None, "www-data".to_owned()));
        assert_eq!(user(""), (None, String::new()));
    }

    #[test]
    fn logins_go_only_to_their_registry() {
        let auth = |server: &str| AuthConfig {
            auth: STANDARD.encode("me:hunter2"),
            server_address: server.to_owned(),
            ..AuthConfig::default()
        };
        let shown = |server: &str, registry: &str| format!("{:?}", credentials(registry, auth(server)).unwrap());
        assert!(shown("", "quay.io").contains("me"));
        assert!(shown("https://index.docker.io/v1/", "docker.io").contains("me"));
        assert!(!shown("https://quay.io", "evil.example").contains("me"));
        assert!(!shown("", "quay.io").contains("hunter2"));
        let broken = AuthConfig { auth: "!".to_owned(), ..AuthConfig::default() };
        assert!(credentials("quay.io", broken).is_err());
    }
}
