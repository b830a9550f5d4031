//! Lookup tables for prefix codes.
//!
//! A table is indexed by the next bits of the stream. Codes longer than the main table's index continue in a subtable.
//! An entry says all that decoding its symbol needs:
//!
//! | bits | literal | length or distance | subtable | end of block | no code |
//! |---|---|---|---|---|---|
//! | 0–5 | bits to consume | bits to consume, extra bits included | bits of the main index | bits to consume | 1 |
//! | 7 | 1 | 0 | 0 | 0 | 0 |
//! | 8–11 | – | bits of the code alone | bits of the subtable's index | – | – |
//! | 12–13 | 0 | 0 | 0 | 0 | 0 |
//! | 14 | 0 | 0 | 1 | 1 | 1 |
//! | 15 | – | – | 1 | 0 | 0 |
//! | 16–31 | the byte | base value | where it starts | 1 | 0 |
//!
//! The rules on which codes are acceptable are zlib's: complete ones, one single code of one bit, and for distances none
//! at all.

use super::Corruption;

pub(super) const LITERAL: u32 = 1 << 7;
pub(super) const EXCEPTIONAL: u32 = 1 << 14;
pub(super) const SUBTABLE: u32 = 1 << 15;
pub(super) const END_OF_BLOCK: u32 = EXCEPTIONAL | 1 << 16;
const NO_CODE: u32 = EXCEPTIONAL | 1;

pub(super) const LITLEN_BITS: u32 = 11;
pub(super) const LITLEN_MASK: usize = (1 << LITLEN_BITS) - 1;
/// 2,342 entries are the most that 288 symbols of up to 15 bits need with an 11-bit main table; the next power of two
/// lets a mask stand for the bounds check.
pub(super) const LITLEN_ENTRIES: usize = 4096;

pub(super) const DISTANCE_BITS: u32 = 8;
pub(super) const DISTANCE_MASK: usize = (1 << DISTANCE_BITS) - 1;
/// 402 entries are the most that 32 symbols of up to 15 bits need with an 8-bit main table.
pub(super) const DISTANCE_ENTRIES: usize = 512;

const PRECODE_BITS: u32 = 7;
const CODE_BITS_MAX: usize = 15;
pub(super) const LITLEN_SYMBOLS: usize = 288;
pub(super) const DISTANCE_SYMBOLS: usize = 32;

/// The tables of one block.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) litlen: Box<[u32; LITLEN_ENTRIES]>,
    pub(super) distance: Box<[u32; DISTANCE_ENTRIES]>,
    /// Whether the tables now are those of the fixed code, which need not be built again.
    fixed: bool,
}

impl Tables {
    pub(super) fn new() -> Self {
        Self {
            litlen: Box::new([NO_CODE; LITLEN_ENTRIES]),
            distance: Box::new([NO_CODE; DISTANCE_ENTRIES]),
            fixed: false,
        }
    }

    /// Builds the tables of a dynamic block.
    pub(super) fn build(&mut self, litlen: &[u8], distance: &[u8]) -> Result<(), Corruption> {
        self.fixed = false;
        if litlen.get(256).is_none_or(|&bits| bits == 0) {
            return Err(Corruption::CodeLengths);
        }
        fill(&mut self.litlen[..], LITLEN_BITS, litlen, &LITLEN_RESULTS)?;
        fill(&mut self.distance[..], DISTANCE_BITS, distance, &DISTANCE_RESULTS)
    }

    /// Builds the tables of the fixed code (RFC 1951, 3.2.6).
    pub(super) fn build_fixed(&mut self) -> Result<(), Corruption> {
        if !self.fixed {
            let mut lengths = [8; LITLEN_SYMBOLS];
            lengths[144..256].fill(9);
            lengths[256..280].fill(7);
            self.build(&lengths, &[5; DISTANCE_SYMBOLS])?;
            self.fixed = true;
        }
        Ok(())
    }
}

