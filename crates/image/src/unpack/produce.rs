//! The first thread: compressed bytes in, uncompressed pieces out.

use super::piece::{Piece, Pool};
use super::spans::{DigestWork, SpanStart};
use super::{UnpackError, UnpackJob, Work, is_stopped};
use crate::index::Compression;
use crate::limits::BUFFER_BYTES;
use bytes::Bytes;
use sampan_oci::gzip::{DecoderState, GzipDecoder};
use sampan_oci::inflate::{CheckpointPolicy, OutputBuffer};
use sampan_oci::media_type;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::SyncSender;
use zstd::stream::raw::{Decoder as ZstdDecoder, Operation};

type Chunk = Result<Bytes, sampan_registry::FetchError>;

/// The compressed layer as it arrives; its sender has checked size and digest when it ends.
pub(crate) struct Input {
    chunks: tokio::sync::mpsc::Receiver<Chunk>,
    /// Said with the number of bytes so far whenever more have been taken.
    progress: Box<dyn FnMut(u64) + Send>,
    taken: u64,
    ended: bool,
}

impl Input {
    pub(crate) fn new(chunks: tokio::sync::mpsc::Receiver<Chunk>, progress: Box<dyn FnMut(u64) + Send>) -> Self {
        Self { chunks, progress, taken: 0, ended: false }
    }

    /// The next bytes. A sender that vanishes without the empty chunk that marks the end was cancelled.
    fn next(&mut self, job: &UnpackJob) -> Result<Option<Bytes>, UnpackError> {
        if self.ended {
            return Ok(None);
        }
        match self.chunks.blocking_recv() {
            Some(Ok(bytes)) if bytes.is_empty() => {
                self.ended = true;
                Ok(None)
            }
            Some(Ok(bytes)) => {
                self.taken += bytes.len() as u64;
                (self.progress)(self.taken);
                Ok(Some(bytes))
            }
            Some(Err(error)) => Err(error.into()),
            None => Err(UnpackError::Cancelled { layer: job.digest }),
        }
    }

    /// Reads on to the end for the sake of the digest: an error that explains `error` takes its place.
    fn explain(&mut self, job: &UnpackJob, error: UnpackError) -> UnpackError {
        loop {
            match self.next(job) {
                Ok(Some(_)) => {}
                Ok(None) => return error,
                Err(explanation) => return explanation,
            }
        }
    }
}

/// Where pieces go.
pub(super) struct Outputs<'a> {
    write: SyncSender<Work>,
    digest: SyncSender<DigestWork>,
    stop: &'a AtomicBool,
}

impl<'a> Outputs<'a> {
    pub(super) fn new(write: SyncSender<Work>, digest: SyncSender<DigestWork>, stop: &'a AtomicBool) -> Self {
        Self { write, digest, stop }
    }

    fn piece(&self, piece: Piece) -> Result<(), UnpackError> {
        let piece = Arc::new(piece);
        self.digest.send(DigestWork::Bytes(piece.clone())).map_err(|_gone| UnpackError::Stopped)?;
        self.write.send(Work { piece }).map_err(|_gone| UnpackError::Stopped)
    }

    fn span(&self, span: SpanStart) -> Result<(), UnpackError> {
        self.digest.send(DigestWork::Span(span)).map_err(|_gone| UnpackError::Stopped)
    }
}

/// Totals of a stream that ended well.
pub(super) struct Produced {
    pub(super) compression: Compression,
    pub(super) layer_bytes: u64,
    pub(super) stream_bytes: u64,
}

/// Unpacks the whole input into `outputs`.
pub(super) fn produce(job: &UnpackJob, input: &mut Input, outputs: Outputs<'_>) -> Result<Produced, UnpackError> {
    let mut producing = Producing { job, outputs, pool: Arc::new(Pool::default()), stream_bytes: 0 };
    match producing.run(input) {
        Ok(compression) => Ok(Produced { compression, layer_bytes: input.taken, stream_bytes: producing.stream_bytes }),
        Err(error @ (UnpackError::Gzip { .. } | UnpackError::Zstd { .. })) => Err(input.explain(job, error)),
        // The write thread did not like what it read. Unless the disk is to blame, a wrong digest explains it.
        Err(UnpackError::Stopped) if !is_stopped(producing.outputs.stop) => {
            Err(input.explain(job, UnpackError::Stopped))
        }
        Err(error) => Err(error),
    }
}

struct Producing<'a> {
    job: &'a UnpackJob,
    outputs: Outputs<'a>,
    pool: Arc<Pool>,
    stream_bytes: u64,
}

