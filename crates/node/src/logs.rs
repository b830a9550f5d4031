//! Reading container logs: the CRI format, from the end, from a time, or as it is written.
//!
//! A line on disk is `2026-11-21T13:00:00.123456789Z stdout F text`; `P` instead of `F` marks a piece of a longer line.
//! What a client gets are the bytes that the container wrote. Source: Kubernetes' CRI logging design
//! (`pkg/kubelet/kuberuntime/logs`).

pub(crate) mod changes;
pub(crate) mod pieces;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::watch;

use crate::limits::{LOG_CHUNK_BYTES, LOG_LINE_BYTES_MAX, TERMINATION_LOG_BYTES_MAX, TERMINATION_LOG_LINES_MAX};
use crate::worker::View;
use changes::Changes;
use pieces::Piece;

/// Which of a container's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    All,
    Stdout,
    Stderr,
}

/// What a client asked for.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    pub(crate) stream: Stream,
    pub(crate) since: Option<Timestamp>,
    pub(crate) tail_lines: Option<u64>,
    pub(crate) timestamps: bool,
    pub(crate) limit_bytes: Option<u64>,
}

/// One line or piece of a line, borrowed from the file's bytes.
struct Entry<'bytes> {
    time: &'bytes [u8],
    stream: Stream,
    partial: bool,
    text: &'bytes [u8],
}

fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let time = fields.next()?;
    let stream = match fields.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let partial = fields.next()?.starts_with(b"P");
    Some(Entry { time, stream, partial, text: fields.next().unwrap_or_default() })
}

/// Turns bytes of a log file into bytes for the client.
#[derive(Debug)]
struct Filter {
    query: Query,
    pending: BytesMut,
    /// The last entry let through was a piece: the next one of its stream goes on with the line.
    inside_line: [bool; 2],
    sent_bytes: u64,
}

impl Filter {
    fn new(query: Query) -> Self {
        Self { query, pending: BytesMut::new(), inside_line: [false; 2], sent_bytes: 0 }
    }

    fn is_done(&self) -> bool {
        self.query.limit_bytes.is_some_and(|limit| self.sent_bytes >= limit)
    }

    /// Takes bytes of the file, returns what is complete of them.
    fn feed(&mut self, bytes: &[u8]) -> Bytes {
        self.pending.extend_from_slice(bytes);
        let mut out = BytesMut::new();
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line = self.pending.split_to(end + 1);
            self.one(line.get(..end).unwrap_or_default(), &mut out);
        }
        if self.pending.len() > LOG_LINE_BYTES_MAX {
            tracing::warn!("a log file holds a line that no agent writes; it is skipped");
            self.pending.clear();
        }
        if let Some(limit) = self.query.limit_bytes {
            let room = usize::try_from(limit.saturating_sub(self.sent_bytes)).unwrap_or(usize::MAX);
            out.truncate(room);
        }
        self.sent_bytes += out.len() as u64;
        out.freeze()
    }

    fn one(&mut self, line: &[u8], out: &mut BytesMut) {
        let Some(entry) = parse(line) else { return };
        if self.query.stream != Stream::All && entry.stream != self.query.stream {
            return;
        }
        let time = || std::str::from_utf8(entry.time).ok()?.parse::<Timestamp>().ok();
        if self.query.since.is_some_and(|since| time().is_none_or(|time| time < since)) {
            return;
        }
        let Some(inside) = self.inside_line.get_mut(usize::from(entry.stream == Stream::Stderr)) else { return };
        if self.query.timestamps && !*inside {
            out.extend_from_slice(entry.time);
            out.extend_from_slice(b" ");
        }
        *inside = entry.partial;
        out.extend_from_slice(entry.text);
        if !entry.partial {
            out.extend_from_slice(b"\n");
        }
    }
}

