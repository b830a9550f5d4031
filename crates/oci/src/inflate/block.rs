//! DEFLATE's blocks as a state machine that suspends wherever input or output ends.
//!
//! ```text
//! Header ─┬─ stored ──► StoredLength ─► Stored ───────────────────────┐
//!         ├─ fixed ────────────────────────────────► Codes ⇄ Copy ────┤
//!         └─ dynamic ─► Counts ─► Precode ─► Lengths ─► Codes ⇄ Copy ─┴─► Header, or Done after the last block
//! ```
//!
//! Every state takes what it needs from the input in one piece, or nothing.

use super::fast::{self, Bounds, FastStop, INPUT_MARGIN, OUTPUT_MARGIN};
use super::span::{SpanRecorder, StreamPosition};
use super::tables::{
    DISTANCE_ENTRIES, DISTANCE_MASK, DISTANCE_SYMBOLS, END_OF_BLOCK, EXCEPTIONAL, LITERAL, LITLEN_ENTRIES, LITLEN_MASK,
    LITLEN_SYMBOLS, Precode, SUBTABLE, Tables,
};
use super::{Corruption, Input, OutputBuffer, WINDOW_BYTES};

/// Order in which the code lengths of the code length code are sent (RFC 1951, 3.2.7).
const PRECODE_ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
const LITLEN_CODES_MAX: usize = 286;
const DISTANCE_CODES_MAX: usize = 30;

/// Why [`BlockDecoder::run`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockStop {
    /// All input is used up.
    Input,
    /// The output limit is reached.
    Output,
    /// The last block ended; the input stands right behind it, within a byte perhaps.
    End,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Header,
    StoredLength,
    Stored { left: usize },
    Counts,
    Precode { lengths: [u8; 19], count: usize, next: usize },
    Lengths { litlen: usize, distance: usize, next: usize },
    Codes,
    Copy { distance: usize, left: usize },
    Done,
}

/// Decodes one DEFLATE stream after another.
#[derive(Debug)]
pub(crate) struct BlockDecoder {
    state: State,
    last: bool,
    tables: Tables,
    precode: Option<Precode>,
    lengths: [u8; LITLEN_SYMBOLS + DISTANCE_SYMBOLS],
    /// Bytes that matches can reach: what this stream has put out, or a whole window after a resume.
    reach: u64,
    /// Offset in the decoded stream, over all members.
    offset: u64,
}

