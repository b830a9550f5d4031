//! Bytes, requests and connections of a link.

use std::ops::Sub;
use std::sync::atomic::{AtomicU64, Ordering};

/// What has passed a link up to a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub down_bytes: u64,
    pub up_bytes: u64,
    /// Heads of HTTP/1 requests. Bodies of requests are taken for heads where they hold an empty line; who pulls sends none.
    pub requests: u64,
    pub connections: u64,
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            down_bytes: self.down_bytes - before.down_bytes,
            up_bytes: self.up_bytes - before.up_bytes,
            requests: self.requests - before.requests,
            connections: self.connections - before.connections,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    down_bytes: AtomicU64,
    up_bytes: AtomicU64,
    requests: AtomicU64,
    connections: AtomicU64,
}

impl Counters {
    pub(super) fn down(&self, bytes: &[u8]) {
        self.down_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }

    pub(super) fn up(&self, bytes: &[u8], heads: &mut HeadCounter) {
        self.up_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.requests.fetch_add(heads.ends_in(bytes), Ordering::Relaxed);
    }

    pub(super) fn connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn now(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            down_bytes: read(&self.down_bytes),
            up_bytes: read(&self.up_bytes),
            requests: read(&self.requests),
            connections: read(&self.connections),
        }
    }
}

/// Finds the empty lines that end the heads of requests, however the stream is cut.
#[derive(Debug, Default)]
pub(super) struct HeadCounter {
    /// How much of `\r\n\r\n` has just been seen.
    matched: usize,
}

impl HeadCounter {
    fn ends_in(&mut self, bytes: &[u8]) -> u64 {
        const END: [u8; 4] = *b"\r\n\r\n";
        let mut ends = 0;
        for &byte in bytes {
            self.matched = if byte == END[self.matched] { self.matched + 1 } else { usize::from(byte == END[0]) };
            if self.matched == END.len() {
                ends += 1;
                self.matched = 0;
            }
        }
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::HeadCounter;

    #[test]
    fn heads_are_found_however_they_are_cut() {
        let stream = b"GET /a HTTP/1.1\r\nhost: b\r\n\r\nHEAD /c HTTP/1.1\r\r\n\r\n\r\nx\r\n\n\r\n\r\n";
        for size in 1..stream.len() {
            let mut counter = HeadCounter::default();
            let found: u64 = stream.chunks(size).map(|piece| counter.ends_in(piece)).sum();
            assert_eq!(found, 3, "pieces of {size}");
        }
    }
}