/// The code of the code lengths: entry = symbol << 8 | bits to consume.
#[derive(Debug, Clone)]
pub(super) struct Precode([u32; 1 << PRECODE_BITS]);

impl Precode {
    pub(super) fn build(lengths: &[u8; 19]) -> Result<Self, Corruption> {
        let mut table = [NO_CODE; 1 << PRECODE_BITS];
        fill(&mut table, PRECODE_BITS, lengths, &PRECODE_RESULTS)?;
        Ok(Self(table))
    }

    /// The symbol that the next bits begin with, and its length in bits.
    #[inline]
    pub(super) fn lookup(&self, bits: u64) -> Result<(u32, u32), Corruption> {
        let entry = self.0[bits as usize & ((1 << PRECODE_BITS) - 1)];
        if entry & EXCEPTIONAL != 0 { Err(Corruption::CodeLengths) } else { Ok((entry >> 16, entry & 63)) }
    }
}

/// Fills `table` for the code that `lengths` describes; `results[symbol]` is that symbol's entry without the bits of
/// its code.
fn fill(table: &mut [u32], main_bits: u32, lengths: &[u8], results: &[u32]) -> Result<(), Corruption> {
    let mut counts = [0_u16; CODE_BITS_MAX + 1];
    for &bits in lengths {
        counts[usize::from(bits & 15)] += 1;
    }
    let longest = (1..=CODE_BITS_MAX).rev().find(|&bits| counts[bits] != 0).unwrap_or(0);
    let mut free = 1_i32;
    for &count in &counts[1..] {
        free = free * 2 - i32::from(count);
        if free < 0 {
            return Err(Corruption::CodeLengths);
        }
    }
    if free > 0 {
        return fill_incomplete(table, main_bits, lengths, results, longest);
    }

    // Symbols ordered by length, then value: the order of canonical codes.
    let mut next = [0_u16; CODE_BITS_MAX + 1];
    for bits in 1..CODE_BITS_MAX {
        next[bits + 1] = next[bits] + counts[bits];
    }
    let mut sorted = [0_u16; LITLEN_SYMBOLS];
    for (symbol, &bits) in lengths.iter().enumerate() {
        if bits != 0 {
            let slot = &mut next[usize::from(bits & 15)];
            sorted[usize::from(*slot) % LITLEN_SYMBOLS] = symbol as u16;
            *slot += 1;
        }
    }

    // The main table grows by doubling: entries for codes of up to n bits, repeated, are right for n + 1 bits except
    // where the longer codes go. `code` is bit-reversed, as the stream has it.
    let mut symbols = sorted.iter().copied();
    let mut code = 0_usize;
    for bits in 1..=main_bits {
        let half = 1 << (bits - 1);
        table.copy_within(..half, half);
        for symbol in symbols.by_ref().take(usize::from(counts[bits as usize])) {
            table[code] = with_code(results[usize::from(symbol)], bits);
            code = next_code(code, bits);
        }
    }
    if longest > main_bits as usize {
        fill_subtables(table, main_bits, &counts, symbols, code, results);
    }
    Ok(())
}

/// Fills the subtables for the codes longer than `main_bits`, of which `code` is the first.
fn fill_subtables(
    table: &mut [u32],
    main_bits: u32,
    counts: &[u16; CODE_BITS_MAX + 1],
    mut symbols: impl Iterator<Item = u16>,
    mut code: usize,
    results: &[u32],
) {
    let main_mask = (1_usize << main_bits) - 1;
    let mut prefix = usize::MAX;
    let (mut start, mut size) = (1_usize << main_bits, 0);
    for bits in main_bits + 1..=CODE_BITS_MAX as u32 {
        let count = usize::from(counts[bits as usize]);
        for (nth, symbol) in symbols.by_ref().take(count).enumerate() {
            if code & main_mask != prefix {
                prefix = code & main_mask;
                start += size;
                let index_bits = subtable_bits(counts, main_bits, bits, count - nth);
                size = 1 << index_bits;
                table[prefix] = (start as u32) << 16 | SUBTABLE | EXCEPTIONAL | index_bits << 8 | main_bits;
            }
            let entry = with_code(results[usize::from(symbol)], bits - main_bits);
            let step = 1 << (bits - main_bits);
            for slot in table[start..start + size].iter_mut().skip(code >> main_bits).step_by(step) {
                *slot = entry;
            }
            code = next_code(code, bits);
        }
    }
}

