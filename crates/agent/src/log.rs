//! A container's output as log lines in the format of the CRI.
//!
//! `2026-01-02T03:04:05.678901234Z stdout F text`: the time, the stream, `F` for a full line or `P` for a piece of one
//! (kubernetes/kubernetes `pkg/kubelet/kuberuntime/logs`). A line longer than the limit is cut into pieces, and so is what
//! a stream ends with without a line feed, so that a reader can put back together exactly what was written.

use std::os::fd::OwnedFd;

use sampan_wire::agent::Instant;

use crate::limits::LOG_LINE_BYTES_MAX;

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
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Log {
    pub(crate) fn new(file: OwnedFd) -> Self {
        Self { file, stdout: Vec::new(), stderr: Vec::new() }
    }

    /// Goes on in another file.
    pub(crate) fn reopen(&mut self, file: OwnedFd) {
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
    fn append(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match rustix::io::write(&self.file, bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
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
