//! Files by plain HTTP: what an operator puts on an ordinary web server beside the registry.
//!
//! The same connections, proxies and CAs as for registries, but no logins: addresses come from the operator's configuration.
//! Redirects are followed within HTTP's own rules, never from HTTPS to plain HTTP.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{HeaderValue, LOCATION, RANGE};
use reqwest::{Method, Request, Url};

use crate::body;
use crate::client::RegistryClient;
use crate::error::{Detail, FetchError, Site};
use crate::limits::{RANGE_BYTES_MAX, REDIRECTS_MAX};
use crate::patience::Patience;
use crate::tls::Verification;
use crate::transport::{authority, is_loopback};

impl RegistryClient {
    /// A file, or the part of it that `range` names: all that there is of it. `None` where the server has no such file. A body
    /// longer than `limit` bytes is an error.
    pub async fn read_url(
        &self,
        url: &str,
        range: Option<Range<u64>>,
        limit: u64,
    ) -> Result<Option<Bytes>, FetchError> {
        let site = Arc::new(Site { host: url.to_owned(), image: url.to_owned() });
        let limit = usize::try_from(limit.min(RANGE_BYTES_MAX)).unwrap_or(usize::MAX);
        let parsed = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let parsed =
            parsed.ok_or(FetchError::Malformed { site: Arc::clone(&site), what: "no address of a web server" })?;
        let site = Arc::new(Site { host: authority(&parsed), image: url.to_owned() });
        let mut patience = Patience::new(&self.shared.config.transfer);
        loop {
            match self.read_once(&site, parsed.clone(), range.as_ref(), limit).await {
                Err(error) if error.is_worth_repeating() => patience.pause(error).await?,
                other => return other,
            }
        }
    }

    async fn read_once(
        &self,
        site: &Arc<Site>,
        mut url: Url,
        range: Option<&Range<u64>>,
        limit: usize,
    ) -> Result<Option<Bytes>, FetchError> {
        for _ in 0..=REDIRECTS_MAX {
            let mut request = Request::new(Method::GET, url.clone());
            if let Some(range) = range {
                let value = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
                let value = HeaderValue::try_from(value);
                request.headers_mut().extend(value.ok().map(|value| (RANGE, value)));
            }
            let trusted = is_loopback(&url) || self.shared.config.insecure.contains(&authority(&url));
            let verification = if trusted { Verification::None } else { Verification::Full };
            let response = self.shared.transport.send(site, verification, request).await?;
            let status = response.status().as_u16();
            match status {
                200 if range.is_some_and(|range| range.start > 0) => {
                    return Err(FetchError::NoRanges { site: Arc::clone(site) });
                }
                200 | 206 => {
                    let limit = range.filter(|_| status == 206).map_or(limit, |range| limit.min(length(range)));
                    return body::collect(site, response, limit, "a file request").await.map(Some);
                }
                301 | 302 | 303 | 307 | 308 => {
                    let fail = |reason| FetchError::Redirect { site: Arc::clone(site), reason };
                    let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
                    let next =
                        location.and_then(|location| url.join(location).ok()).ok_or_else(|| fail("to nowhere"))?;
                    if !matches!(next.scheme(), "http" | "https")
                        || (next.scheme() == "http" && url.scheme() == "https")
                    {
                        return Err(fail("to something that is not HTTPS"));
                    }
                    url = next;
                }
                404 | 410 | 416 => return Ok(None),
                429 => return Err(body::rate_limited(site, &response)),
                408 | 500.. => {
                    let detail = Detail::default();
                    return Err(FetchError::Unavailable { site: Arc::clone(site), status, detail });
                }
                _ => {
                    let detail = Detail::default();
                    return Err(FetchError::UnexpectedStatus { site: Arc::clone(site), status, detail });
                }
            }
        }
        Err(FetchError::Redirect { site: Arc::clone(site), reason: "in a circle" })
    }
}

fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX)
}