/// How many bits a subtable needs whose first code has `bits` bits, `left` codes of that length being left.
fn subtable_bits(counts: &[u16; CODE_BITS_MAX + 1], main_bits: u32, bits: u32, left: usize) -> u32 {
    let mut index_bits = bits - main_bits;
    let mut used = left;
    while used < 1 << index_bits && main_bits + index_bits < CODE_BITS_MAX as u32 {
        index_bits += 1;
        used = used * 2 + usize::from(counts[(main_bits + index_bits) as usize]);
    }
    index_bits
}

/// A code that leaves bit patterns unused: only one single code of one bit, or none, is acceptable.
fn fill_incomplete(
    table: &mut [u32],
    main_bits: u32,
    lengths: &[u8],
    results: &[u32],
    longest: usize,
) -> Result<(), Corruption> {
    if longest > 1 || main_bits == PRECODE_BITS {
        return Err(Corruption::CodeLengths);
    }
    let entries = &mut table[..1 << main_bits];
    entries.fill(NO_CODE);
    if let Some(symbol) = lengths.iter().position(|&bits| bits == 1) {
        for slot in entries.iter_mut().step_by(2) {
            *slot = with_code(results[symbol], 1);
        }
    }
    Ok(())
}

/// Adds the length of its code to a symbol's entry: to the bits to consume, and to where its extra bits begin.
fn with_code(result: u32, bits: u32) -> u32 {
    if result & (LITERAL | EXCEPTIONAL) != 0 { result + bits } else { result + (bits << 8 | bits) }
}

/// The code after `code` in canonical order, both bit-reversed; the last one is followed by itself.
fn next_code(code: usize, bits: u32) -> usize {
    let zeros = code ^ ((1 << bits) - 1);
    if zeros == 0 {
        return code;
    }
    let highest = 1 << zeros.ilog2();
    code & (highest - 1) | highest
}

const LITLEN_RESULTS: [u32; LITLEN_SYMBOLS] = {
    // RFC 1951, 3.2.5.
    const BASE: [u16; 29] = [
        3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227,
        258,
    ];
    const EXTRA: [u8; 29] = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0];
    let mut results = [EXCEPTIONAL; LITLEN_SYMBOLS];
    let mut symbol = 0;
    while symbol < 256 {
        results[symbol] = (symbol as u32) << 16 | LITERAL;
        symbol += 1;
    }
    results[256] = END_OF_BLOCK;
    let mut n = 0;
    while n < 29 {
        results[257 + n] = (BASE[n] as u32) << 16 | EXTRA[n] as u32;
        n += 1;
    }
    results
};

const DISTANCE_RESULTS: [u32; DISTANCE_SYMBOLS] = {
    let mut results = [EXCEPTIONAL; DISTANCE_SYMBOLS];
    let mut base = 1;
    let mut symbol = 0;
    while symbol < 30 {
        let extra = if symbol < 4 { 0 } else { symbol as u32 / 2 - 1 };
        results[symbol] = base << 16 | extra;
        base += 1 << extra;
        symbol += 1;
    }
    results
};

const PRECODE_RESULTS: [u32; 19] = {
    let mut results = [0; 19];
    let mut symbol = 0;
    while symbol < 19 {
        results[symbol] = (symbol as u32) << 16;
        symbol += 1;
    }
    results
};
