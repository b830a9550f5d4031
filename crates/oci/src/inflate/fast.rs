//! The inner loop: whole symbols, no question asked about the ends of input and output.
//!
//! One turn decodes up to three literals and one match. It may read 32 bytes past where it starts in the input and write
//! [`OUTPUT_MARGIN`] bytes in the output, hence the margins; both are checked once a turn. Indexing stays checked (this
//! is safe Rust), but where it matters an array's size or a mask lets the compiler drop the check.
//!
//! Bits: `bits` holds at least `count & 63` valid ones. Only the low six bits of `count` mean anything, so that a table
//! entry can be subtracted from it whole. After a refill at least 56 are valid; a turn uses at most 22 for two literals,
//! 20 for a length, and refills before the distance's 28 if it must.

use super::span::SpanRecorder;
use super::tables::{
    DISTANCE_ENTRIES, DISTANCE_MASK, END_OF_BLOCK, EXCEPTIONAL, LITERAL, LITLEN_ENTRIES, LITLEN_MASK, SUBTABLE, Tables,
};
use super::{Corruption, Input};

/// Input bytes that must be left for one turn.
pub(super) const INPUT_MARGIN: usize = 32;
/// Output bytes that must be left for one turn: three literals, a match of 258 bytes, and what its last wide step writes
/// too much.
pub(super) const OUTPUT_MARGIN: usize = 3 + 258 + 32;

/// Most bits that a distance takes, extra bits included.
const DISTANCE_BITS_MAX: u32 = 28;

/// Where the loop may go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// First output position at which no turn may begin.
    pub(super) output_stop: usize,
    /// Lowest output position that a match may reach.
    pub(super) floor: usize,
    /// Output position at which the current span begins (only looked at when watching).
    pub(super) span_start: usize,
}

/// Why the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FastStop {
    /// Too near to the end of input or output, or to `output_stop`.
    Margin,
    /// The end-of-block symbol was decoded.
    EndOfBlock,
}

/// Decodes from `input` into `out` at `*pos`. With `WATCH`, matches that reach before the span are reported to `spans`.
pub(super) fn decode<const WATCH: bool>(
    tables: &Tables,
    input: &mut Input<'_>,
    out: &mut [u8],
    pos: &mut usize,
    bounds: Bounds,
    mut spans: Option<&mut SpanRecorder>,
) -> Result<FastStop, Corruption> {
    let mut turn = Turn { bits: input.held, count: input.count, at: input.at, pos: *pos };
    let stop = run::<WATCH>(tables, input.bytes, out, &mut turn, bounds, &mut spans);
    *pos = turn.pos;
    input.at = turn.at;
    input.count = turn.count & 63;
    input.held = turn.bits & !(u64::MAX << input.count);
    stop
}

struct Turn {
    bits: u64,
    count: u32,
    at: usize,
    pos: usize,
}

