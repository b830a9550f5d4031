//! One repository of one registry as one login sees it: requests with authentication and redirects.
//!
//! Invariant: the `Authorization` header goes to the registry's own scheme, host and port and nowhere else; a redirect from
//! HTTPS to plain HTTP is refused.

use std::ops::Range;
use std::sync::Arc;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, LOCATION, RANGE, WWW_AUTHENTICATE};
use reqwest::{Method, Request, Response, Url};
use sampan_oci::digest::Digest;

use crate::body;
use crate::challenge;
use crate::config::RegistryConfig;
use crate::error::{FetchError, Site};
use crate::limits::REDIRECTS_MAX;
use crate::patience::Patience;
use crate::token::{Grant, GrantKey, Grants};
use crate::transport::{Base, Transport, authority};

/// What all repositories share.
pub(crate) struct Shared {
    pub(crate) config: Arc<RegistryConfig>,
    pub(crate) transport: Transport,
    pub(crate) grants: Grants,
}

#[derive(Clone)]
pub(crate) struct Repository {
    pub(crate) shared: Arc<Shared>,
    pub(crate) site: Arc<Site>,
    pub(crate) base: Base,
    pub(crate) key: GrantKey,
}

/// What is asked of a repository.
pub(crate) enum Target<'a> {
    /// By tag or digest.
    Manifest(&'a str),
    Blob(&'a Digest),
    /// What refers to a manifest.
    Referrers {
        subject: &'a str,
        artifact_type: &'a str,
    },
}

pub(crate) struct Ask<'a> {
    pub(crate) method: Method,
    pub(crate) target: Target<'a>,
    pub(crate) accept: Option<&'static str>,
    pub(crate) range: Option<Range<u64>>,
}

pub(crate) struct Answer {
    pub(crate) response: Response,
    /// The server that gave it.
    pub(crate) site: Arc<Site>,
    /// Where the registry sent the request, if not itself.
    pub(crate) elsewhere: Option<Url>,
}

impl Repository {
    /// One attempt; the answer has a status of success. `direct` is where an earlier request was sent.
    pub(crate) async fn once(&self, ask: &Ask<'_>, direct: Option<&Url>) -> Result<Answer, FetchError> {
        let answer = self.exchange(ask, direct).await?;
        if answer.response.status().is_success() {
            return Ok(answer);
        }
        Err(self.failure(ask, answer).await)
    }

    /// As many attempts of `attempt` as can help.
    pub(crate) async fn patiently<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, FetchError>
    where
        F: Future<Output = Result<T, FetchError>>,
    {
        let mut patience = Patience::new(&self.shared.config.transfer);
        loop {
            match attempt().await {
                Err(error) if error.is_worth_repeating() => patience.pause(error).await?,
                other => return other,
            }
        }
    }

    async fn exchange(&self, ask: &Ask<'_>, direct: Option<&Url>) -> Result<Answer, FetchError> {
        let mut url = match direct {
            Some(direct) => direct.clone(),
            None => self.url(&ask.target)?,
        };
        let mut granted: Option<Grant> = None;
        let mut answered_challenge = false;
        for _ in 0..REDIRECTS_MAX + 2 {
            let own = url.origin() == self.base.url.origin();
            if own && granted.is_none() {
                granted = self.shared.grants.current(&self.key).await;
            }
            let request = build(ask, &url, granted.as_ref().filter(|_| own));
            let site = if own { Arc::clone(&self.site) } else { self.site_of(&url) };
            let verification = self.shared.transport.verification(&self.base, &url);
            let response = self.shared.transport.send(&site, verification, request).await;
            let response = response.inspect_err(|_| self.shared.transport.forget(&self.site.host))?;
            match response.status().as_u16() {
                401 if own && !answered_challenge => {
                    granted = Some(self.answer_challenge(&response, granted.as_ref()).await?);
                    answered_challenge = true;
                }
                301 | 302 | 303 | 307 | 308 => url = self.redirected(&url, &response)?,
                _ => return Ok(Answer { response, site, elsewhere: (!own).then_some(url) }),
            }
        }
        Err(FetchError::Redirect { site: Arc::clone(&self.site), reason: "in a circle" })
    }

