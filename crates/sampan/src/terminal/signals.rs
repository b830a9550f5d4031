//! The signals that a foreground command passes on to its instance, as docker's `--sig-proxy` does.

use std::time::Instant;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::failure::Failure;
use crate::limits::FORCE_WINDOW;

/// A signal that this process got and that is meant for the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caught {
    /// Its name without `SIG`.
    pub(crate) name: &'static str,
    /// Its number on Linux.
    pub(crate) number: i32,
}

/// Every forwarded signal, by its name and number (signal(7); these numbers are the same on all our architectures).
const FORWARDED: [Caught; 6] = [
    Caught { name: "HUP", number: 1 },
    Caught { name: "INT", number: 2 },
    Caught { name: "QUIT", number: 3 },
    Caught { name: "USR1", number: 10 },
    Caught { name: "USR2", number: 12 },
    Caught { name: "TERM", number: 15 },
];

impl Caught {
    /// Whether it asks for the end, so that repeating it is a wish to force one.
    pub(crate) fn ends(self) -> bool {
        matches!(self.name, "INT" | "TERM" | "HUP" | "QUIT")
    }
}

/// Signals as they come. From its making on they no longer end this process by themselves.
#[derive(Debug)]
pub(crate) struct Signals {
    caught: mpsc::Receiver<Caught>,
    insisted: Vec<Instant>,
}

impl Signals {
    /// Starts to catch.
    pub(crate) fn catch() -> Result<Self, Failure> {
        let (sender, caught) = mpsc::channel(16);
        for kind in FORWARDED {
            let mut stream = listen(SignalKind::from_raw(kind.number))?;
            let sender = sender.clone();
            tokio::spawn(async move {
                while stream.recv().await.is_some() {
                    // A full queue means that nobody forwards; a later repetition serves as well.
                    sender.try_send(kind).ok();
                }
            });
        }
        Ok(Self { caught, insisted: Vec::new() })
    }

    /// The next signal. Cancel safe.
    pub(crate) async fn next(&mut self) -> Caught {
        match self.caught.recv().await {
            Some(caught) => caught,
            None => std::future::pending().await,
        }
    }

    /// Notes that the user asked for the end; true at the third time in short succession.
    pub(crate) fn insists(&mut self, now: Instant) -> bool {
        self.insisted.retain(|then| now.duration_since(*then) < FORCE_WINDOW);
        self.insisted.push(now);
        self.insisted.len() >= 3
    }
}

/// Changes of the terminal's size.
pub(crate) fn resizes() -> Result<Signal, Failure> {
    listen(SignalKind::window_change())
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::explain("signals", error, "raise the limit of open files (ulimit -n)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_third_in_a_row_forces() {
        let (_, caught) = mpsc::channel(1);
        let mut signals = Signals { caught, insisted: Vec::new() };
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(!signals.insists(start) && !signals.insists(after(1)));
        assert!(!signals.insists(after(4)) && !signals.insists(after(5)));
        assert!(signals.insists(after(6)));
    }
}