/// Where the last `lines` lines of the wanted stream begin, found by reading backwards, but not before `first`; and how
/// many there are.
async fn tail_start(file: &mut File, lines: u64, stream: Stream, first: u64) -> io::Result<(u64, u64)> {
    let mut position = file.metadata().await?.len();
    let (mut found, mut carried) = (0_u64, Vec::new());
    let mut start = position;
    while position > first {
        let step = (position - first).min(LOG_CHUNK_BYTES as u64);
        position -= step;
        file.seek(io::SeekFrom::Start(position)).await?;
        let mut chunk = vec![0; usize::try_from(step).unwrap_or(LOG_CHUNK_BYTES)];
        file.read_exact(&mut chunk).await?;
        chunk.extend_from_slice(&carried);
        let mut end = chunk.len();
        while let Some(newline) =
            chunk.get(..end.saturating_sub(1)).and_then(|head| head.iter().rposition(|byte| *byte == b'\n'))
        {
            if counts(chunk.get(newline + 1..end).unwrap_or_default(), stream) {
                found += 1;
                if found > lines {
                    return Ok((start, lines));
                }
            }
            start = position + newline as u64 + 1;
            end = newline + 1;
        }
        carried = chunk.get(..end).unwrap_or_default().to_vec();
        if carried.len() > 2 * LOG_LINE_BYTES_MAX {
            return Ok((position, lines));
        }
    }
    found += u64::from(counts(&carried, stream));
    Ok(if found > lines { (start, lines) } else { (first, found) })
}

/// The end of a log as a container's last words. The file is the agent's, and small pieces of it are read at once.
pub(crate) fn last_words(path: &Path) -> io::Result<String> {
    use std::io::{Read as _, Seek as _};
    let mut file = std::fs::File::open(path)?;
    // Enough for the longest line, or for many short ones with their prefixes.
    let window = (LOG_LINE_BYTES_MAX + TERMINATION_LOG_BYTES_MAX) as u64;
    let start = file.metadata()?.len().saturating_sub(window);
    file.seek(io::SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(window).read_to_end(&mut bytes)?;
    let whole =
        if start == 0 { 0 } else { bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| end + 1) };
    let mut text = Vec::new();
    let entries: Vec<Entry<'_>> =
        bytes.get(whole..).unwrap_or_default().split(|byte| *byte == b'\n').filter_map(parse).collect();
    let first = entries.len().saturating_sub(usize::try_from(TERMINATION_LOG_LINES_MAX).unwrap_or(usize::MAX));
    for entry in entries.get(first..).unwrap_or_default() {
        text.extend_from_slice(entry.text);
        if !entry.partial {
            text.push(b'\n');
        }
    }
    let cut = text.len().saturating_sub(TERMINATION_LOG_BYTES_MAX);
    Ok(String::from_utf8_lossy(text.get(cut..).unwrap_or_default()).into_owned())
}