    pub(crate) fn url(&self, target: &Target<'_>) -> Result<Url, FetchError> {
        let path = match target {
            Target::Manifest(name) => format!("v2/{}/manifests/{name}", self.key.repository),
            Target::Blob(digest) => format!("v2/{}/blobs/{digest}", self.key.repository),
            Target::Referrers { subject, artifact_type } => return self.referrers_url(subject, artifact_type),
        };
        let join = self.base.url.join(&path);
        join.map_err(|error| FetchError::HostConfiguration { site: Arc::clone(&self.site), source: error.into() })
    }

    fn site_of(&self, url: &Url) -> Arc<Site> {
        Arc::new(Site { host: authority(url), image: self.site.image.clone() })
    }

    pub(crate) async fn answer_challenge(
        &self,
        response: &Response,
        refused: Option<&Grant>,
    ) -> Result<Grant, FetchError> {
        let lines = response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|line| line.to_str().ok());
        let challenge = challenge::best(lines);
        let challenge = challenge.ok_or_else(|| FetchError::UnknownChallenge { site: Arc::clone(&self.site) })?;
        let Shared { transport, grants, .. } = &*self.shared;
        grants.renew(transport, &self.site, &self.base, &self.key, challenge, refused).await
    }

    fn redirected(&self, from: &Url, response: &Response) -> Result<Url, FetchError> {
        let fail = |reason| FetchError::Redirect { site: Arc::clone(&self.site), reason };
        let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let location = location.ok_or_else(|| fail("to nowhere"))?;
        let mut url = from.join(location).map_err(|_unparsable| fail("to an address that cannot be read"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(fail("to something that is not HTTP"));
        }
        if url.scheme() == "http" && from.scheme() == "https" {
            return Err(fail("from HTTPS to plain HTTP"));
        }
        // A login inside the address would be sent as a header.
        if url.set_username("").and(url.set_password(None)).is_err() {
            return Err(fail("to an address that cannot be read"));
        }
        Ok(url)
    }

    /// What a status other than success means.
    async fn failure(&self, ask: &Ask<'_>, answer: Answer) -> FetchError {
        let (response, site) = (answer.response, answer.site);
        let status = response.status().as_u16();
        match (status, &ask.target) {
            (401 | 403, _) if self.key.login.is_some() && answer.elsewhere.is_none() => {
                FetchError::LoginRejected { site, detail: body::detail(response).await }
            }
            (401 | 403, _) => FetchError::LoginNeeded { site, detail: body::detail(response).await },
            (404, Target::Manifest(_) | Target::Referrers { .. }) => {
                FetchError::ImageNotFound { site, detail: body::detail(response).await }
            }
            (404 | 410, Target::Blob(blob)) => FetchError::BlobNotFound { site, blob: Box::new(**blob) },
            (429, _) => body::rate_limited(&site, &response),
            (408 | 500.., _) => FetchError::Unavailable { site, status, detail: body::detail(response).await },
            _ => FetchError::UnexpectedStatus { site, status, detail: body::detail(response).await },
        }
    }
}

fn build(ask: &Ask<'_>, url: &Url, grant: Option<&Grant>) -> Request {
    let mut request = Request::new(ask.method.clone(), url.clone());
    let headers = request.headers_mut();
    if let Some(accept) = ask.accept {
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
    }
    if let Some(range) = &ask.range {
        let last = range.end.saturating_sub(1);
        if let Ok(value) = HeaderValue::try_from(format!("bytes={}-{last}", range.start)) {
            headers.insert(RANGE, value);
        }
    }
    if let Some(grant) = grant {
        headers.insert(AUTHORIZATION, grant.header.clone());
    }
    request
}
