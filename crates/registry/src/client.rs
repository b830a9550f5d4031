//! The client: one face for registries, their mirrors, image layouts, and archives.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sampan_oci::config::ImageConfig;
use sampan_oci::digest::Digest;
use sampan_oci::limits::{CONFIG_BYTES_MAX, MANIFEST_BYTES_MAX};
use sampan_oci::manifest::{Descriptor, Document, Index, Manifest, ManifestError};
use sampan_oci::platform::Platform;
use sampan_oci::reference::{ImageSource, Reference};

use crate::archive::{Archive, ResolveError};
use crate::blob::{BlobReader, LayoutFile};
use crate::config::RegistryConfig;
use crate::credentials::{Credentials, Login};
use crate::error::{FetchError, LayoutError, Site};
use crate::layout::{IndexError, Layout};
use crate::limits::{INDEX_DEPTH_MAX, RANGE_BYTES_MAX};
use crate::ranged::{RangeStream, RangedBlob};
use crate::repository::{Repository, Shared};
use crate::token::{GrantKey, Grants};
use crate::transfer::Transfer;
use crate::transport::{Transport, authority, lock};

/// How long a login found in this machine's files is used without looking again: a credential program may take a second.
const HOST_LOGIN_LIFE: Duration = Duration::from_secs(60);

type HostLogins = Mutex<HashMap<(String, String), (Instant, Option<Login>)>>;

/// Fetches images. Cheap to clone; clones share connections and tokens.
#[derive(Clone)]
pub struct RegistryClient {
    pub(crate) shared: Arc<Shared>,
    host_logins: Arc<HostLogins>,
    /// Registries that were seen not to have the referrers API.
    pub(crate) without_referrers: Arc<Mutex<HashSet<String>>>,
}

/// An image for one platform, found and checked; its layers are still where they were.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Digest of what the reference names: an index, or the manifest itself.
    pub digest: Digest,
    pub manifest_digest: Digest,
    pub manifest: Manifest,
    pub manifest_bytes: Bytes,
    pub config: ImageConfig,
    pub config_bytes: Bytes,
    /// What the archive that it comes from calls it.
    pub name: Option<Reference>,
}

impl RegistryClient {
    pub fn new(config: RegistryConfig) -> Self {
        let config = Arc::new(config);
        let transport = Transport::new(Arc::clone(&config));
        let shared = Arc::new(Shared { config, transport, grants: Grants::default() });
        Self { shared, host_logins: Arc::default(), without_referrers: Arc::default() }
    }

    /// Digest of what `source` names at this moment. Registries count this as no pull.
    pub async fn current_digest(&self, source: &ImageSource, credentials: &Credentials) -> Result<Digest, FetchError> {
        match source {
            ImageSource::Registry(reference) => {
                let attempt = |repository: Repository| async move { repository.manifest_digest(reference).await };
                self.first_answer(reference, credentials, attempt).await
            }
            ImageSource::Layout { directory, tag } => {
                let index = find_in_layout(source, directory, tag.as_deref())?;
                first_digest(source, &index)
            }
            ImageSource::Archive { .. } => {
                let resolved = self.resolve(source, &Platform::host(), credentials).await?;
                Ok(resolved.digest)
            }
        }
    }

    /// What the images of an archive of `docker save` are called.
    pub async fn archive_names(&self, file: &Path) -> Result<Vec<Reference>, FetchError> {
        let source = ImageSource::Archive { file: file.to_owned(), name: None };
        let path = file.to_owned();
        let names = in_archive(&source, move || {
            Archive::open(&path).and_then(|archive| archive.names()).map_err(ResolveError::Archive)
        });
        names.await
    }

