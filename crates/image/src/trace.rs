//! What a start reads of an image, in the order in which it first reads it, remembered over starts.
//!
//! A trace is kept for each image *and* command shape ([`shape_of`]): two programs out of one image read different things. Each
//! start is [merged](Trace::merge) into what is known. A page that a start touched comes first, in that start's order; a page
//! that it did not touch moves behind them and is forgotten after a few more starts without it. So the trace follows what the
//! program does now, and one odd start does not spoil it.
//!
//! ```text
//! byte 0  magic "SAMPANTR"
//!      8  version, u32: 1
//!     12  bytes unpacked, u32
//!     16  BLAKE3 of bytes 0..16 and the rest
//!     48  zstd of postcard of [`Trace`]
//! ```
//!
//! A trace from elsewhere is hostile: [`Trace::decode`] bounds it. What it says only orders downloads; nothing that is read
//! depends on it. This file has no clock and no files; [`TraceStore`] keeps traces on the disk.

mod store;
#[cfg(test)]
mod tests;

pub use store::{TraceError, TraceName, TraceStore};

use crate::lazy::source::{PageNumber, Touch};
use crate::limits::{SHAPE_BYTES_MAX, TRACE_BYTES_MAX, TRACE_LAYERS_MAX, TRACE_PAGES_MAX};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::io::Read;

const MAGIC: &[u8; 8] = b"SAMPANTR";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 48;
const ZSTD_LEVEL: i32 = 9;
/// What a page is worth after a start that touched it, and at most; it loses one with each start that does not.
const WORTH_FIRST: u8 = 2;
const WORTH_MAX: u8 = 6;

/// Why bytes are no trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the trace is not usable: {0}")]
pub struct TraceFault(pub &'static str);

/// A run of pages that are worth the same, in the order of first touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stretch {
    layer: u32,
    page: u32,
    pages: u32,
    worth: u8,
}

/// What starts of one command read of one image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// How many starts it was merged from.
    starts: u32,
    stretches: Vec<Stretch>,
}

impl Trace {
    /// Takes a start in: `touches` in the order of first touch. Pages that it names twice count once; beyond
    /// [`TRACE_PAGES_MAX`] pages, the last ones are left out.
    pub fn merge(&mut self, touches: &[Touch]) {
        let before: HashMap<PageNumber, u8> = self.worth().collect();
        let mut seen = HashSet::new();
        let mut pages: Vec<(PageNumber, u8)> = Vec::new();
        for page in touches.iter().flat_map(pages_of).filter(|page| page.layer < TRACE_LAYERS_MAX).take(TRACE_PAGES_MAX)
        {
            if seen.insert(page) {
                let worth = before.get(&page).map_or(WORTH_FIRST, |worth| (worth + WORTH_FIRST).min(WORTH_MAX));
                pages.push((page, worth));
            }
        }
        let left = self.worth().filter(|(page, worth)| *worth > 1 && !seen.contains(page));
        pages.extend(left.map(|(page, worth)| (page, worth - 1)));
        pages.truncate(TRACE_PAGES_MAX);
        self.starts = self.starts.saturating_add(1);
        self.stretches = stretches(&pages);
    }

    /// The pages in the order in which they are wanted.
    pub fn touches(&self) -> Vec<Touch> {
        let mut touches: Vec<Touch> = Vec::new();
        for stretch in &self.stretches {
            let first = PageNumber { layer: stretch.layer, page: stretch.page };
            match touches.last_mut() {
                Some(last) if follows(last, first) => last.pages += stretch.pages,
                _ => touches.push(Touch { first, pages: stretch.pages }),
            }
        }
        touches
    }

    pub fn starts(&self) -> u32 {
        self.starts
    }

    /// How many pages it names.
    pub fn pages(&self) -> u64 {
        self.stretches.iter().map(|stretch| u64::from(stretch.pages)).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.stretches.is_empty()
    }

    /// As it is stored and published.
    pub fn encode(&self) -> Result<Vec<u8>, TraceFault> {
        let plain = postcard::to_stdvec(self).map_err(|_postcard| TraceFault("it cannot be written"))?;
        let unpacked = u32::try_from(plain.len()).ok().filter(|bytes| *bytes as usize <= TRACE_BYTES_MAX);
        let unpacked = unpacked.ok_or(TraceFault("it is too large"))?;
        let stored = zstd::bulk::compress(&plain, ZSTD_LEVEL).map_err(|_zstd| TraceFault("it cannot be packed"))?;
        let mut file = MAGIC.to_vec();
        file.extend(VERSION.to_le_bytes());
        file.extend(unpacked.to_le_bytes());
        let hash = checksum(&file, &stored);
        file.extend(hash);
        file.extend(stored);
        Ok(file)
    }