impl BlockDecoder {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Header,
            last: false,
            tables: Tables::new(),
            precode: None,
            lengths: [0; LITLEN_SYMBOLS + DISTANCE_SYMBOLS],
            reach: 0,
            offset: 0,
        }
    }

    /// Begins at a block header in the middle of a stream, `offset` bytes into the decoded one, with a window.
    pub(crate) fn in_the_middle(offset: u64) -> Self {
        Self { reach: WINDOW_BYTES as u64, offset, ..Self::new() }
    }

    /// Begins the next member's stream.
    pub(crate) fn restart(&mut self) {
        self.state = State::Header;
        self.last = false;
        self.reach = 0;
    }

    /// Offset in the decoded stream.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Decodes until `out` holds `limit` new bytes, or the input or the stream ends.
    pub(crate) fn run(
        &mut self,
        input: &mut Input<'_>,
        out: &mut OutputBuffer,
        limit: usize,
        spans: &mut Option<SpanRecorder>,
    ) -> Result<BlockStop, Corruption> {
        let limit = (WINDOW_BYTES + limit).min(out.bytes.len());
        loop {
            let stop = match self.state {
                State::Header => self.header(input, spans)?,
                State::StoredLength => self.stored_length(input)?,
                State::Stored { left } => self.stored(input, out, limit, left),
                State::Counts => self.counts(input)?,
                State::Precode { lengths, count, next } => self.precode_lengths(input, lengths, count, next)?,
                State::Lengths { litlen, distance, next } => self.code_lengths(input, litlen, distance, next)?,
                State::Codes => self.codes(input, out, limit, spans)?,
                State::Copy { distance, left } => self.copy(out, limit, distance, left, spans),
                State::Done => Some(BlockStop::End),
            };
            if let Some(stop) = stop {
                return Ok(stop);
            }
        }
    }

    fn header(
        &mut self,
        input: &mut Input<'_>,
        spans: &mut Option<SpanRecorder>,
    ) -> Result<Option<BlockStop>, Corruption> {
        if let Some(spans) = spans {
            let bits = input.bit_position();
            spans.block_boundary(StreamPosition {
                compressed: bits / 8,
                bit: (bits % 8) as u8,
                uncompressed: self.offset,
            });
        }
        let Some(bits) = input.take(3) else { return Ok(Some(BlockStop::Input)) };
        self.last = bits & 1 != 0;
        self.state = match bits >> 1 {
            0 => {
                input.align();
                State::StoredLength
            }
            1 => {
                self.tables.build_fixed()?;
                State::Codes
            }
            2 => State::Counts,
            _ => return Err(Corruption::BlockType),
        };
        Ok(None)
    }

    fn end_of_block(&mut self) {
        self.state = if self.last { State::Done } else { State::Header };
    }

    fn stored_length(&mut self, input: &mut Input<'_>) -> Result<Option<BlockStop>, Corruption> {
        let Some(bits) = input.take(32) else { return Ok(Some(BlockStop::Input)) };
        let length = bits & 0xffff;
        if length != !bits >> 16 {
            return Err(Corruption::StoredLength);
        }
        self.state = State::Stored { left: length as usize };
        Ok(None)
    }

    fn stored(
        &mut self,
        input: &mut Input<'_>,
        out: &mut OutputBuffer,
        limit: usize,
        left: usize,
    ) -> Option<BlockStop> {
        let room = left.min(limit - out.end);
        let copied = input.take_bytes(&mut out.bytes[out.end..out.end + room]);
        self.advance(out, copied);
        let left = left - copied;
        self.state = State::Stored { left };
        if left == 0 {
            self.end_of_block();
            None
        } else if copied == room {
            Some(BlockStop::Output)
        } else {
            Some(BlockStop::Input)
        }
    }

    fn counts(&mut self, input: &mut Input<'_>) -> Result<Option<BlockStop>, Corruption> {
        let Some(bits) = input.take(14) else { return Ok(Some(BlockStop::Input)) };
        let litlen = (bits & 31) as usize + 257;
        let distance = (bits >> 5 & 31) as usize + 1;
        if litlen > LITLEN_CODES_MAX || distance > DISTANCE_CODES_MAX {
            return Err(Corruption::TooManyCodes);
        }
        // The two counts wait in `lengths`' own state until the precode is read.
        self.lengths[0] = (litlen - 257) as u8;
        self.lengths[1] = distance as u8;
        self.state = State::Precode { lengths: [0; 19], count: (bits >> 10) as usize + 4, next: 0 };
        Ok(None)
    }

    fn precode_lengths(
        &mut self,
        input: &mut Input<'_>,
        mut lengths: [u8; 19],
        count: usize,
        mut next: usize,
    ) -> Result<Option<BlockStop>, Corruption> {
        while next < count {
            let Some(bits) = input.take(3) else {
                self.state = State::Precode { lengths, count, next };
                return Ok(Some(BlockStop::Input));
            };
            lengths[PRECODE_ORDER[next]] = bits as u8;
            next += 1;
        }
        self.precode = Some(Precode::build(&lengths)?);
        let (litlen, distance) = (usize::from(self.lengths[0]) + 257, usize::from(self.lengths[1]));
        self.state = State::Lengths { litlen, distance, next: 0 };
        Ok(None)
    }

    fn code_lengths(
        &mut self,
        input: &mut Input<'_>,
        litlen: usize,
        distance: usize,
        mut next: usize,
    ) -> Result<Option<BlockStop>, Corruption> {
        let Some(precode) = &self.precode else { return Err(Corruption::CodeLengths) };
        let total = litlen + distance;
        while next < total {
            // 14 bits at most: a code of 7 and 7 extra ones.
            if input.count < 14 {
                input.refill();
            }
            let (symbol, bits) = precode.lookup(input.held)?;
            let extra = match symbol {
                16 => 2,
                17 => 3,
                18 => 7,
                _ => 0,
            };
            if input.count < bits + extra {
                self.state = State::Lengths { litlen, distance, next };
                return Ok(Some(BlockStop::Input));
            }
            let more = (input.held >> bits) as usize & ((1 << extra) - 1);
            input.drop(bits + extra);
            let (length, times) = match symbol {
                16 => match next.checked_sub(1) {
                    Some(previous) => (self.lengths[previous], 3 + more),
                    None => return Err(Corruption::CodeLengths),
                },
                17 => (0, 3 + more),
                18 => (0, 11 + more),
                length => (length as u8, 1),
            };
            if times > total - next {
                return Err(Corruption::CodeLengths);
            }
            self.lengths[next..next + times].fill(length);
            next += times;
        }
        self.tables.build(&self.lengths[..litlen], &self.lengths[litlen..total])?;
        self.state = State::Codes;
        Ok(None)
    }

    /// Symbols until something ends: by the fast loop where there is room, one by one elsewhere.
    fn codes(
        &mut self,
        input: &mut Input<'_>,
        out: &mut OutputBuffer,
        limit: usize,
        spans: &mut Option<SpanRecorder>,
    ) -> Result<Option<BlockStop>, Corruption> {
        loop {
            if input.at + INPUT_MARGIN < input.bytes.len() && out.end + OUTPUT_MARGIN < limit {
                let stop = self.fast(input, out, limit, spans)?;
                if stop == FastStop::EndOfBlock {
                    self.end_of_block();
                    return Ok(None);
                }
                if input.at + INPUT_MARGIN < input.bytes.len() && out.end + OUTPUT_MARGIN < limit {
                    continue;
                }
            }
            if out.end == limit {
                return Ok(Some(BlockStop::Output));
            }
            match self.symbol(input, out)? {
                Symbol::Literal => {}
                Symbol::EndOfBlock => {
                    self.end_of_block();
                    return Ok(None);
                }
                Symbol::Match { distance, length } => {
                    self.state = State::Copy { distance, left: length };
                    return Ok(None);
                }
                Symbol::Incomplete => return Ok(Some(BlockStop::Input)),
            }
        }
    }

    fn fast(
        &mut self,
        input: &mut Input<'_>,
        out: &mut OutputBuffer,
        limit: usize,
        spans: &mut Option<SpanRecorder>,
    ) -> Result<FastStop, Corruption> {
        let begin = out.end;
        let mut pos = begin;
        let mut bounds = Bounds {
            output_stop: limit - OUTPUT_MARGIN,
            floor: begin - self.reach.min(begin as u64) as usize,
            span_start: 0,
        };
        let watched = spans.as_ref().map_or(0, |spans| spans.watch_until().saturating_sub(self.offset)) as usize;
        let bytes = &mut out.bytes[..limit];
        let stop = if let Some(spans) = spans.as_mut().filter(|_| watched > 0) {
            // The span began less than a window ago, so that its start is still in the buffer.
            bounds.span_start = begin - (self.offset - spans.span_start()) as usize;
            bounds.output_stop = bounds.output_stop.min(begin + watched);
            fast::decode::<true>(&self.tables, input, bytes, &mut pos, bounds, Some(spans))
        } else {
            fast::decode::<false>(&self.tables, input, bytes, &mut pos, bounds, None)
        };
        self.advance(out, pos - begin);
        stop
    }

    /// One symbol, or nothing of it.
    fn symbol(&mut self, input: &mut Input<'_>, out: &mut OutputBuffer) -> Result<Symbol, Corruption> {
        // 48 bits are the most that a length and a distance take.
        if input.count < 48 {
            input.refill();
        }
        let mut bits = input.held;
        let mut used = 0;
        let mut entry = self.tables.litlen[bits as usize & LITLEN_MASK];
        if entry & SUBTABLE != 0 {
            (bits, used) = (bits >> (entry & 63), entry & 63);
            let index = (entry >> 16) as usize + (bits & !(u64::MAX << (entry >> 8 & 15))) as usize;
            entry = self.tables.litlen[index & (LITLEN_ENTRIES - 1)];
        }
        used += entry & 63;
        if used > input.count {
            return Ok(Symbol::Incomplete);
        }
        if entry & LITERAL != 0 {
            out.bytes[out.end] = (entry >> 16) as u8;
            self.advance(out, 1);
            input.drop(used);
            return Ok(Symbol::Literal);
        }
        if entry & EXCEPTIONAL != 0 {
            if entry & END_OF_BLOCK == END_OF_BLOCK {
                input.drop(used);
                return Ok(Symbol::EndOfBlock);
            }
            return Err(Corruption::Code);
        }
        let length = with_extra(entry, bits);

        bits >>= entry & 63;
        entry = self.tables.distance[bits as usize & DISTANCE_MASK];
        if entry & SUBTABLE != 0 {
            bits >>= entry & 63;
            used += entry & 63;
            let index = (entry >> 16) as usize + (bits & !(u64::MAX << (entry >> 8 & 15))) as usize;
            entry = self.tables.distance[index & (DISTANCE_ENTRIES - 1)];
        }
        used += entry & 63;
        if used > input.count {
            return Ok(Symbol::Incomplete);
        }
        if entry & EXCEPTIONAL != 0 {
            return Err(Corruption::Code);
        }
        let distance = with_extra(entry, bits);
        if distance as u64 > self.reach {
            return Err(Corruption::DistanceTooFar);
        }
        input.drop(used);
        Ok(Symbol::Match { distance, length })
    }

    fn copy(
        &mut self,
        out: &mut OutputBuffer,
        limit: usize,
        distance: usize,
        left: usize,
        spans: &mut Option<SpanRecorder>,
    ) -> Option<BlockStop> {
        let begin = out.end;
        let n = left.min(limit - begin);
        for at in begin..begin + n {
            out.bytes[at] = out.bytes[at - distance];
        }
        if let Some(spans) = spans
            && self.offset < spans.watch_until()
            && let Some(before) = distance.checked_sub((self.offset - spans.span_start()) as usize)
        {
            spans.refer(before, &out.bytes[begin..begin + n]);
        }
        self.advance(out, n);
        if n < left {
            self.state = State::Copy { distance, left: left - n };
            return Some(BlockStop::Output);
        }
        self.state = State::Codes;
        None
    }

    fn advance(&mut self, out: &mut OutputBuffer, n: usize) {
        out.end += n;
        self.reach += n as u64;
        self.offset += n as u64;
    }
}

enum Symbol {
    Literal,
    EndOfBlock,
    Match { distance: usize, length: usize },
    Incomplete,
}

/// Base value and extra bits of a length or distance whose code begins `bits`.
fn with_extra(entry: u32, bits: u64) -> usize {
    (entry >> 16) as usize + ((bits & !(u64::MAX << (entry & 63))) >> (entry >> 8 & 15)) as usize
}
