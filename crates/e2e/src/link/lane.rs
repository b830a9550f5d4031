//! One direction of one connection: read, wait for one's slot on the line, travel, arrive.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::shape::Shape;

/// A thread that wakes up late may catch up so much; idle time is worth no more than that.
const CATCH_UP: Duration = Duration::from_millis(10);

/// The bandwidth that all connections share: whoever asks first goes first.
#[derive(Debug)]
pub(super) struct Line {
    bits_per_second: u64,
    free_from: Mutex<Instant>,
}

impl Line {
    pub(super) fn new(bits_per_second: u64) -> Self {
        Self { bits_per_second, free_from: Mutex::new(Instant::now()) }
    }

    /// When so many bytes are through, if they set out now.
    fn slot(&self, bytes: usize) -> Instant {
        let taken = Duration::from_secs_f64(bytes as f64 * 8.0 / self.bits_per_second as f64);
        let mut free_from = self.free_from.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(earliest) = Instant::now().checked_sub(CATCH_UP) {
            *free_from = (*free_from).max(earliest);
        }
        *free_from += taken;
        *free_from
    }
}

/// Bytes on their way, and when they arrive.
struct Piece {
    due: Instant,
    bytes: Vec<u8>,
}

/// One direction.
pub(super) struct Lane<'a> {
    pub(super) from: &'a TcpStream,
    pub(super) to: &'a TcpStream,
    pub(super) delay: Duration,
    pub(super) line: Option<&'a Line>,
    pub(super) shape: Shape,
}

impl Lane<'_> {
    /// Carries everything until the stream ends or breaks; tells `passed` what the receiver is about to get.
    pub(super) fn run(&self, mut passed: impl FnMut(&[u8]) + Send) {
        if self.delay.is_zero() && self.line.is_none() {
            self.copy(&mut passed);
        } else {
            let (pieces, arriving) = sync_channel(self.shape.pieces_max());
            std::thread::scope(|scope| {
                scope.spawn(|| self.deliver(arriving, &mut passed));
                self.send(pieces);
            });
        }
        // The other side may still have something to say, or be gone: then there is nothing to shut down.
        drop(self.to.shutdown(Shutdown::Write));
    }

    fn copy(&self, passed: &mut impl FnMut(&[u8])) {
        let (mut from, mut to) = (self.from, self.to);
        let mut buffer = vec![0; self.shape.piece_bytes()];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            passed(&buffer[..length]);
            if to.write_all(&buffer[..length]).is_err() {
                drop(self.from.shutdown(Shutdown::Both));
                return;
            }
        }
    }

    fn send(&self, pieces: SyncSender<Piece>) {
        let mut from = self.from;
        loop {
            let mut bytes = vec![0; self.shape.piece_bytes()];
            let Ok(length @ 1..) = from.read(&mut bytes) else { return };
            bytes.truncate(length);
            let now = Instant::now();
            // A slot in the past makes up for a late thread; nothing travels faster for it.
            let through = self.line.map_or(now, |line| line.slot(length).max(now));
            if pieces.send(Piece { due: through + self.delay, bytes }).is_err() {
                return;
            }
            // The line is busy with this piece: the next one of this connection waits for it, those of others queue up behind.
            std::thread::sleep(through.saturating_duration_since(Instant::now()));
        }
    }

    fn deliver(&self, arriving: Receiver<Piece>, passed: &mut impl FnMut(&[u8])) {
        let mut to = self.to;
        for piece in arriving {
            std::thread::sleep(piece.due.saturating_duration_since(Instant::now()));
            passed(&piece.bytes);
            if to.write_all(&piece.bytes).is_err() {
                // Nobody listens any more; this ends the reading side too.
                drop(self.from.shutdown(Shutdown::Both));
                return;
            }
        }
    }
}
