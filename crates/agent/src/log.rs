//! A container's output as log lines in the format of the CRI.
//!
//! `2026-01-02T03:04:05.678901234Z stdout F text`: the time, the stream, `F` for a full line or `P` for a piece of one
//! (kubernetes/kubernetes `pkg/kubelet/kuberuntime/logs`). A line longer than the limit is cut into pieces, and so is what
//! a stream ends with without a line feed, so that a reader can put back together exactly what was written.
//!
//! The log of one run takes at most `LOG_BYTES_MAX` of the disk: its oldest part becomes a hole, so that followers keep
//! their place and readers begin where the data does.

use std::os::fd::OwnedFd;

use rustix::fs::FallocateFlags;
use sampan_wire::agent::Instant;

use crate::limits::{LOG_BLOCK_BYTES, LOG_BYTES_MAX, LOG_LINE_BYTES_MAX};

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Stdout,
    Stderr,
}

/// One container's log file and the beginnings of lines that are not finished.
#[derive(Debug)]
pub(crate) struct Log {
    file: OwnedFd,
    /// Bytes of the file, hole included.
    length: u64,
    /// Where its hole ends.
    kept_from: u64,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Log {
    pub(crate) fn new(file: OwnedFd) -> Self {
        let length = length(&file);
        Self { file, length, kept_from: 0, stdout: Vec::new(), stderr: Vec::new() }
    }

    /// Goes on in another file.
    pub(crate) fn reopen(&mut self, file: OwnedFd) {
        (self.length, self.kept_from) = (length(&file), 0);
        self.file = file;
    }

    /// Logs what a stream said just now.
    pub(crate) fn write(&mut self, source: Source, bytes: &[u8], now: Instant) {
        let lines = format_lines(self.beginning(source), source, bytes, now);
        self.append(&lines);
    }

    /// Logs what is left of a stream that has ended.
    pub(crate) fn finish(&mut self, source: Source, now: Instant) {
        let rest = std::mem::take(self.beginning(source));
        if !rest.is_empty() {
            let mut line = Vec::new();
            push_line(&mut line, &prefix(source, now), b'P', &rest);
            self.append(&line);
        }
    }

    fn beginning(&mut self, source: Source) -> &mut Vec<u8> {
        match source {
            Source::Stdout => &mut self.stdout,
            Source::Stderr => &mut self.stderr,
        }
    }

    /// A log that cannot be written (disk full) loses lines; the container goes on.
    fn append(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match rustix::io::write(&self.file, bytes) {
                Ok(written) => {
                    bytes = bytes.get(written..).unwrap_or_default();
                    self.length = self.length.saturating_add(written as u64);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
        if self.length.saturating_sub(self.kept_from) > LOG_BYTES_MAX {
            self.forget_older_half();
        }
    }

    /// Makes a hole of all but the youngest half; on a file system without holes it begins anew.
    fn forget_older_half(&mut self) {
        let keep_from = self.length.saturating_sub(LOG_BYTES_MAX / 2) / LOG_BLOCK_BYTES * LOG_BLOCK_BYTES;
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let bytes = keep_from.saturating_sub(self.kept_from);
        if rustix::fs::fallocate(&self.file, hole, self.kept_from, bytes).is_ok() {
            self.kept_from = keep_from;
        } else if rustix::fs::ftruncate(&self.file, 0).is_ok() {
            (self.length, self.kept_from) = (0, 0);
        }
    }
}

/// An earlier agent or run may have written to it before.
fn length(file: &OwnedFd) -> u64 {
    rustix::fs::fstat(file).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0))
}

fn prefix(source: Source, now: Instant) -> String {
    let nanoseconds = i32::try_from(now.nanoseconds).unwrap_or_default();
    let time = jiff::Timestamp::new(now.seconds, nanoseconds).unwrap_or_default();
    let stream = match source {
        Source::Stdout => "stdout",
        Source::Stderr => "stderr",
    };
    format!("{time:.9} {stream} ")
}

fn push_line(out: &mut Vec<u8>, prefix: &str, tag: u8, text: &[u8]) {
    out.extend_from_slice(prefix.as_bytes());
    out.extend_from_slice(&[tag, b' ']);
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// Appends `bytes` to the `beginning` of a line and returns every line that is finished or too long.
fn format_lines(beginning: &mut Vec<u8>, source: Source, bytes: &[u8], now: Instant) -> Vec<u8> {
    let prefix = prefix(source, now);
    let mut out = Vec::with_capacity(bytes.len().saturating_add(256));
    for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
        let (mut text, ended) = match piece.strip_suffix(b"\n") {
            Some(text) => (text, true),
            None => (piece, false),
        };
        while beginning.len().saturating_add(text.len()) > LOG_LINE_BYTES_MAX {
            let (fits, rest) = text.split_at(LOG_LINE_BYTES_MAX.saturating_sub(beginning.len()));
            beginning.extend_from_slice(fits);
            push_line(&mut out, &prefix, b'P', beginning);
            beginning.clear();
            text = rest;
        }
        beginning.extend_from_slice(text);
        if ended {
            push_line(&mut out, &prefix, b'F', beginning);
            beginning.clear();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Instant = Instant { seconds: 1_767_323_045, nanoseconds: 7 };

    #[test]
    fn cuts_into_lines() {
        let mut beginning = b"be".to_vec();
        let out = format_lines(&mut beginning, Source::Stderr, b"gin\n\nrest", NOW);
        let expected = "2026-01-02T03:04:05.000000007Z stderr F begin\n2026-01-02T03:04:05.000000007Z stderr F \n";
        assert_eq!(String::from_utf8_lossy(&out), expected);
        assert_eq!(beginning, b"rest");
    }

    #[test]
    fn takes_no_more_of_the_disk_than_it_may() {
        let file = tempfile::tempfile().unwrap();
        let mut log = Log::new(file.try_clone().unwrap().into());
        let lines = [b'x'; 1023].into_iter().chain(*b"\n").collect::<Vec<u8>>().repeat(1024);
        let mut written = 0;
        while written < 3 * LOG_BYTES_MAX {
            log.write(Source::Stdout, &lines, NOW);
            written += lines.len() as u64;
            let stat = rustix::fs::fstat(&file).unwrap();
            assert!(u64::try_from(stat.st_blocks).unwrap() * 512 <= LOG_BYTES_MAX + 2 * lines.len() as u64);
            assert!(u64::try_from(stat.st_size).unwrap() >= written, "followers keep their place");
        }
    }

    proptest! {
        /// Full lines end with a line feed, pieces do not: joined, they are what was written.
        #[test]
        fn nothing_is_lost(text in prop::collection::vec(prop::sample::select(&b"ab\n"[..]), 0..200), scale in 1..400_usize, cut in 1..40_000_usize) {
            let bytes: Vec<u8> = text.iter().flat_map(|byte| std::iter::repeat_n(*byte, if *byte == b'\n' { 1 } else { scale })).collect();
            let (mut beginning, mut out) = (Vec::new(), Vec::new());
            for piece in bytes.chunks(cut) {
                out.extend(format_lines(&mut beginning, Source::Stdout, piece, NOW));
            }
            let mut joined = Vec::new();
            for line in out.split_inclusive(|byte| *byte == b'\n') {
                let text = line.strip_prefix(b"2026-01-02T03:04:05.000000007Z stdout ").unwrap();
                prop_assert!(text.len() <= LOG_LINE_BYTES_MAX + 3);
                match text[0] {
                    b'F' => joined.extend_from_slice(&text[2..]),
                    _ => joined.extend_from_slice(&text[2..text.len() - 1]),
                }
            }
            joined.extend(beginning);
            prop_assert_eq!(joined, bytes);
        }
    }
}