impl Producing<'_> {
    fn run(&mut self, input: &mut Input) -> Result<Compression, UnpackError> {
        let first = input.next(self.job)?.unwrap_or_default();
        let compression = sniff(&first, self.job.compression);
        match compression {
            Compression::Gzip => self.gzip(first, input)?,
            Compression::Zstd => self.zstd(first, input)?,
            Compression::None => self.plain(first, input)?,
        }
        Ok(compression)
    }

    fn gzip(&mut self, first: Bytes, input: &mut Input) -> Result<(), UnpackError> {
        let gzip = |source| UnpackError::Gzip { layer: self.job.digest, source };
        let mut decoder = GzipDecoder::new(self.pool.take(BUFFER_BYTES), Some(CheckpointPolicy::default()));
        let mut next = Some(first);
        while let Some(bytes) = next {
            let mut rest = &bytes[..];
            loop {
                let progress = decoder.feed(rest).map_err(gzip)?;
                rest = rest.get(progress.consumed..).unwrap_or_default();
                match progress.state {
                    DecoderState::NeedsInput => break,
                    DecoderState::OutputFull => {
                        let full = decoder.replace_output(self.pool.take(BUFFER_BYTES));
                        hand_over(&self.outputs, &self.pool, &mut self.stream_bytes, self.job, full)?;
                        for span in decoder.take_spans() {
                            self.outputs.span(span.into())?;
                        }
                    }
                }
            }
            next = input.next(self.job)?;
        }
        decoder.finish().map_err(gzip)?;
        let last = decoder.replace_output(self.pool.take(BUFFER_BYTES));
        hand_over(&self.outputs, &self.pool, &mut self.stream_bytes, self.job, last)?;
        for span in decoder.take_spans() {
            self.outputs.span(span.into())?;
        }
        Ok(())
    }

    /// zstd can only be entered at the beginning of a frame, where it needs no window.
    fn zstd(&mut self, first: Bytes, input: &mut Input) -> Result<(), UnpackError> {
        let zstd = |what, source| UnpackError::Zstd { layer: self.job.digest, what, source };
        let mut decoder = ZstdDecoder::new().map_err(|error| zstd("unreadable", Some(error)))?;
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        let (mut consumed, mut span_at, mut in_frame) = (0u64, None, false);
        let mut next = Some(first);
        while let Some(bytes) = next {
            let mut rest = &bytes[..];
            while !rest.is_empty() || buffer.len() == buffer.capacity() {
                if buffer.len() == buffer.capacity() {
                    let full = std::mem::replace(&mut buffer, Vec::with_capacity(BUFFER_BYTES));
                    self.piece(Piece::shared(full.into()))?;
                }
                let here = self.stream_bytes + buffer.len() as u64;
                if !in_frame {
                    if rest.is_empty() {
                        break;
                    }
                    let distance = CheckpointPolicy::default().output_bytes_min;
                    if span_at.is_none_or(|at| here - at >= distance) {
                        span_at = Some(here);
                        let (compressed_offset, window) = (consumed, Vec::new());
                        self.outputs.span(SpanStart { compressed_offset, bit: 0, stream_offset: here, window })?;
                    }
                    in_frame = true;
                }
                let mut space = vec_space(&mut buffer);
                let mut source = zstd::stream::raw::InBuffer::around(rest);
                let hint = decoder.run(&mut source, &mut space).map_err(|error| zstd("corrupt", Some(error)))?;
                let taken = source.pos();
                consumed += taken as u64;
                rest = rest.get(taken..).unwrap_or_default();
                if hint == 0 {
                    in_frame = false;
                    decoder.reinit().map_err(|error| zstd("unreadable", Some(error)))?;
                }
            }
            next = input.next(self.job)?;
        }
        if in_frame {
            return Err(zstd("truncated", None));
        }
        self.piece(Piece::shared(buffer.into()))
    }

    fn plain(&mut self, first: Bytes, input: &mut Input) -> Result<(), UnpackError> {
        let distance = CheckpointPolicy::default().output_bytes_min;
        let mut next_span = 0;
        let mut next = Some(first);
        while let Some(bytes) = next {
            while next_span < self.stream_bytes + bytes.len() as u64 {
                let (at, window) = (next_span, Vec::new());
                self.outputs.span(SpanStart { compressed_offset: at, bit: 0, stream_offset: at, window })?;
                next_span += distance;
            }
            self.piece(Piece::shared(bytes))?;
            next = input.next(self.job)?;
        }
        Ok(())
    }

    fn piece(&mut self, piece: Piece) -> Result<(), UnpackError> {
        count(&mut self.stream_bytes, piece.bytes().len(), self.job)?;
        self.outputs.piece(piece)
    }
}

fn hand_over(
    outputs: &Outputs<'_>,
    pool: &Arc<Pool>,
    stream_bytes: &mut u64,
    job: &UnpackJob,
    buffer: OutputBuffer,
) -> Result<(), UnpackError> {
    count(stream_bytes, buffer.bytes().len(), job)?;
    outputs.piece(Piece::pooled(buffer, pool))
}

fn count(stream_bytes: &mut u64, more: usize, job: &UnpackJob) -> Result<(), UnpackError> {
    *stream_bytes += more as u64;
    if *stream_bytes > job.stream_bytes_max {
        return Err(UnpackError::Expands { layer: job.digest, limit: job.stream_bytes_max });
    }
    Ok(())
}

fn vec_space(buffer: &mut Vec<u8>) -> zstd::stream::raw::OutBuffer<'_, Vec<u8>> {
    let filled = buffer.len();
    zstd::stream::raw::OutBuffer::around_pos(buffer, filled)
}

/// What the layer really is. Registries serve layers under the media type of another compression, and all engines take them;
/// the digests hold either way. What looks like nothing known is left to the declared decoder to refuse.
fn sniff(first: &[u8], declared: media_type::Compression) -> Compression {
    match first {
        [0x1f, 0x8b, 8, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        // A skippable frame.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ if first.get(257..262) == Some(b"ustar") => Compression::None,
        _ => match declared {
            media_type::Compression::Gzip => Compression::Gzip,
            media_type::Compression::Zstd => Compression::Zstd,
            media_type::Compression::None => Compression::None,
        },
    }
}
