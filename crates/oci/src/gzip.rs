//! gzip (RFC 1952): members one after another, each a header, a DEFLATE stream and a trailer, checked in full; fed in
//! slices of any size.
//!
//! ```text
//! let mut decoder = GzipDecoder::new(OutputBuffer::with_capacity(1 << 20), Some(CheckpointPolicy::default()));
//! for slice in slices {
//!     let mut slice = &slice[..];
//!     loop {
//!         let progress = decoder.feed(slice)?;
//!         slice = &slice[progress.consumed..];
//!         match progress.state {
//!             DecoderState::NeedsInput => break,
//!             DecoderState::OutputFull => {
//!                 consume(decoder.output());           // or: let full = decoder.replace_output(spare)
//!                 decoder.clear_output();
//!                 store(decoder.take_spans());
//!             }
//!         }
//!     }
//! }
//! decoder.finish()?;
//! consume(decoder.output());
//! store(decoder.take_spans());
//! ```
//!
//! What follows the last member and does not begin like a member (padding, garbage) is ignored, as gzip and the programs
//! that container engines call for it do; the digests of the layer still cover it. Invariant: never panics, and
//! allocates nothing but spans (at most 32 KiB for each [`CheckpointPolicy::output_bytes_min`] of output).

mod header;

use crate::inflate::{
    BlockDecoder, BlockStop, Carry, CheckpointPolicy, Corruption, InflateError, Input, OutputBuffer, Span,
    SpanRecorder, StreamPosition,
};
use header::HeaderParser;

/// Output between two looks at the checksum: small enough that the bytes are still in the processor's cache.
const CHECKSUM_STEP_BYTES: usize = 128 * 1024;

/// What a call of [`GzipDecoder::feed`] achieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the slice that were taken. The next slice must begin right after them.
    pub consumed: usize,
    /// Why it returned.
    pub state: DecoderState,
}

/// Why [`GzipDecoder::feed`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecoderState {
    /// The whole slice is consumed: feed the next one, or [`finish`](GzipDecoder::finish) when there is none.
    NeedsInput,
    /// The output buffer is full: [`clear_output`](GzipDecoder::clear_output) or
    /// [`replace_output`](GzipDecoder::replace_output), then feed the rest (an empty slice, too).
    OutputFull,
}

/// Totals of a stream that ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Bytes fed.
    pub compressed: u64,
    /// Bytes put out.
    pub uncompressed: u64,
    /// Bytes at the end of the stream that belong to no member and were ignored.
    pub trailing: u64,
}

/// Decodes a gzip stream. See the module for how to drive it.
#[derive(Debug)]
pub struct GzipDecoder {
    place: Place,
    carry: Carry,
    body: BlockDecoder,
    output: OutputBuffer,
    spans: Option<SpanRecorder>,
    member: Member,
    members: u64,
    /// Where the last member's trailer ended, in compressed bytes.
    members_end: u64,
    failed: Option<InflateError>,
}

/// Where in the stream the decoder stands.
#[derive(Debug)]
enum Place {
    Header(HeaderParser),
    /// Bits of a first byte that belong to what comes before a resumed stream.
    Skip(u32),
    Body,
    TrailerChecksum,
    TrailerLength,
    Trailing,
}

/// What is known of the current member's data.
#[derive(Debug)]
struct Member {
    /// `None` when its beginning was not seen.
    checksum: Option<crc32fast::Hasher>,
    length: u32,
}

impl Member {
    fn new() -> Self {
        Self { checksum: Some(crc32fast::Hasher::new()), length: 0 }
    }
}

impl GzipDecoder {
    /// A decoder at the start of a stream that fills `output`; with a policy it also notes checkpoints.
    pub fn new(output: OutputBuffer, checkpoints: Option<CheckpointPolicy>) -> Self {
        Self::build(
            Place::Header(HeaderParser::new()),
            Carry::default(),
            BlockDecoder::new(),
            output,
            &[],
            Member::new(),
            checkpoints.map(SpanRecorder::new),
        )
    }

    /// A decoder that begins at a checkpoint: at bit `start.bit` of the first byte it is fed, which is the compressed
    /// stream's byte `start.compressed`. `window` is the span's window. The checksum of the member that it begins in
    /// cannot be checked; those of later ones are.
    pub fn resume(start: StreamPosition, window: &[u8], output: OutputBuffer) -> Self {
        Self::build(
            Place::Skip(u32::from(start.bit & 7)),
            Carry::at(start.compressed),
            BlockDecoder::in_the_middle(start.uncompressed),
            output,
            window,
            Member { checksum: None, length: 0 },
            None,
        )
    }

    fn build(
        place: Place,
        carry: Carry,
        body: BlockDecoder,
        mut output: OutputBuffer,
        window: &[u8],
        member: Member,
        spans: Option<SpanRecorder>,
    ) -> Self {
        output.preset(window);
        Self { place, carry, body, output, spans, member, members: 0, members_end: 0, failed: None }
    }

