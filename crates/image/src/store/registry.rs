//! The registry client as the store calls it.
//!
//! Its futures borrow in ways that the compiler cannot prove `Send`, so that each short call (documents, and the opening of a
//! blob) runs on a thread where it need not be. The bytes of a blob then flow without such a detour.

use sampan_oci::digest::Digest;
use sampan_oci::manifest::Descriptor;
use sampan_oci::platform::Platform;
use sampan_oci::reference::ImageSource;
use sampan_registry::{
    BlobReader, Credentials, FetchError, RangeStream, RangedBlob, RegistryClient, RegistryConfig, Resolved,
};
use std::ops::Range;
use tokio::runtime::Handle;

/// Where an image comes from, and as whom it is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) source: ImageSource,
    pub(crate) credentials: Credentials,
}

#[derive(Clone)]
pub(crate) struct Client(RegistryClient);

impl Client {
    pub(crate) fn new(config: RegistryConfig) -> Self {
        Self(RegistryClient::new(config))
    }

    /// The client itself, for those whose calls need no detour.
    pub(super) fn inner(&self) -> &RegistryClient {
        &self.0
    }

    pub(super) async fn current_digest(&self, origin: &Origin) -> Result<Digest, FetchError> {
        let (client, origin) = (self.0.clone(), origin.clone());
        let image = origin.source.to_string();
        let call = move || Handle::current().block_on(client.current_digest(&origin.source, &origin.credentials));
        apart(image, call).await
    }

    pub(crate) async fn resolve(&self, origin: &Origin, platform: &Platform) -> Result<Resolved, FetchError> {
        let (client, origin, platform) = (self.0.clone(), origin.clone(), platform.clone());
        let image = origin.source.to_string();
        let call = move || Handle::current().block_on(client.resolve(&origin.source, &platform, &origin.credentials));
        apart(image, call).await
    }

    pub(super) async fn open_blob(&self, origin: &Origin, blob: &Descriptor) -> Result<BlobReader, FetchError> {
        let (client, origin, blob) = (self.0.clone(), origin.clone(), blob.clone());
        let image = origin.source.to_string();
        let call = move || Handle::current().block_on(client.open_blob(&origin.source, &blob, &origin.credentials));
        apart(image, call).await
    }

    /// Opens a blob for many random reads, and starts the first.
    pub(crate) async fn ranged_blob(
        &self,
        origin: &Origin,
        blob: &Descriptor,
        first: Range<u64>,
    ) -> Result<(RangedBlob, RangeStream), FetchError> {
        let (client, origin, blob) = (self.0.clone(), origin.clone(), blob.clone());
        let image = origin.source.to_string();
        let call =
            move || Handle::current().block_on(client.ranged_blob(&origin.source, &blob, first, &origin.credentials));
        apart(image, call).await
    }
}

async fn apart<T: Send + 'static>(
    image: String,
    call: impl FnOnce() -> Result<T, FetchError> + Send + 'static,
) -> Result<T, FetchError> {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => result,
        // The runtime ends.
        Err(_) => Err(FetchError::Cancelled { image }),
    }
}
