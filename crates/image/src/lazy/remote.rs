//! Bringing compressed bytes of one layer from its registry into the cache.
//!
//! A registry that does not serve ranges is asked once; from then on only the completion brings bytes, from the first to the
//! last, and readers wait until theirs come by.

use super::compressed::{Claim, CompressedCache, Need};
use super::error::LazyError;
use super::limits::{RETRY_FIRST, RETRY_LONGEST};
use super::traffic::{Class, Traffic};
use crate::limits::DISK_RESERVE_BYTES;
use crate::store::registry::{Client, Origin};
use sampan_kit::backoff::Backoff;
use sampan_oci::manifest::Descriptor;
use sampan_registry::{FetchError, RangeStream, RangedBlob};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) struct Remote {
    client: Client,
    layer: Descriptor,
    /// Replaced when somebody else's credentials are found to be good while these no longer are.
    origin: Mutex<Origin>,
    /// What was found out at the first request.
    open: Mutex<Option<RangedBlob>>,
    traffic: Arc<Traffic>,
    /// The registry gives layers only in one piece.
    whole_only: AtomicBool,
    /// Someone waits for the completion: the background need not give way.
    pub(crate) hurry: AtomicBool,
}

impl Remote {
    pub(crate) fn new(client: Client, origin: Origin, layer: Descriptor, traffic: Arc<Traffic>) -> Self {
        Self {
            client,
            layer,
            origin: Mutex::new(origin),
            open: Mutex::default(),
            traffic,
            whole_only: AtomicBool::new(false),
            hurry: AtomicBool::new(false),
        }
    }

    pub(crate) fn origin(&self) -> Origin {
        self.origin.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes another way to the same layer from now on.
    pub(crate) fn replace_origin(&self, origin: Origin) {
        *self.origin.lock().unwrap_or_else(PoisonError::into_inner) = origin;
        *self.open() = None;
    }

    fn open(&self) -> MutexGuard<'_, Option<RangedBlob>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_whole_only(&self) -> bool {
        self.whole_only.load(Ordering::Relaxed)
    }

    /// Returns when all of `range` is in the cache. What others are bringing is waited for.
    pub(crate) async fn bring(
        &self,
        cache: &CompressedCache,
        range: Range<u64>,
        class: Class,
    ) -> Result<(), LazyError> {
        loop {
            let change = cache.change();
            if self.is_whole_only() {
                if cache.has(&range) {
                    return Ok(());
                }
                if class == Class::Background {
                    return self.bring_whole(cache).await;
                }
                let _waiting = cache.waiting();
                change.await;
                continue;
            }
            match cache.need(&range) {
                Need::Nothing => return Ok(()),
                Need::Wait => {
                    let _waiting = (class == Class::Demand).then(|| cache.waiting());
                    change.await;
                }
                Need::Bring(mut claim) => match self.fill(&mut claim, class).await {
                    Err(LazyError::Fetch(FetchError::NoRanges { site })) => {
                        tracing::info!(registry = %site.host, image = %site.image, "the registry gives layers only whole");
                        self.whole_only.store(true, Ordering::Relaxed);
                    }
                    result => result?,
                },
            }
        }
    }

    /// Whether the background must not give way: someone waits for this layer as a whole, or for a part that it is bringing.
    pub(crate) fn hurries(&self, cache: &CompressedCache) -> bool {
        self.hurry.load(Ordering::Relaxed) || cache.is_waited_for()
    }

    async fn fill(&self, claim: &mut Claim<'_>, class: Class) -> Result<(), LazyError> {
        let layer = self.layer.digest;
        let _urgent = (class == Class::Demand).then(|| self.traffic.urgent());
        if claim.free_bytes().map_err(LazyError::cache(layer))? < DISK_RESERVE_BYTES {
            return Err(LazyError::DiskFull { layer });
        }
        // Before the request too: what a server sends is on the line, whether or not anybody reads it.
        self.traffic.give_way(class, || self.hurries(claim.cache())).await;
        let mut stream = self.stream(claim.rest()).await?;
        while !claim.rest().is_empty() {
            self.traffic.give_way(class, || self.hurries(claim.cache())).await;
            let chunk = self.next(&mut stream).await?;
            claim.bring(&chunk).map_err(LazyError::cache(layer))?;
            self.traffic.account(class, chunk.len() as u64, || self.hurries(claim.cache())).await;
        }
        Ok(())
    }

    /// The layer from its first byte to its last, over what is here already.
    async fn bring_whole(&self, cache: &CompressedCache) -> Result<(), LazyError> {
        let layer = self.layer.digest;
        let mut stream = self.stream(0..cache.bytes()).await?;
        let mut at = 0;
        while at < cache.bytes() {
            let chunk = self.next(&mut stream).await?;
            cache.put(at, &chunk).map_err(LazyError::cache(layer))?;
            at += chunk.len() as u64;
            self.traffic.account(Class::Background, chunk.len() as u64, || self.hurries(cache)).await;
        }
        Ok(())
    }

    async fn stream(&self, range: Range<u64>) -> Result<RangeStream, LazyError> {
        let open = self.open().clone();
        if let Some(blob) = open {
            return Ok(blob.stream(range));
        }
        let origin = self.origin();
        let (blob, stream) = self.client.ranged_blob(&origin, &self.layer, range).await?;
        *self.open() = Some(blob);
        Ok(stream)
    }

    async fn next(&self, stream: &mut RangeStream) -> Result<bytes::Bytes, LazyError> {
        let failed = match stream.recv().await {
            Some(Ok(chunk)) => return Ok(chunk),
            Some(Err(error)) => error,
            None => FetchError::Cancelled { image: self.origin().source.to_string() },
        };
        // The next request finds everything out anew: mirrors, redirects, logins.
        *self.open() = None;
        Err(failed.into())
    }
}

/// Pauses between failures, as all of this room have them.
pub(crate) fn retry_backoff() -> Backoff {
    Backoff::new(RETRY_FIRST, RETRY_LONGEST)
}