    /// Decodes from `input`, the next slice of the stream. After an error every further call gives that error.
    pub fn feed(&mut self, input: &[u8]) -> Result<Progress, InflateError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let mut input = Input::resume(self.carry, input);
        let result = self.advance(&mut input);
        let consumed = input.consumed();
        self.carry = input.carry();
        match result {
            Ok(state) => Ok(Progress { consumed, state }),
            Err(error) => {
                self.failed = Some(error);
                Err(error)
            }
        }
    }

    /// Says that the input has ended: checks that it may, and closes the last span.
    pub fn finish(&mut self) -> Result<Totals, InflateError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let compressed = self.carry.taken();
        let ended = match &self.place {
            Place::Trailing => true,
            Place::Header(header) => self.members > 0 && !header.is_certain(),
            _ => false,
        };
        if !ended {
            let error = InflateError::Truncated { at: compressed };
            self.failed = Some(error);
            return Err(error);
        }
        if let Some(spans) = &mut self.spans {
            spans.finish(StreamPosition { compressed: self.members_end, bit: 0, uncompressed: self.body.offset() });
        }
        Ok(Totals { compressed, uncompressed: self.body.offset(), trailing: compressed - self.members_end })
    }

    /// The decoded bytes since the output was last cleared or replaced.
    pub fn output(&self) -> &[u8] {
        self.output.bytes()
    }

    /// Offset in the decoded stream of the byte that comes next.
    pub fn uncompressed_offset(&self) -> u64 {
        self.body.offset()
    }

    /// Forgets the bytes of [`output`](Self::output), so that there is room again.
    pub fn clear_output(&mut self) {
        self.output.clear();
    }

    /// Hands the output buffer out and goes on in `replacement`, whose old content is lost.
    pub fn replace_output(&mut self, mut replacement: OutputBuffer) -> OutputBuffer {
        replacement.follow(&self.output);
        std::mem::replace(&mut self.output, replacement)
    }

    /// The spans that were completed since the last call, in order. The last one comes after [`finish`](Self::finish).
    pub fn take_spans(&mut self) -> Vec<Span> {
        self.spans.as_mut().map(SpanRecorder::take).unwrap_or_default()
    }

    fn advance(&mut self, input: &mut Input<'_>) -> Result<DecoderState, InflateError> {
        loop {
            match &mut self.place {
                Place::Header(header) => match header.advance(input, self.members > 0)? {
                    header::Step::NeedsInput => return Ok(DecoderState::NeedsInput),
                    header::Step::NotAMember => self.place = Place::Trailing,
                    header::Step::Done => {
                        self.member = Member::new();
                        self.body.restart();
                        self.place = Place::Body;
                    }
                },
                Place::Skip(bits) => {
                    if input.take(*bits).is_none() {
                        return Ok(DecoderState::NeedsInput);
                    }
                    self.place = Place::Body;
                }
                Place::Body => match self.body(input)? {
                    BlockStop::Input => return Ok(DecoderState::NeedsInput),
                    BlockStop::Output if self.output.is_full() => return Ok(DecoderState::OutputFull),
                    BlockStop::Output => {}
                    BlockStop::End => {
                        input.align();
                        self.place = Place::TrailerChecksum;
                    }
                },
                Place::TrailerChecksum => {
                    let Some(expected) = input.take(32) else { return Ok(DecoderState::NeedsInput) };
                    if let Some(checksum) = self.member.checksum.clone()
                        && checksum.finalize() != expected
                    {
                        return Err(corrupt(input, Corruption::Checksum));
                    }
                    self.place = Place::TrailerLength;
                }
                Place::TrailerLength => {
                    let Some(expected) = input.take(32) else { return Ok(DecoderState::NeedsInput) };
                    if self.member.checksum.is_some() && self.member.length != expected {
                        return Err(corrupt(input, Corruption::Length));
                    }
                    self.members += 1;
                    self.members_end = input.offset();
                    self.place = Place::Header(HeaderParser::new());
                }
                Place::Trailing => {
                    input.discard();
                    return Ok(DecoderState::NeedsInput);
                }
            }
        }
    }

    /// Some of the member's data, and its checksum.
    fn body(&mut self, input: &mut Input<'_>) -> Result<BlockStop, InflateError> {
        let begin = self.output.filled();
        let stop = self
            .body
            .run(input, &mut self.output, begin + CHECKSUM_STEP_BYTES, &mut self.spans)
            .map_err(|what| corrupt(input, what))?;
        let new = &self.output.bytes()[begin..];
        if let Some(checksum) = &mut self.member.checksum {
            checksum.update(new);
            self.member.length = self.member.length.wrapping_add(new.len() as u32);
        }
        Ok(stop)
    }
}

fn corrupt(input: &Input<'_>, what: Corruption) -> InflateError {
    InflateError::Corrupt { at: input.offset(), what }
}

/// Decodes one span whose compressed bytes are at hand (see [`Span::compressed_range`]) until `output` is full.
pub fn inflate_span(
    start: StreamPosition,
    window: &[u8],
    compressed: &[u8],
    output: &mut [u8],
) -> Result<(), InflateError> {
    let buffer = OutputBuffer::with_capacity(output.len());
    let mut decoder = GzipDecoder::resume(start, window, buffer);
    decoder.feed(compressed)?;
    let decoded = decoder.output();
    if decoded.len() < output.len() {
        return Err(InflateError::Truncated { at: start.compressed + compressed.len() as u64 });
    }
    output.copy_from_slice(&decoded[..output.len()]);
    Ok(())
}