    /// Finds the image for `platform`: its manifest and configuration, checked against each other and their digests.
    pub async fn resolve(
        &self,
        source: &ImageSource,
        platform: &Platform,
        credentials: &Credentials,
    ) -> Result<Resolved, FetchError> {
        match source {
            ImageSource::Registry(reference) => {
                let attempt = |repository: Repository| async move {
                    let named = reference.manifest_name();
                    let (bytes, digest, media_type) = repository.manifest(&named, reference.digest()).await?;
                    let documents = Documents::Repository(&repository);
                    documents.resolve(source, platform, digest, digest, bytes, media_type).await
                };
                self.first_answer(reference, credentials, attempt).await
            }
            ImageSource::Layout { directory, tag } => {
                let index = find_in_layout(source, directory, tag.as_deref())?;
                let entry = match &index.manifests[..] {
                    // A single entry may leave its platform out; its configuration tells.
                    [only] => only.clone(),
                    _ => index.select(platform).map_err(|error| manifest_error(source, error))?.clone(),
                };
                let documents = Documents::Layout(directory, source);
                let bytes = documents.read(&entry.digest, &entry.media_type, MANIFEST_BYTES_MAX).await?;
                let digest = first_digest(source, &index)?;
                documents.resolve(source, platform, digest, entry.digest, bytes, Some(entry.media_type)).await
            }
            ImageSource::Archive { file, name } => {
                let (file, name, platform) = (file.clone(), name.clone(), platform.clone());
                let resolve = move || Archive::open(&file)?.resolve(name.as_ref(), &platform);
                in_archive(source, resolve).await
            }
        }
    }

    /// Opens a layer, or any other blob of the image, for reading in order. Must be called inside of a tokio runtime; the
    /// reader's transfers run there.
    pub async fn open_blob(
        &self,
        source: &ImageSource,
        blob: &Descriptor,
        credentials: &Credentials,
    ) -> Result<BlobReader, FetchError> {
        match source {
            ImageSource::Registry(reference) => {
                let attempt = |repository| BlobReader::open(transfer(repository, blob));
                self.first_answer(reference, credentials, attempt).await
            }
            ImageSource::Layout { directory, .. } => Ok(reader(source, layout_blob(source, directory, blob)?, blob)),
            ImageSource::Archive { file, name } => {
                Ok(reader(source, archive_blob(source, file, name, blob).await?, blob))
            }
        }
    }

    /// Some bytes of a blob. Nothing vouches for them: the caller checks.
    pub async fn read_range(
        &self,
        source: &ImageSource,
        blob: &Descriptor,
        range: Range<u64>,
        credentials: &Credentials,
    ) -> Result<Bytes, FetchError> {
        let length = range.end.saturating_sub(range.start);
        if range.start > range.end || range.end > blob.size || length > RANGE_BYTES_MAX {
            let (image, size) = (source.to_string(), blob.size);
            return Err(FetchError::BadRange { image, start: range.start, end: range.end, size });
        }
        if length == 0 {
            return Ok(Bytes::new());
        }
        match source {
            ImageSource::Registry(reference) => {
                let range = &range;
                let attempt = |repository| async move { transfer(repository, blob).read(range.clone()).await };
                self.first_answer(reference, credentials, attempt).await
            }
            ImageSource::Layout { directory, .. } => {
                read_file(source, layout_blob(source, directory, blob)?, range).await
            }
            ImageSource::Archive { file, name } => {
                read_file(source, archive_blob(source, file, name, blob).await?, range).await
            }
        }
    }

    /// Opens a blob for many random reads and starts the first of them. Must be called inside of a tokio runtime.
    pub async fn ranged_blob(
        &self,
        source: &ImageSource,
        blob: &Descriptor,
        first: Range<u64>,
        credentials: &Credentials,
    ) -> Result<(RangedBlob, RangeStream), FetchError> {
        if first.is_empty() || first.end > blob.size {
            let (image, size) = (source.to_string(), blob.size);
            return Err(FetchError::BadRange { image, start: first.start, end: first.end, size });
        }
        match source {
            ImageSource::Registry(reference) => {
                let first = &first;
                let attempt = |repository| RangedBlob::open(transfer(repository, blob), first.clone());
                self.first_answer(reference, credentials, attempt).await
            }
            ImageSource::Layout { directory, .. } => Ok(ranged(source, layout_blob(source, directory, blob)?, first)),
            ImageSource::Archive { file, name } => {
                Ok(ranged(source, archive_blob(source, file, name, blob).await?, first))
            }
        }
    }

