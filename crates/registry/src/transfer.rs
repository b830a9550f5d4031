//! Bringing bytes of one blob here: a range at a time, resumed where it broke.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use reqwest::header::CONTENT_RANGE;
use reqwest::{Method, Response, StatusCode, Url};
use sampan_oci::digest::Digest;
use tokio::sync::mpsc::Sender;

use crate::error::{FetchError, Site};
use crate::limits::{CHUNK_BYTES_MIN, CRAWL_BYTES_MIN, CRAWL_WINDOWS};
use crate::patience::Patience;
use crate::repository::{Ask, Repository, Target};
use crate::transport::{classify, lock};

/// One blob in one repository.
pub(crate) struct Transfer {
    pub(crate) repository: Repository,
    pub(crate) blob: Digest,
    pub(crate) size: u64,
    /// Where the registry last sent a request for this blob (a signed address at a storage service, as a rule): asking there
    /// first saves a round trip per range.
    pub(crate) elsewhere: Mutex<Option<Url>>,
}

/// A body on its way.
pub(crate) struct Body {
    response: Response,
    pub(crate) site: Arc<Site>,
    /// Offset of its first byte in the blob: 0 if the server ignored the range.
    starts_at: u64,
    /// The server sends the whole blob, whatever was asked.
    pub(crate) is_whole: bool,
    pace: Pace,
}

/// Notices servers that send next to nothing, yet never fall silent. Only time spent waiting for the server counts: a reader may
/// be as slow as it likes.
struct Pace {
    window: Duration,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    fn new(idle_timeout: Duration) -> Self {
        Self { window: idle_timeout.saturating_mul(CRAWL_WINDOWS), waited: Duration::ZERO, bytes: 0 }
    }

    /// Counts a chunk that was waited for since `begun`.
    fn is_crawling(&mut self, begun: Instant, chunk_bytes: usize) -> bool {
        self.bytes = self.bytes.saturating_add(chunk_bytes as u64);
        self.waited = self.waited.saturating_add(begun.elapsed());
        if self.bytes < CRAWL_BYTES_MIN {
            return self.waited > self.window;
        }
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        false
    }
}

impl Transfer {
    /// One attempt to ask for `range`.
    pub(crate) async fn open(&self, range: &Range<u64>) -> Result<Body, FetchError> {
        let range_asked = (*range != (0..self.size)).then(|| range.clone());
        let ask = Ask { method: Method::GET, target: Target::Blob(&self.blob), accept: None, range: range_asked };
        let known = lock(&self.elsewhere).clone();
        let direct = match &known {
            // Signed addresses end; the registry gives a new one.
            Some(url) => self.repository.once(&ask, Some(url)).await.ok(),
            None => None,
        };
        let answer = match direct {
            Some(answer) => answer,
            None => {
                let answer = self.repository.once(&ask, None).await?;
                lock(&self.elsewhere).clone_from(&answer.elsewhere);
                answer
            }
        };
        let (starts_at, total) = match answer.response.status() {
            StatusCode::PARTIAL_CONTENT => {
                content_range(&answer.response).filter(|(start, _)| *start == range.start).ok_or_else(|| {
                    FetchError::Malformed { site: Arc::clone(&answer.site), what: "another range than was asked for" }
                })?
            }
            _ => (0, answer.response.content_length()),
        };
        if let Some(actual) = total.filter(|total| *total != self.size) {
            let (site, blob) = (answer.site, Box::new(self.blob));
            return Err(FetchError::SizeMismatch { site, blob, expected: self.size, actual });
        }
        let is_whole = answer.response.status() != StatusCode::PARTIAL_CONTENT;
        let pace = Pace::new(self.repository.shared.config.transfer.idle_timeout);
        Ok(Body { response: answer.response, site: answer.site, starts_at, is_whole, pace })
    }

