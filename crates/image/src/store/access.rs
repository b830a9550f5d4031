//! Who may have an image that is here: whoever its registry would give it to.
//!
//! An image that was pulled with somebody's own login is *guarded*: whoever asks for it later, as a tenant, must come with a
//! login that the registry accepts (or without one, if it accepts that). An acceptance is remembered for a while; when the
//! registry cannot be asked, one that is older than that still counts. One that has lost its names, because they mean other
//! images today, is given to no tenant any more.

use super::registry::Origin;
use super::{Image, Inner};
use crate::error::ImageError;
use sampan_oci::digest::Digest;
use sampan_oci::reference::ImageSource;
use sampan_registry::{Credentials, FailureClass, FetchError, Login};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long an acceptance is believed without asking again.
const ACCEPTED_FOR: Duration = Duration::from_secs(3600);
/// Acceptances that are remembered; beyond that, all are asked for again.
const ACCEPTED_MAX: usize = 4096;

/// Which logins registries accepted for which images, and when. In memory only: after a restart they are asked again.
#[derive(Debug, Default)]
pub(super) struct Accepted(Mutex<HashMap<(String, Option<Login>), Instant>>);

impl Accepted {
    fn since(&self, key: &(String, Option<Login>)) -> Option<Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).map(Instant::elapsed)
    }

    fn insert(&self, key: (String, Option<Login>)) {
        let mut accepted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if accepted.len() >= ACCEPTED_MAX {
            accepted.clear();
        }
        accepted.insert(key, Instant::now());
    }

    fn remove(&self, key: &(String, Option<Login>)) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

impl Inner {
    /// Whether a tenant with these logins may have an image that is here, which he named so. Parts of it that are still arriving
    /// are then fetched with them, too.
    pub(super) async fn check_access(
        &self,
        image: &Image,
        named: &str,
        credentials: &Credentials,
    ) -> Result<(), ImageError> {
        let (guarded, references) = {
            let catalog = self.catalog();
            (catalog.record(&image.id).is_some_and(|record| record.guarded), catalog.references(&image.id))
        };
        if !guarded {
            return Ok(());
        }
        // An id names no registry: then any name that the image has does.
        let asked_for = named.parse::<Digest>().is_err().then(|| named.to_owned());
        let names = asked_for.into_iter().chain(references);
        let sources: Vec<ImageSource> = names.filter_map(|name| name.parse().ok()).collect();
        let Some(source) = sources.iter().find(|source| matches!(source, ImageSource::Registry(_))).cloned() else {
            // A file of this machine is as good as a registry's word. Of what has lost its names nobody knows whose it is.
            let unknown = ImageError::Unknown { reference: named.to_owned() };
            return if sources.is_empty() { Err(unknown) } else { Ok(()) };
        };
        let origin = Origin { source, credentials: credentials.clone() };
        self.ask_access(&origin).await?;
        if !credentials.brings_none() {
            for served in image.config.rootfs.diff_ids.iter().filter_map(|diff_id| self.lazy.get(diff_id)) {
                served.layer.remote.replace_origin(origin.clone());
            }
        }
        Ok(())
    }

    async fn ask_access(&self, origin: &Origin) -> Result<(), ImageError> {
        let ImageSource::Registry(reference) = &origin.source else { return Ok(()) };
        let login = origin.credentials.given_login(reference)?;
        let key = (reference.to_string(), login);
        let known = self.accepted.since(&key);
        if known.is_some_and(|since| since < ACCEPTED_FOR) {
            return Ok(());
        }
        match self.client.current_digest(origin).await {
            Ok(_) => {
                self.accepted.insert(key);
                Ok(())
            }
            Err(error) if known.is_some() && error.class() == FailureClass::Transient => {
                tracing::info!(image = %key.0, %error, "the registry cannot be asked who may have an image; it knew this login before");
                Ok(())
            }
            Err(error) => {
                self.accepted.remove(&key);
                Err(error.into())
            }
        }
    }

    /// Remembers that the registry has just given an image to this login.
    pub(super) fn note_access(&self, origin: &Origin) -> Result<(), FetchError> {
        if let ImageSource::Registry(reference) = &origin.source {
            self.accepted.insert((reference.to_string(), origin.credentials.given_login(reference)?));
        }
        Ok(())
    }
}