    /// Asks mirrors in their order, and the registry itself last; its error is the one that counts.
    async fn first_answer<T, F>(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        attempt: impl Fn(Repository) -> F,
    ) -> Result<T, FetchError>
    where
        F: Future<Output = Result<T, FetchError>>,
    {
        let own = reference.registry();
        for mirror in self.shared.config.mirrors.get(own).into_iter().flatten() {
            let answer = match self.repository(mirror, reference, credentials).await {
                Ok(repository) => attempt(repository).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => tracing::info!(%error, %mirror, "a mirror is passed over"),
            }
        }
        let repository = self.repository(own, reference, credentials).await?;
        let answer = attempt(repository).await;
        if matches!(answer, Err(FetchError::LoginNeeded { .. } | FetchError::LoginRejected { .. })) {
            // Somebody may log in now.
            lock(&self.host_logins).clear();
        }
        answer
    }

    pub(crate) async fn repository(
        &self,
        registry: &str,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<Repository, FetchError> {
        let site = Arc::new(Site { host: registry.to_owned(), image: reference.to_string() });
        let login = self.login(registry, reference, credentials).await?;
        let base = self.shared.transport.base(&site, registry).await?;
        let repository = reference.repository().to_owned();
        let key = GrantKey { registry: authority(&base.url), repository, login, writes: false };
        Ok(Repository { shared: Arc::clone(&self.shared), site, base, key })
    }

    async fn login(
        &self,
        registry: &str,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<Option<Login>, FetchError> {
        let fail = |source| FetchError::Credentials { image: reference.to_string(), source: Box::new(source) };
        let own = registry == reference.registry();
        if let Some(login) = credentials.find_given(registry, reference.repository(), own).map_err(fail)? {
            return Ok(Some(login));
        }
        if !credentials.uses_host_files() {
            return Ok(None);
        }
        let key = (registry.to_owned(), reference.repository().to_owned());
        if let Some((found, login)) = lock(&self.host_logins).get(&key)
            && found.elapsed() < HOST_LOGIN_LIFE
        {
            return Ok(login.clone());
        }
        let files = &self.shared.config.auth_files;
        let login = crate::credentials::find_in_files(files, registry, reference.repository()).await.map_err(fail)?;
        let mut logins = lock(&self.host_logins);
        logins.retain(|_, (found, _)| found.elapsed() < HOST_LOGIN_LIFE);
        logins.insert(key, (Instant::now(), login.clone()));
        Ok(login)
    }
}

fn transfer(repository: Repository, blob: &Descriptor) -> Transfer {
    Transfer { repository, blob: blob.digest, size: blob.size, elsewhere: Mutex::default() }
}

/// Where documents named by digest come from.
enum Documents<'a> {
    Repository(&'a Repository),
    Layout(&'a Path, &'a ImageSource),
}

impl Documents<'_> {
    /// Follows indexes down to the manifest for `platform`, and its configuration.
    async fn resolve(
        &self,
        source: &ImageSource,
        platform: &Platform,
        digest: Digest,
        mut manifest_digest: Digest,
        mut bytes: Bytes,
        mut media_type: Option<String>,
    ) -> Result<Resolved, FetchError> {
        let fail = |error| manifest_error(source, error);
        for _ in 0..=INDEX_DEPTH_MAX {
            let document = Document::parse(&bytes, media_type.as_deref()).map_err(fail)?;
            let manifest = match document {
                Document::Manifest(manifest) => manifest,
                Document::Index(index) => {
                    let chosen = index.select(platform).map_err(fail)?;
                    manifest_digest = chosen.digest;
                    bytes = self.read(&chosen.digest, &chosen.media_type, MANIFEST_BYTES_MAX).await?;
                    media_type = Some(chosen.media_type.clone());
                    continue;
                }
            };
            let config_bytes =
                self.read(&manifest.config.digest, &manifest.config.media_type, CONFIG_BYTES_MAX).await?;
            let config = ImageConfig::parse(&config_bytes)
                .map_err(|error| FetchError::Config { image: source.to_string(), source: Box::new(error) })?;
            manifest.check_config(&config, platform).map_err(fail)?;
            let (manifest_bytes, name) = (bytes, None);
            return Ok(Resolved { digest, manifest_digest, manifest, manifest_bytes, config, config_bytes, name });
        }
        Err(fail(ManifestError::TooDeep))
    }

    async fn read(&self, digest: &Digest, media_type: &str, limit: usize) -> Result<Bytes, FetchError> {
        match self {
            Self::Repository(repository) if sampan_oci::media_type::is_config(media_type) => {
                repository.document(digest, limit).await
            }
            Self::Repository(repository) => {
                let (bytes, ..) = repository.manifest(&digest.to_string(), Some(digest)).await?;
                Ok(bytes)
            }
            Self::Layout(directory, source) => {
                let read = Layout::open(directory).and_then(|layout| layout.read(digest, limit));
                read.map_err(|error| layout_error(source, error))
            }
        }
    }
}

fn layout_blob(source: &ImageSource, directory: &Path, blob: &Descriptor) -> Result<LayoutFile, FetchError> {
    let file = Layout::open(directory).and_then(|layout| layout.blob(blob));
    file.map_err(|error| layout_error(source, error))
}

async fn archive_blob(
    source: &ImageSource,
    file: &Path,
    name: &Option<Reference>,
    blob: &Descriptor,
) -> Result<LayoutFile, FetchError> {
    let (file, name, blob) = (file.to_owned(), name.clone(), blob.clone());
    in_archive(source, move || Archive::open(&file)?.blob(name.as_ref(), &blob)).await
}

fn reader(source: &ImageSource, file: LayoutFile, blob: &Descriptor) -> BlobReader {
    let site = Arc::new(Site { host: file.path.display().to_string(), image: source.to_string() });
    BlobReader::open_file(site, file, blob.digest, blob.size)
}

async fn read_file(source: &ImageSource, file: LayoutFile, range: Range<u64>) -> Result<Bytes, FetchError> {
    let path = file.path.clone();
    let read = tokio::task::spawn_blocking(move || file.read_range(range)).await;
    let read = read.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    read.map(Bytes::from).map_err(|error| layout_error(source, LayoutError::Read { path, source: error }))
}

fn ranged(source: &ImageSource, file: LayoutFile, first: Range<u64>) -> (RangedBlob, RangeStream) {
    let blob = RangedBlob::of_file(&source.to_string(), file);
    let stream = blob.stream(first);
    (blob, stream)
}

/// Runs work on an archive, which may be large, off the async threads.
async fn in_archive<T: Send + 'static>(
    source: &ImageSource,
    work: impl FnOnce() -> Result<T, ResolveError> + Send + 'static,
) -> Result<T, FetchError> {
    let image = source.to_string();
    // The runtime ends.
    let Ok(result) = tokio::task::spawn_blocking(work).await else { return Err(FetchError::Cancelled { image }) };
    result.map_err(|error| match error {
        ResolveError::Archive(error) => FetchError::Archive { image, source: Box::new(error) },
        ResolveError::Manifest(error) => FetchError::Manifest { image, source: Box::new(error) },
        ResolveError::Config(error) => FetchError::Config { image, source: Box::new(error) },
    })
}

fn find_in_layout(source: &ImageSource, directory: &Path, tag: Option<&str>) -> Result<Index, FetchError> {
    let found = Layout::open(directory).map_err(IndexError::Layout).and_then(|layout| layout.find(tag));
    found.map_err(|error| match error {
        IndexError::Layout(error) => layout_error(source, error),
        IndexError::Manifest(error) => manifest_error(source, error),
    })
}

/// What an image in a layout is known by: its entry, or the first of several that are one image for several platforms.
fn first_digest(source: &ImageSource, index: &Index) -> Result<Digest, FetchError> {
    let first = index.manifests.first().map(|entry| entry.digest);
    first.ok_or_else(|| layout_error(source, LayoutError::Empty(source.to_string().into())))
}

fn layout_error(source: &ImageSource, error: LayoutError) -> FetchError {
    FetchError::Layout { image: source.to_string(), source: Box::new(error) }
}

fn manifest_error(source: &ImageSource, error: ManifestError) -> FetchError {
    FetchError::Manifest { image: source.to_string(), source: Box::new(error) }
}