/// Goes to where a log's data begin, and says where that is: what the agent gave back of a long one is a hole.
fn skip_hole(file: &File) -> io::Result<u64> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(0)) {
        Ok(start) => Ok(start),
        // It is empty.
        Err(rustix::io::Errno::NXIO) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// A whole line of the stream ends here.
fn counts(line: &[u8], stream: Stream) -> bool {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    parse(line).is_some_and(|entry| !entry.partial && (stream == Stream::All || entry.stream == stream))
}

/// Reads one run's log to its end, or for as long as the container runs; piece after piece, where it was cut.
pub(crate) struct Reader {
    path: PathBuf,
    file: File,
    /// Younger pieces, in their order.
    rest: VecDeque<Piece>,
    filter: Filter,
    follow: Option<Follow>,
    buffer: Vec<u8>,
}

/// What a follower waits for.
struct Follow {
    run: Followed,
    watch: changes::Watch,
}

/// The run whose log is followed, and where its state is seen.
pub(crate) struct Followed {
    pub(crate) changes: Arc<Changes>,
    pub(crate) view: watch::Receiver<View>,
    pub(crate) container: String,
    pub(crate) attempt: u32,
}

/// A piece as a file at the beginning of its data, and where that is. Unpacking takes time, off the event loop.
async fn unpacked(piece: Piece) -> io::Result<(File, u64)> {
    let file = if piece.is_packed() {
        let opened = tokio::task::spawn_blocking(move || piece.open()).await;
        opened.unwrap_or_else(|panic| Err(io::Error::other(panic)))?
    } else {
        piece.open()?
    };
    let file = File::from_std(file);
    let first = skip_hole(&file)?;
    Ok((file, first))
}

impl Reader {
    /// Opens a log, to follow it where a run is given.
    pub(crate) async fn open(path: &Path, query: Query, follow: Option<Followed>) -> io::Result<Self> {
        let follow = match follow {
            Some(run) => Some(Follow { watch: run.changes.watch(path).await?, run }),
            None => None,
        };
        let mut pieces: VecDeque<Piece> = pieces::open_all(path)?.into();
        let (file, rest) = match query.tail_lines {
            None => {
                let oldest = pieces.pop_front().ok_or(io::ErrorKind::NotFound)?;
                (unpacked(oldest).await?.0, pieces)
            }
            Some(lines) => tail(pieces, lines, query.stream).await?,
        };
        let (path, filter) = (path.to_owned(), Filter::new(query));
        Ok(Self { path, file, rest, filter, follow, buffer: vec![0; LOG_CHUNK_BYTES] })
    }

    /// The next bytes for the client; `None` at the end.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while !self.filter.is_done() {
            // Asked before reading: what was written before the end is then read before it is believed.
            let ended = self.follow.as_ref().is_none_or(Follow::has_ended);
            let was_cut = self.follow.is_some() && self.rest.is_empty() && self.was_cut().await;
            let read = self.file.read(&mut self.buffer).await?;
            if read > 0 {
                let bytes = self.filter.feed(self.buffer.get(..read).unwrap_or_default());
                if !bytes.is_empty() {
                    return Ok(Some(bytes));
                }
                continue;
            }
            if was_cut {
                // Complete, and read to its end: it goes on in the pieces after it.
                self.go_on().await?;
            }
            if let Some(piece) = self.rest.pop_front() {
                (self.file, _) = unpacked(piece).await?;
                continue;
            }
            match &mut self.follow {
                Some(follow) if !ended => follow.wait().await,
                _ => break,
            }
        }
        tracing::trace!(path = %self.path.display(), "a log is read to its end");
        Ok(None)
    }

    /// Whether another file has taken the place of the one that is read.
    async fn was_cut(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let Ok(own) = self.file.metadata().await else { return false };
        std::fs::metadata(&self.path).is_ok_and(|now| now.ino() != own.ino() || now.dev() != own.dev())
    }

    /// Finds the pieces after the one that is read.
    async fn go_on(&mut self) -> io::Result<()> {
        let own = self.file.metadata().await?;
        if let Some(follow) = &mut self.follow {
            follow.watch = follow.run.changes.watch(&self.path).await?;
        }
        let mut pieces = pieces::open_all(&self.path)?;
        // One that is no longer there was packed or removed: what is written now is still worth reading.
        let after =
            pieces.iter().position(|piece| piece.is(&own)).map_or(pieces.len().saturating_sub(1), |own| own + 1);
        self.rest = pieces.split_off(after).into();
        Ok(())
    }
}

/// The piece in which the last `lines` lines begin, at their beginning, and those after it.
async fn tail(mut pieces: VecDeque<Piece>, mut lines: u64, stream: Stream) -> io::Result<(File, VecDeque<Piece>)> {
    let mut younger: Vec<File> = Vec::new();
    loop {
        let piece = pieces.pop_back().ok_or(io::ErrorKind::NotFound)?;
        let (mut file, first) = unpacked(piece).await?;
        let (start, found) = tail_start(&mut file, lines, stream, first).await?;
        lines = lines.saturating_sub(found);
        if lines == 0 || pieces.is_empty() {
            file.seek(io::SeekFrom::Start(start)).await?;
            let mut rest = VecDeque::new();
            for file in younger.into_iter().rev() {
                rest.push_back(Piece::plain(file.into_std().await));
            }
            return Ok((file, rest));
        }
        younger.push(file);
    }
}

impl Follow {
    /// The run is over, and with it its log: the agent reports an end only after the last byte is written.
    fn has_ended(&self) -> bool {
        let Followed { view, container, attempt, .. } = &self.run;
        let closed = view.has_changed().is_err();
        let view = view.borrow();
        let running = view
            .containers
            .get(container)
            .is_some_and(|container| container.attempt == *attempt && (container.running || !container.started));
        closed || !running
    }

