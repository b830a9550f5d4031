//! The bit reader: up to 63 bits taken from the input, least significant first, and where the input stands.

/// One slice of the stream, and the bits that are taken but not yet used (these outlive the slice).
///
/// Invariant: bits of `held` at and above `count` are zero, and `count <= 63`.
#[derive(Debug)]
pub(crate) struct Input<'a> {
    pub(super) held: u64,
    pub(super) count: u32,
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
    /// Stream offset of `bytes[0]`.
    base: u64,
}

/// What is left over between two slices.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Carry {
    held: u64,
    count: u32,
    base: u64,
}

impl Carry {
    /// The state of a reader that enters a stream at its byte `base`.
    pub(crate) fn at(base: u64) -> Self {
        Self { held: 0, count: 0, base }
    }

    /// Compressed bytes taken so far.
    pub(crate) fn taken(self) -> u64 {
        self.base
    }
}

impl<'a> Input<'a> {
    pub(crate) fn resume(carry: Carry, bytes: &'a [u8]) -> Self {
        Self { held: carry.held, count: carry.count, bytes, at: 0, base: carry.base }
    }

    /// What to keep for the next slice, which must begin right after the bytes consumed of this one.
    pub(crate) fn carry(&self) -> Carry {
        Carry { held: self.held, count: self.count, base: self.base + self.at as u64 }
    }

    /// Bytes taken from this slice.
    pub(crate) fn consumed(&self) -> usize {
        self.at
    }

    /// Position of the next unused bit, in bits from the start of the stream.
    pub(crate) fn bit_position(&self) -> u64 {
        (self.base + self.at as u64) * 8 - u64::from(self.count)
    }

    /// Compressed offset of the next unused bit, for messages.
    pub(crate) fn offset(&self) -> u64 {
        self.bit_position() / 8
    }

    /// Takes as many whole bytes as fit.
    #[inline]
    pub(crate) fn refill(&mut self) {
        if let Some(word) = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<8>()) {
            let taken = (63 - self.count) >> 3;
            self.held |= u64::from_le_bytes(*word) << self.count;
            self.at += taken as usize;
            self.count += taken * 8;
            self.held &= !(u64::MAX << self.count);
            return;
        }
        while self.count < 56 {
            let Some(&byte) = self.bytes.get(self.at) else { return };
            self.held |= u64::from(byte) << self.count;
            self.count += 8;
            self.at += 1;
        }
    }

    /// Takes `n` bits (at most 32), or nothing when they are not there yet.
    #[inline]
    pub(crate) fn take(&mut self, n: u32) -> Option<u32> {
        if self.count < n {
            self.refill();
            if self.count < n {
                return None;
            }
        }
        let value = self.held & !(u64::MAX << n);
        self.drop(n);
        Some(value as u32)
    }

    /// Discards `n` bits that are known to be held.
    #[inline]
    pub(super) fn drop(&mut self, n: u32) {
        self.held >>= n;
        self.count -= n;
    }

    /// Discards everything that is held or left in this slice.
    pub(crate) fn discard(&mut self) {
        self.drop(self.count);
        self.at = self.bytes.len();
    }

    /// Discards the rest of a byte that was begun.
    pub(crate) fn align(&mut self) {
        self.drop(self.count & 7);
    }

    /// Moves bytes to `target`, first the held ones, and says how many. The reader must be aligned.
    pub(super) fn take_bytes(&mut self, target: &mut [u8]) -> usize {
        let mut done = 0;
        while self.count >= 8 && done < target.len() {
            target[done] = self.held as u8;
            self.drop(8);
            done += 1;
        }
        let rest = &self.bytes[self.at..];
        let direct = rest.len().min(target.len() - done);
        target[done..done + direct].copy_from_slice(&rest[..direct]);
        self.at += direct;
        done + direct
    }
}