#[inline(always)]
fn run<const WATCH: bool>(
    tables: &Tables,
    input: &[u8],
    out: &mut [u8],
    turn: &mut Turn,
    bounds: Bounds,
    spans: &mut Option<&mut SpanRecorder>,
) -> Result<FastStop, Corruption> {
    let Turn { mut bits, mut count, mut at, mut pos } = *turn;
    let litlen: &[u32; LITLEN_ENTRIES] = &tables.litlen;
    let distances: &[u32; DISTANCE_ENTRIES] = &tables.distance;
    let input_stop = input.len().saturating_sub(INPUT_MARGIN);
    let output_stop = bounds.output_stop.min(out.len().saturating_sub(OUTPUT_MARGIN));
    if at >= input_stop || pos >= output_stop {
        return Ok(FastStop::Margin);
    }

    macro_rules! refill {
        () => {
            bits |= word(input, at).wrapping_shl(count);
            at += (7 ^ ((count >> 3) & 7)) as usize;
            count |= 56;
        };
    }
    macro_rules! consume {
        ($entry:expr) => {
            bits = bits.wrapping_shr($entry);
            count = count.wrapping_sub($entry);
        };
    }

    refill!();
    let mut entry = litlen[bits as usize & LITLEN_MASK];
    let stop = loop {
        if at >= input_stop || pos >= output_stop {
            break Ok(FastStop::Margin);
        }
        let mut saved = bits;
        consume!(entry);
        if entry & LITERAL != 0 {
            out[pos] = (entry >> 16) as u8;
            pos += 1;
            entry = litlen[bits as usize & LITLEN_MASK];
            saved = bits;
            consume!(entry);
            if entry & LITERAL != 0 {
                out[pos] = (entry >> 16) as u8;
                pos += 1;
                entry = litlen[bits as usize & LITLEN_MASK];
                saved = bits;
                consume!(entry);
                if entry & LITERAL != 0 {
                    out[pos] = (entry >> 16) as u8;
                    pos += 1;
                    entry = litlen[bits as usize & LITLEN_MASK];
                    refill!();
                    continue;
                }
            }
        }
        if entry & EXCEPTIONAL != 0 {
            if entry & SUBTABLE != 0 {
                entry = litlen[subtable_index(entry, bits) & (LITLEN_ENTRIES - 1)];
                saved = bits;
                consume!(entry);
                if entry & LITERAL != 0 {
                    out[pos] = (entry >> 16) as u8;
                    pos += 1;
                    refill!();
                    entry = litlen[bits as usize & LITLEN_MASK];
                    continue;
                }
            }
            if entry & EXCEPTIONAL != 0 {
                break if entry & END_OF_BLOCK == END_OF_BLOCK {
                    Ok(FastStop::EndOfBlock)
                } else {
                    Err(Corruption::Code)
                };
            }
        }
        let length = value(entry, saved);

        entry = distances[bits as usize & DISTANCE_MASK];
        if count & 63 < DISTANCE_BITS_MAX {
            refill!();
        }
        saved = bits;
        consume!(entry);
        if entry & EXCEPTIONAL != 0 {
            entry = distances[subtable_index(entry, bits) & (DISTANCE_ENTRIES - 1)];
            saved = bits;
            consume!(entry);
            if entry & EXCEPTIONAL != 0 {
                break Err(Corruption::Code);
            }
        }
        let distance = value(entry, saved);
        if distance > pos - bounds.floor {
            break Err(Corruption::DistanceTooFar);
        }

        // The next symbol's lookup does not wait for the copy.
        refill!();
        entry = litlen[bits as usize & LITLEN_MASK];
        copy_match(out, pos, distance, length);
        if WATCH
            && let Some(before) = distance.checked_sub(pos - bounds.span_start)
            && let Some(spans) = spans
        {
            spans.refer(before, &out[pos..pos + length]);
        }
        pos += length;
    };
    *turn = Turn { bits, count, at, pos };
    stop
}

#[inline(always)]
fn word(input: &[u8], at: usize) -> u64 {
    // The margin makes the fallback unreachable; it costs less than a panic's landing.
    input.get(at..).and_then(|rest| rest.first_chunk::<8>()).map_or(0, |word| u64::from_le_bytes(*word))
}

#[inline(always)]
fn subtable_index(entry: u32, bits: u64) -> usize {
    (entry >> 16) as usize + (bits & !(u64::MAX << ((entry >> 8) & 15))) as usize
}

/// Base value and extra bits of a length or distance whose code starts at `saved`.
#[inline(always)]
fn value(entry: u32, saved: u64) -> usize {
    let extra = (saved & !(u64::MAX.wrapping_shl(entry))).wrapping_shr(entry >> 8);
    (entry >> 16) as usize + extra as usize
}

/// Copies `length` bytes from `distance` back to `pos`, in steps that may write up to 31 bytes too many.
#[inline(always)]
fn copy_match(out: &mut [u8], pos: usize, distance: usize, length: usize) {
    let from = pos - distance;
    if distance >= 16 {
        copy_16(out, from, pos);
        copy_16(out, from + 16, pos + 16);
        let mut done = 32;
        while done < length {
            copy_16(out, from + done, pos + done);
            copy_16(out, from + done + 16, pos + done + 16);
            done += 32;
        }
    } else if distance == 1 {
        let byte = out[from];
        out[pos..pos + length].fill(byte);
    } else {
        copy_pattern(out, pos, distance, length);
    }
}

#[inline(always)]
fn copy_16(out: &mut [u8], from: usize, to: usize) {
    out.copy_within(from..from + 16, to);
}

/// Bytes of an 8-byte pattern that can be used before it must start over, by distance.
const PATTERN_STRIDE: [usize; 8] = [8, 8, 8, 6, 8, 5, 6, 7];

/// A match that overlaps itself closely: its first 8 bytes are made as a word, which repeats every `stride` bytes.
#[inline]
fn copy_pattern(out: &mut [u8], pos: usize, distance: usize, length: usize) {
    let from = pos - distance;
    if distance >= 8 {
        let mut done = 0;
        while done < length {
            out.copy_within(from + done..from + done + 8, pos + done);
            done += 8;
        }
        return;
    }
    let mut pattern = word(out, from) & !(u64::MAX << (8 * distance));
    let mut filled = distance;
    while filled < 8 {
        pattern |= pattern << (8 * filled);
        filled *= 2;
    }
    let stride = PATTERN_STRIDE[distance & 7];
    let pattern = pattern.to_le_bytes();
    let mut done = 0;
    while done < length {
        out[pos + done..pos + done + 8].copy_from_slice(&pattern);
        done += stride;
    }
}
