//! Content digests: `sha256:…` and `sha512:…`, always validated, small enough to copy.
//!
//! Source: OCI image specification, descriptor.md. Invariant: a [`Digest`] in hand is well-formed, so its hexadecimal part may
//! be used as a file name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256, Sha512};

use crate::quote::Quote;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DigestError {
    #[error("digest \"{}\" has no algorithm; write it as sha256:<64 hexadecimal digits>", Quote(.0))]
    NoAlgorithm(String),
    #[error("digest algorithm \"{}\" is not supported; sha256 and sha512 are", Quote(.0))]
    UnknownAlgorithm(String),
    #[error("digest \"{}\" is malformed; {algorithm} takes {} lowercase hexadecimal digits", Quote(.text), .algorithm.bytes() * 2)]
    Malformed { text: String, algorithm: Algorithm },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    /// Length of the digest in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// A validated digest. Bytes beyond the algorithm's length are zero, so that the derived comparisons are right.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    value: [u8; 64],
}

impl Digest {
    /// The SHA-256 digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_sha256(Sha256::digest(bytes).into())
    }

    pub fn from_sha256(digest: [u8; 32]) -> Self {
        Self::from_parts(Algorithm::Sha256, &digest)
    }

    fn from_parts(algorithm: Algorithm, digest: &[u8]) -> Self {
        let mut value = [0; 64];
        for (to, from) in value.iter_mut().zip(digest) {
            *to = *from;
        }
        Self { algorithm, value }
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub fn as_bytes(&self) -> &[u8] {
        let (digest, _) = self.value.split_at(self.algorithm.bytes());
        digest
    }

    /// The hexadecimal part alone: lowercase, safe as a file name.
    pub fn hex(&self) -> String {
        use fmt::Write;
        let mut text = String::with_capacity(self.algorithm.bytes() * 2);
        for byte in self.as_bytes() {
            // Writing to a String cannot fail.
            write!(text, "{byte:02x}").ok();
        }
        text
    }

    /// A hasher of this digest's algorithm.
    pub fn hasher(&self) -> Hasher {
        Hasher::new(self.algorithm)
    }

    /// Whether `bytes` are what this digest stands for.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finish() == *self
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.algorithm, self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (name, hex) = text.split_once(':').ok_or_else(|| DigestError::NoAlgorithm(text.to_owned()))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(DigestError::UnknownAlgorithm(name.to_owned())),
        };
        let digest = decode_hex(hex).filter(|digest| digest.len() == algorithm.bytes());
        let digest = digest.ok_or_else(|| DigestError::Malformed { text: text.to_owned(), algorithm })?;
        Ok(Self::from_parts(algorithm, &digest))
    }
}

/// Lowercase only, as the specification says: two spellings of one digest would be two file names.
fn decode_hex(hex: &str) -> Option<Vec<u8>> {
    let nibble = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = hex.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some(nibble(*high)? << 4 | nibble(*low)?)).collect()
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Computes a digest over bytes that arrive in pieces.
#[derive(Clone, Debug)]
pub enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::from_parts(Algorithm::Sha256, &hasher.finalize()),
            Self::Sha512(hasher) => Digest::from_parts(Algorithm::Sha512, &hasher.finalize()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digests_of_known_bytes() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        let long = Hasher::new(Algorithm::Sha512).finish();
        assert_eq!(long.hex().len(), 128);
        assert_eq!(long.to_string().parse(), Ok(long));
        assert!(long.matches(b"") && !long.matches(b"x"));
    }

    #[test]
    fn bad_digests_say_what_is_wrong() {
        let check = |text: &str, expected: Expect| expected.assert_eq(&text.parse::<Digest>().unwrap_err().to_string());
        check("abc", expect![[r#"digest "abc" has no algorithm; write it as sha256:<64 hexadecimal digits>"#]]);
        check("md5:00", expect![[r#"digest algorithm "md5" is not supported; sha256 and sha512 are"#]]);
        check(
            "sha256:12",
            expect![[r#"digest "sha256:12" is malformed; sha256 takes 64 lowercase hexadecimal digits"#]],
        );
        assert!(EMPTY.to_uppercase().replace("SHA", "sha").parse::<Digest>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC{0,100}") {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }

        #[test]
        fn text_and_digest_are_one_to_one(bytes in any::<[u8; 32]>()) {
            let digest = Digest::from_sha256(bytes);
            prop_assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        }
    }
}
