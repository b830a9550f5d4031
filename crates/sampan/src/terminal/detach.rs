//! The keys that leave an instance running: ctrl-p ctrl-q, as in docker, or what `--detach-keys` says.
//!
//! Bytes that begin the sequence are held back until the next byte shows whether it is one; whatever turns out not to
//! be is passed on unchanged.

/// A sequence of keys, and how much of it was just typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetachKeys {
    sequence: Vec<u8>,
    matched: usize,
}

/// What typed bytes mean.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// They are for the instance.
    Bytes(Vec<u8>),
    /// These are, and then the user left.
    Detach(Vec<u8>),
}

impl Default for DetachKeys {
    fn default() -> Self {
        Self { sequence: vec![0x10, 0x11], matched: 0 }
    }
}

impl std::str::FromStr for DetachKeys {
    type Err = String;

    /// Reads `ctrl-p,ctrl-q`, `ctrl-x,d` and the like; an empty text switches detaching off.
    fn from_str(text: &str) -> Result<Self, String> {
        let keys = text.split(',').filter(|_| !text.is_empty());
        let sequence = keys.map(key).collect::<Option<Vec<u8>>>();
        sequence
            .map(|sequence| Self { sequence, matched: 0 })
            .ok_or_else(|| "write keys like ctrl-p,ctrl-q or ctrl-x,d".to_owned())
    }
}

fn key(text: &str) -> Option<u8> {
    let single = |text: &str| match text.as_bytes() {
        [byte] if byte.is_ascii_graphic() => Some(*byte),
        _ => None,
    };
    match text.strip_prefix("ctrl-") {
        None => single(text),
        Some(letter) => match single(letter)?.to_ascii_uppercase() {
            letter @ b'@'..=b'_' => Some(letter & 0x1f),
            _ => None,
        },
    }
}

impl DetachKeys {
    /// Takes the next typed bytes.
    pub(crate) fn filter(&mut self, typed: &[u8]) -> Typed {
        let mut passed = Vec::with_capacity(typed.len() + self.matched);
        for &byte in typed {
            if self.sequence.get(self.matched) == Some(&byte) {
                self.matched += 1;
                if self.matched == self.sequence.len() {
                    self.matched = 0;
                    return Typed::Detach(passed);
                }
                continue;
            }
            passed.extend_from_slice(self.sequence.get(..self.matched).unwrap_or_default());
            self.matched = usize::from(self.sequence.first() == Some(&byte) && self.sequence.len() > 1);
            if self.matched == 0 {
                passed.push(byte);
            }
        }
        Typed::Bytes(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_sequence_detaches_and_nothing_is_lost() {
        let mut keys = DetachKeys::default();
        assert_eq!(keys.filter(b"ls\x10"), Typed::Bytes(b"ls".to_vec()));
        assert_eq!(keys.filter(b"x"), Typed::Bytes(b"\x10x".to_vec()));
        assert_eq!(keys.filter(b"\x10\x10"), Typed::Bytes(b"\x10".to_vec()));
        assert_eq!(keys.filter(b"\x11rest"), Typed::Detach(Vec::new()));
        assert_eq!(keys.filter(b"a\x10\x11"), Typed::Detach(b"a".to_vec()));
    }

    #[test]
    fn keys_are_read_as_docker_writes_them() {
        assert_eq!("ctrl-p,ctrl-q".parse(), Ok(DetachKeys::default()));
        assert_eq!("ctrl-\\,d".parse(), Ok(DetachKeys { sequence: vec![0x1c, b'd'], matched: 0 }));
        assert!("ctrl-".parse::<DetachKeys>().is_err() && "ctrl-p,,".parse::<DetachKeys>().is_err());
        assert_eq!("".parse::<DetachKeys>().unwrap().filter(b"\x10\x11"), Typed::Bytes(b"\x10\x11".to_vec()));
    }
}