    async fn wait(&mut self) {
        tokio::select! {
            () = self.watch.changed() => {}
            changed = self.run.view.changed() => {
                if changed.is_err() {
                    tracing::trace!("the pod's worker ended");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Query, Reader, Stream};
    use std::io::Write;

    const LOG: &str = "2026-11-21T13:00:00.000000001Z stdout F one\n\
                       2026-11-21T13:00:01.000000000Z stderr F oops\n\
                       2026-11-21T13:00:02.000000000Z stdout P tw\n\
                       2026-11-21T13:00:02.000000001Z stdout F o\n\
                       garbage\n\
                       2026-11-21T13:00:03.000000000Z stdout F \n";

    fn query() -> Query {
        Query { stream: Stream::All, since: None, tail_lines: None, timestamps: false, limit_bytes: None }
    }

    async fn read(query: Query) -> String {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(LOG.as_bytes()).unwrap();
        let mut reader = Reader::open(file.path(), query, None).await.unwrap();
        let mut text = Vec::new();
        while let Some(bytes) = reader.next().await.unwrap() {
            text.extend_from_slice(&bytes);
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn gives_back_what_was_written() {
        assert_eq!(read(query()).await, "one\noops\ntwo\n\n");
        assert_eq!(read(Query { stream: Stream::Stderr, ..query() }).await, "oops\n");
        assert_eq!(read(Query { limit_bytes: Some(6), ..query() }).await, "one\noo");
        let since = Some("2026-11-21T13:00:02Z".parse().unwrap());
        assert_eq!(read(Query { since, ..query() }).await, "two\n\n");
        let timed = read(Query { timestamps: true, stream: Stream::Stdout, ..query() }).await;
        assert!(
            timed.starts_with("2026-11-21T13:00:00.000000001Z one\n2026-11-21T13:00:02.000000000Z two\n"),
            "{timed}"
        );
    }

    #[test]
    fn last_words_are_the_end_of_the_log() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(LOG.as_bytes()).unwrap();
        assert_eq!(super::last_words(file.path()).unwrap(), "one\noops\ntwo\n\n");
        for number in 0..1000 {
            writeln!(file, "2026-11-21T13:00:04.000000000Z stdout F line {number}").unwrap();
        }
        let words = super::last_words(file.path()).unwrap();
        assert_eq!((words.lines().count(), words.lines().last()), (80, Some("line 999")));
        let long = "x".repeat(16 << 10);
        writeln!(file, "2026-11-21T13:00:05.000000000Z stdout F {long}").unwrap();
        assert_eq!(super::last_words(file.path()).unwrap().len(), 2048);
    }

    #[tokio::test]
    async fn a_cut_log_is_read_as_one_and_tailed_across_its_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let line = |number: u32| format!("2026-11-21T13:00:00.000000000Z stdout F line {number}\n");
        std::fs::write(&path, line(0) + &line(1)).unwrap();
        for number in 1..4 {
            std::fs::write(super::pieces::next(&path), line(2 * number) + &line(2 * number + 1)).unwrap();
            let now = jiff::Timestamp::from_second(1_000_000 + i64::from(number)).unwrap();
            super::pieces::cut(&path, now).unwrap();
        }
        for tail in [None, Some(0), Some(1), Some(2), Some(3), Some(5), Some(8), Some(99)] {
            let mut reader = Reader::open(&path, Query { tail_lines: tail, ..query() }, None).await.unwrap();
            let mut text = Vec::new();
            while let Some(bytes) = reader.next().await.unwrap() {
                text.extend_from_slice(&bytes);
            }
            let first = 8_u64.saturating_sub(tail.unwrap_or(8));
            let wanted: String = (first..8).map(|number| format!("line {number}\n")).collect();
            assert_eq!(String::from_utf8(text).unwrap(), wanted, "{tail:?}");
        }
    }

    #[tokio::test]
    async fn tails_count_whole_lines_of_the_stream() {
        for (lines, text) in [(0, ""), (1, "\n"), (2, "two\n\n"), (3, "oops\ntwo\n\n"), (9, "one\noops\ntwo\n\n")] {
            assert_eq!(read(Query { tail_lines: Some(lines), ..query() }).await, text, "{lines} lines");
        }
        assert_eq!(read(Query { tail_lines: Some(2), stream: Stream::Stdout, ..query() }).await, "two\n\n");
    }
}
