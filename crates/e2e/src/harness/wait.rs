//! Waiting for conditions, with a deadline and a sentence about what never came.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a condition may take that should hold at once: generous, because two cores run everything at the same time.
pub const DEADLINE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(15);

/// Asks again and again until there is an answer. An error ends the waiting at once.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(answer) = attempt()? {
            return Ok(answer);
        }
        if begin.elapsed() > DEADLINE {
            bail!("after {} s still not: {what}", DEADLINE.as_secs());
        }
        std::thread::sleep(PAUSE);
    }
}

/// The same for a condition that is only true or false.
pub fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    eventually(what, || Ok(holds()?.then_some(())))
}
