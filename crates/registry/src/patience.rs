//! Trying again: how often, and how long to pause in between.
//!
//! Pauses double and are spread by chance over their second half, so that many nodes whose registry came back do not return in
//! one wave. A registry's own `Retry-After` goes first, unless it asks for longer than is sensible to wait in silence.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use sampan_kit::backoff::Backoff;

use crate::config::TransferConfig;
use crate::error::FetchError;
use crate::limits::RETRY_AFTER_MAX;

pub(crate) struct Patience {
    attempts: u32,
    failures: u32,
    backoff: Backoff,
}

impl Patience {
    pub(crate) fn new(config: &TransferConfig) -> Self {
        Self { attempts: config.attempts, failures: 0, backoff: Backoff::new(config.pause_first, config.pause_longest) }
    }

    /// Waits before the next attempt, or gives `error` back if there is to be none.
    pub(crate) async fn pause(&mut self, error: FetchError) -> Result<(), FetchError> {
        let pause = self.next_pause(error)?;
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn next_pause(&mut self, error: FetchError) -> Result<Duration, FetchError> {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= self.attempts {
            return Err(error);
        }
        let own = spread(self.backoff.fail());
        match &error {
            FetchError::RateLimited { retry_after: Some(asked), .. } if *asked > RETRY_AFTER_MAX => return Err(error),
            FetchError::RateLimited { retry_after: Some(asked), .. } => return Ok(own.max(*asked)),
            _ => {}
        }
        tracing::debug!(%error, pause_ms = own.as_millis() as u64, "trying again");
        Ok(own)
    }

    /// Begins to count anew, because there was progress.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
        self.backoff.reset();
    }
}

/// Between half of `pause` and all of it.
fn spread(pause: Duration) -> Duration {
    // The standard library's hasher keys are the process's nearest source of chance, and this needs no better.
    let chance = RandomState::new().hash_one(0) as u32;
    pause.mul_f64(0.5 + 0.5 * f64::from(chance) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::error::Site;

    fn limited(seconds: u64) -> FetchError {
        let site = Arc::new(Site { host: "r.io".into(), image: "r.io/x:1".into() });
        FetchError::RateLimited { site, retry_after: Some(Duration::from_secs(seconds)) }
    }

    #[test]
    fn pauses_grow_and_attempts_end() {
        let config = TransferConfig { attempts: 4, pause_first: Duration::from_secs(1), ..TransferConfig::default() };
        let mut patience = Patience::new(&config);
        for longest in [1.0, 2.0, 4.0] {
            let pause = patience.next_pause(limited(0)).unwrap().as_secs_f64();
            assert!((longest / 2.0..=longest).contains(&pause), "{pause}");
        }
        patience.next_pause(limited(0)).unwrap_err();
        patience.reset();
        assert!(patience.next_pause(limited(0)).unwrap() <= Duration::from_secs(1));
    }

    #[test]
    fn a_registrys_wish_is_granted_within_reason() {
        let mut patience = Patience::new(&TransferConfig::default());
        assert_eq!(patience.next_pause(limited(7)).unwrap(), Duration::from_secs(7));
        patience.next_pause(limited(3600)).unwrap_err();
    }
}
