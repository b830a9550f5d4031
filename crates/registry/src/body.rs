//! Bodies and headers of answers: collected with a bound, and read for what they say about a failure.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use reqwest::Response;
use reqwest::header::RETRY_AFTER;
use serde::Deserialize;

use crate::error::{Detail, FetchError, Site};
use crate::limits::ERROR_BODY_BYTES_MAX;
use crate::transport::classify;

/// The whole body, if it has at most `limit` bytes. The caller bounds the time.
pub(crate) async fn collect(
    site: &Arc<Site>,
    mut response: Response,
    limit: usize,
    what: &'static str,
) -> Result<Bytes, FetchError> {
    let too_large = || FetchError::TooLarge { site: Arc::clone(site), what, limit: limit as u64 };
    if response.content_length().is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let mut whole = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| classify(site, error))? {
        if chunk.len() > limit.saturating_sub(whole.len()) {
            return Err(too_large());
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}

/// A registry's own explanation: `{"errors":[{"code":…,"message":…}]}`, or a token service's `details`.
pub(crate) async fn detail(mut response: Response) -> Detail {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        errors: Vec<Entry>,
        details: Option<String>,
        message: Option<String>,
    }
    #[derive(Deserialize)]
    struct Entry {
        code: Option<String>,
        message: Option<String>,
    }
    let mut bytes = BytesMut::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        if bytes.len().saturating_add(chunk.len()) > ERROR_BODY_BYTES_MAX {
            return Detail::default();
        }
        bytes.extend_from_slice(&chunk);
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(&bytes) else { return Detail::default() };
    let first = answer.errors.into_iter().next().and_then(|entry| entry.message.or(entry.code));
    Detail(first.or(answer.details).or(answer.message).filter(|words| !words.is_empty()))
}

/// Status 429, with how long the registry asks to wait.
pub(crate) fn rate_limited(site: &Arc<Site>, response: &Response) -> FetchError {
    FetchError::RateLimited { site: Arc::clone(site), retry_after: retry_after(response) }
}

/// `Retry-After` as seconds; its other form, a date, is read against this machine's clock.
fn retry_after(response: &Response) -> Option<Duration> {
    let value = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
    match value.parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let date = http_date(value)?;
            Some(date.duration_since(SystemTime::now()).unwrap_or_default())
        }
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`: the one form that RFC 9110 lets servers send.
fn http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, date) = text.split_once(", ")?;
    let [day, month, year, time, "GMT"] = date.split(' ').collect::<Vec<_>>()[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? as i64;
    let (day, year): (i64, i64) = (day.parse().ok()?, year.parse().ok()?);
    if !(1..=31).contains(&day) || !(1970..=9999).contains(&year) {
        return None;
    }
    let mut clock = time.splitn(3, ':').map(|part| part.parse::<u8>().ok().map(i64::from));
    let seconds = clock.next()?? * 3600 + clock.next()?? * 60 + clock.next()??;
    // Days since 1970 by counting from March, so that leap days come last (Howard Hinnant's algorithm).
    let (shifted_year, shifted_month) = if month < 2 { (year - 1, month + 10) } else { (year, month - 2) };
    let leap_days = shifted_year / 4 - shifted_year / 100 + shifted_year / 400;
    let days = shifted_year * 365 + leap_days + (153 * shifted_month + 2) / 5 + day - 1 - 719_468;
    let since = u64::try_from(days * 86_400 + seconds).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(since))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_http_are_read() {
        let seconds = |text| http_date(text).map(|date| date.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs());
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(seconds("Thu, 29 Feb 2024 00:00:00 GMT"), Some(1_709_164_800));
        assert_eq!(seconds("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(seconds("Thu, 99 Jan 1970 00:00:00 GMT"), None);
        assert_eq!(seconds("soon"), None);
    }
}