    /// Sends all of `range` to `out` in order, beginning with `body`; ends with an error sent, or silently when nobody listens.
    pub(crate) async fn deliver(
        &self,
        range: Range<u64>,
        mut body: Option<Body>,
        out: Sender<Result<Bytes, FetchError>>,
    ) {
        let mut outlet = Outlet { rest: range, gathered: BytesMut::new(), out };
        let mut patience = Patience::new(&self.repository.shared.config.transfer);
        let mut failed_at = outlet.rest.start;
        loop {
            let outcome = match body.take() {
                Some(body) => outlet.fill(body).await,
                None => match self.open(&outlet.rest).await {
                    Ok(body) => outlet.fill(body).await,
                    Err(error) => Err(error),
                },
            };
            let error = match outcome {
                Ok(()) => return,
                // A registry that just served and now refuses connections is restarting.
                Err(error) if error.is_worth_repeating() || matches!(error, FetchError::Refused { .. }) => error,
                Err(error) => return outlet.fail(error).await,
            };
            // A byte per connection is no progress.
            if outlet.rest.start.saturating_sub(failed_at) >= CHUNK_BYTES_MIN as u64 {
                failed_at = outlet.rest.start;
                patience.reset();
            }
            if let Err(error) = patience.pause(error).await {
                return outlet.fail(error).await;
            }
        }
    }

    /// All of `range`, in one piece.
    pub(crate) async fn read(&self, range: Range<u64>) -> Result<Bytes, FetchError> {
        let attempt = || async {
            let body = self.open(&range).await?;
            if body.is_whole && range != (0..self.size) {
                return Err(FetchError::NoRanges { site: body.site });
            }
            body.collect(range.end.saturating_sub(range.start)).await
        };
        self.repository.patiently(attempt).await
    }
}

impl Body {
    async fn next(&mut self) -> Result<Bytes, FetchError> {
        let begun = Instant::now();
        match self.response.chunk().await {
            Ok(Some(chunk)) if self.pace.is_crawling(begun, chunk.len()) => {
                Err(FetchError::Stalled { site: Arc::clone(&self.site) })
            }
            Ok(Some(chunk)) => Ok(chunk),
            Ok(None) => Err(FetchError::Truncated { site: Arc::clone(&self.site) }),
            Err(error) => Err(classify(&self.site, error)),
        }
    }

    async fn collect(mut self, length: u64) -> Result<Bytes, FetchError> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let mut first = if length == 0 { Bytes::new() } else { self.next().await? };
        if first.len() >= length {
            first.truncate(length);
            return Ok(first);
        }
        // The caller bounds `length`; see limits::RANGE_BYTES_MAX.
        let mut whole = BytesMut::with_capacity(length);
        whole.extend_from_slice(&first);
        while whole.len() < length {
            let chunk = self.next().await?;
            let missing = length.saturating_sub(whole.len());
            whole.extend_from_slice(chunk.get(..missing).unwrap_or(&chunk));
        }
        Ok(whole.freeze())
    }
}

/// The way to the reader. Bytes count as delivered once they are gathered: they survive a broken connection.
struct Outlet {
    rest: Range<u64>,
    gathered: BytesMut,
    out: Sender<Result<Bytes, FetchError>>,
}

impl Outlet {
    /// Passes on what `body` brings until `rest` is empty.
    async fn fill(&mut self, mut body: Body) -> Result<(), FetchError> {
        let mut skip = self.rest.start.saturating_sub(body.starts_at);
        while self.rest.start < self.rest.end {
            let mut chunk = body.next().await?;
            if skip > 0 {
                let skipped = chunk.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
                chunk.advance(skipped);
                skip = skip.saturating_sub(skipped as u64);
            }
            let missing = self.rest.end.saturating_sub(self.rest.start);
            chunk.truncate(usize::try_from(missing).unwrap_or(usize::MAX));
            self.rest.start = self.rest.start.saturating_add(chunk.len() as u64);
            if !self.pass(chunk).await {
                return Ok(());
            }
        }
        self.flush().await;
        Ok(())
    }

    /// Whether anybody still listens. Large chunks go on as they are, small ones are gathered.
    async fn pass(&mut self, chunk: Bytes) -> bool {
        if self.gathered.is_empty() && chunk.len() >= CHUNK_BYTES_MIN {
            return self.out.send(Ok(chunk)).await.is_ok();
        }
        self.gathered.extend_from_slice(&chunk);
        self.gathered.len() < CHUNK_BYTES_MIN || self.flush().await
    }

    async fn flush(&mut self) -> bool {
        let gathered = self.gathered.split().freeze();
        gathered.is_empty() || self.out.send(Ok(gathered)).await.is_ok()
    }

    async fn fail(&mut self, error: FetchError) {
        self.flush().await;
        // Without a listener there is nobody to tell.
        self.out.send(Err(error)).await.ok();
    }
}

/// Start and total of `Content-Range: bytes 0-99/1000`; the total may be `*`.
fn content_range(response: &Response) -> Option<(u64, Option<u64>)> {
    let value = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.parse().ok()?, total.parse().ok()))
}
