//! The registry client as the store calls it.
//!
//! Its futures borrow in ways that the compiler cannot prove `Send`, so that each short call (documents, and the opening of a
//! blob) runs on a thread where it need not be. The bytes of a blob then flow without such a detour.

use sampan_oci::digest::Digest;
use sampan_oci::manifest::Descriptor;
use sampan_oci::platform::Platform;
use sampan_oci::reference::ImageSource;
use sampan_registry::{BlobReader, Credentials, FetchError, RegistryClient, RegistryConfig, Resolved};
use tokio::runtime::Handle;

pub(super) struct Client(RegistryClient);

impl Client {
    pub(super) fn new(config: RegistryConfig) -> Self {
        Self(RegistryClient::new(config))
    }

    pub(super) async fn current_digest(&self, source: &ImageSource) -> Result<Digest, FetchError> {
        let (client, source) = (self.0.clone(), source.clone());
        let image = source.to_string();
        apart(image, move || Handle::current().block_on(client.current_digest(&source, &Credentials::host()))).await
    }

    pub(super) async fn resolve(&self, source: &ImageSource, platform: &Platform) -> Result<Resolved, FetchError> {
        let (client, source, platform) = (self.0.clone(), source.clone(), platform.clone());
        let image = source.to_string();
        apart(image, move || Handle::current().block_on(client.resolve(&source, &platform, &Credentials::host()))).await
    }

    pub(super) async fn open_blob(&self, source: &ImageSource, blob: &Descriptor) -> Result<BlobReader, FetchError> {
        let (client, source, blob) = (self.0.clone(), source.clone(), blob.clone());
        let image = source.to_string();
        apart(image, move || Handle::current().block_on(client.open_blob(&source, &blob, &Credentials::host()))).await
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