    /// Reads what [`encode`](Self::encode) wrote, or what somebody else wants to be taken for it.
    pub fn decode(bytes: &[u8]) -> Result<Self, TraceFault> {
        let (header, stored) = bytes.split_at_checked(HEADER_BYTES).ok_or(TraceFault("it is cut short"))?;
        let (fields, hash) = header.split_at_checked(16).ok_or(TraceFault("it is cut short"))?;
        if !fields.starts_with(MAGIC) || fields.get(8..12) != Some(&VERSION.to_le_bytes()[..]) {
            return Err(TraceFault("it is none, or of another version"));
        }
        if hash != checksum(fields, stored) {
            return Err(TraceFault("it is damaged"));
        }
        let unpacked =
            fields.get(12..16).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes));
        if unpacked as usize > TRACE_BYTES_MAX {
            return Err(TraceFault("it is too large"));
        }
        let fault = |_error| TraceFault("it cannot be unpacked");
        let mut plain = Vec::new();
        let decoder = zstd::stream::read::Decoder::with_buffer(stored).map_err(fault)?;
        decoder.take(u64::from(unpacked) + 1).read_to_end(&mut plain).map_err(fault)?;
        if plain.len() != unpacked as usize {
            return Err(TraceFault("a length is wrong"));
        }
        let (trace, rest) =
            postcard::take_from_bytes::<Self>(&plain).map_err(|_error| TraceFault("it cannot be read"))?;
        if !rest.is_empty() {
            return Err(TraceFault("something follows it"));
        }
        trace.check()?;
        Ok(trace)
    }

    fn check(&self) -> Result<(), TraceFault> {
        let mut pages = 0u64;
        for stretch in &self.stretches {
            pages += u64::from(stretch.pages);
            let is_sound = stretch.pages > 0
                && stretch.page.checked_add(stretch.pages).is_some()
                && stretch.layer < TRACE_LAYERS_MAX
                && (1..=WORTH_MAX).contains(&stretch.worth);
            if !is_sound || pages > TRACE_PAGES_MAX as u64 {
                return Err(TraceFault("a run of pages is out of range"));
            }
        }
        let mut seen = HashSet::with_capacity(pages as usize);
        if !self.worth().all(|(page, _)| seen.insert(page)) {
            return Err(TraceFault("it names a page twice"));
        }
        Ok(())
    }

    fn worth(&self) -> impl Iterator<Item = (PageNumber, u8)> {
        self.stretches.iter().flat_map(|stretch| {
            let pages = stretch.page..stretch.page.saturating_add(stretch.pages);
            pages.map(|page| (PageNumber { layer: stretch.layer, page }, stretch.worth))
        })
    }
}

/// What two starts must have in common to be the same start: the program and its arguments, but not numbers in them (ports,
/// process ids, times), and no more than is worth telling apart.
pub fn shape_of(command: &[String]) -> String {
    let mut shape = String::new();
    for word in command {
        if !shape.is_empty() {
            shape.push(' ');
        }
        let mut in_number = false;
        for character in word.chars() {
            let is_digit = character.is_ascii_digit();
            if !is_digit || !in_number {
                shape.push(match character {
                    _ if is_digit => '0',
                    character if character.is_control() || character.is_whitespace() => '_',
                    character => character,
                });
            }
            in_number = is_digit;
        }
    }
    if shape.len() <= SHAPE_BYTES_MAX {
        return shape;
    }
    // The rest still tells two long commands apart.
    let rest = blake3::hash(shape.as_bytes()).to_hex();
    let mut end = SHAPE_BYTES_MAX - 1 - rest.len();
    while !shape.is_char_boundary(end) {
        end -= 1;
    }
    shape.truncate(end);
    format!("{shape}~{rest}")
}

fn pages_of(touch: &Touch) -> impl Iterator<Item = PageNumber> + use<> {
    let first = touch.first;
    (first.page..first.page.saturating_add(touch.pages)).map(move |page| PageNumber { page, ..first })
}

fn follows(touch: &Touch, page: PageNumber) -> bool {
    touch.first.layer == page.layer && touch.first.page.checked_add(touch.pages) == Some(page.page)
}

fn stretches(pages: &[(PageNumber, u8)]) -> Vec<Stretch> {
    let mut stretches: Vec<Stretch> = Vec::new();
    for (page, worth) in pages {
        match stretches.last_mut() {
            Some(last) if last.worth == *worth && last.layer == page.layer && last.page + last.pages == page.page => {
                last.pages += 1;
            }
            _ => stretches.push(Stretch { layer: page.layer, page: page.page, pages: 1, worth: *worth }),
        }
    }
    stretches
}

fn checksum(fields: &[u8], stored: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(fields).update(stored).finalize().as_bytes()
}
