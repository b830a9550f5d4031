//! Simple changes to bytes, the same ones for the same seed.
//!
//! No match for libFuzzer, which watches where inputs lead; enough to notice a parser that a change has made careless.

/// Bytes of an input at most, so that what grows by duplication stays cheap.
pub const INPUT_BYTES_MAX: usize = 64 << 10;

/// Values that lengths, counts and offsets do not expect.
const ODD_VALUES: [u64; 12] =
    [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 40, u64::MAX / 2, u64::MAX];

/// Words that mean something in one text format or another.
const WORDS: [&[u8]; 12] =
    [b"null", b"-1", b"18446744073709551616", b"1e999", b"\"\"", b"{}", b"[", b"..", b"/", b"\0", b"\xff\xfe", b"\r\n"];

/// Chance from a seed (xorshift64*).
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// Chance that begins with this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`; 0 when `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        let wide = u128::from(self.next()) * end as u128;
        usize::try_from(wide >> 64).unwrap_or_default()
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        of.get(self.below(of.len()))
    }
}

/// One of the inputs with a few changes.
#[must_use]
pub fn mutate(chance: &mut Chance, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = chance.pick(corpus).cloned().unwrap_or_default();
    for _ in 0..=chance.below(4) {
        change(chance, &mut bytes, corpus);
    }
    bytes.truncate(INPUT_BYTES_MAX);
    bytes
}

fn change(chance: &mut Chance, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let at = chance.below(bytes.len());
    match chance.below(9) {
        0 => {
            let bit = chance.below(8);
            bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << bit);
        }
        1 => {
            let value = u8::try_from(chance.below(256)).unwrap_or_default();
            bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = value);
        }
        2 => {
            let value = chance.pick(&ODD_VALUES).copied().unwrap_or_default();
            let width = 1 << chance.below(4);
            let mut value = value.to_le_bytes();
            if chance.below(2) == 0 {
                value.get_mut(..width).unwrap_or_default().reverse();
            }
            bytes.iter_mut().skip(at).zip(value).take(width).for_each(|(byte, value)| *byte = value);
        }
        3 => bytes.truncate(at),
        4 => drop(bytes.drain(at..some_end(chance, bytes, at))),
        5 => {
            let piece = bytes.get(at..some_end(chance, bytes, at)).unwrap_or_default().to_vec();
            let to = chance.below(bytes.len() + 1);
            bytes.splice(to..to, piece);
        }
        6 => {
            let other = chance.pick(corpus).cloned().unwrap_or_default();
            let from = chance.below(other.len());
            let piece = other.get(from..some_end(chance, &other, from)).unwrap_or_default().to_vec();
            bytes.splice(at..at, piece);
        }
        7 => {
            let word = chance.pick(&WORDS).copied().unwrap_or_default();
            bytes.splice(at..at, word.iter().copied());
        }
        _ => {
            // A number written in digits becomes another.
            let start = bytes.iter().skip(at).position(u8::is_ascii_digit).map_or(at, |offset| at + offset);
            let digits = bytes.iter().skip(start).take_while(|byte| byte.is_ascii_digit()).count();
            let value = chance.pick(&ODD_VALUES).copied().unwrap_or_default().to_string();
            bytes.splice(start..start + digits, value.into_bytes());
        }
    }
}

fn some_end(chance: &mut Chance, bytes: &[u8], from: usize) -> usize {
    let most = if chance.below(4) == 0 { bytes.len() } else { 16 };
    bytes.len().min(from + 1 + chance.below(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_inputs() {
        let corpus = [b"hello 12 world".to_vec(), Vec::new(), vec![0; 600]];
        let run = |seed| {
            let mut chance = Chance::new(seed);
            (0..2000).map(|_| mutate(&mut chance, &corpus)).collect::<Vec<_>>()
        };
        let inputs = run(7);
        assert_eq!(inputs, run(7));
        assert_ne!(inputs, run(9));
        assert!(inputs.iter().all(|input| input.len() <= INPUT_BYTES_MAX));
        let distinct: std::collections::HashSet<_> = inputs.iter().collect();
        assert!(distinct.len() > 1000, "{} of 2000 inputs differ", distinct.len());
    }
}
