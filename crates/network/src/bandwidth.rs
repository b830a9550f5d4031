//! How fast a sandbox may receive and send, as Kubernetes' annotations say it.

use std::fmt;
use std::num::NonZeroU64;

use sampan_kit::quantity::Quantity;
use serde::{Deserialize, Serialize};

use crate::limits::{BITS_PER_SECOND_MAX, BITS_PER_SECOND_MIN};

/// What a pod receives.
pub const INGRESS_ANNOTATION: &str = "kubernetes.io/ingress-bandwidth";
/// What a pod sends.
pub const EGRESS_ANNOTATION: &str = "kubernetes.io/egress-bandwidth";

/// Bits of a second, IP headers counted, link-layer headers not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate(NonZeroU64);

impl Rate {
    /// A rate within [`crate::limits`]; `None` outside.
    pub fn from_bits_per_second(bits: u64) -> Option<Self> {
        (BITS_PER_SECOND_MIN..=BITS_PER_SECOND_MAX).contains(&bits).then_some(())?;
        NonZeroU64::new(bits).map(Self)
    }

    pub fn bits_per_second(self) -> u64 {
        self.0.get()
    }

    pub(crate) fn bytes_per_second(self) -> u64 {
        self.0.get() / 8
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bit/s", self.0)
    }
}

/// An annotation that is no bandwidth.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no bandwidth; write bits a second from 1k to 1P in {annotation}, such as 10M")]
pub struct InvalidBandwidth {
    pub annotation: &'static str,
    /// Its value, cut short.
    pub text: String,
}

/// The limits of one sandbox; without one it is as fast as the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Of what it receives.
    pub ingress: Option<Rate>,
    /// Of what it sends.
    pub egress: Option<Rate>,
}

impl Bandwidth {
    /// Reads a pod's annotations.
    pub fn from_annotations<'a>(annotation: impl Fn(&str) -> Option<&'a str>) -> Result<Self, InvalidBandwidth> {
        let rate = |name: &'static str| annotation(name).map(|text| parse(name, text)).transpose();
        Ok(Self { ingress: rate(INGRESS_ANNOTATION)?, egress: rate(EGRESS_ANNOTATION)? })
    }

    pub fn is_unlimited(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }
}

fn parse(annotation: &'static str, text: &str) -> Result<Rate, InvalidBandwidth> {
    let refused = || InvalidBandwidth { annotation, text: text.chars().take(64).collect() };
    let bits = u64::try_from(Quantity::parse(text).map_err(|_no_quantity| refused())?.units());
    bits.ok().and_then(Rate::from_bits_per_second).ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Bandwidth, InvalidBandwidth> {
        Bandwidth::from_annotations(|name| (name == EGRESS_ANNOTATION).then_some(text))
    }

    #[test]
    fn quantities_are_bits_a_second() {
        for (text, bits) in [("1k", 1_000), ("10M", 10_000_000), ("8Mi", 8 << 20), ("1P", 1_000_000_000_000_000)] {
            let limits = read(text).unwrap();
            assert_eq!(limits.egress.map(Rate::bits_per_second), Some(bits), "{text}");
            assert_eq!(limits.ingress, None);
        }
        assert!(Bandwidth::from_annotations(|_name| None).unwrap().is_unlimited());
    }

    #[test]
    fn nonsense_is_refused_by_the_annotations_name() {
        for text in ["", "0", "-1M", "999", "2P", "fast", "10Mbit", "1e99", "NaN"] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(EGRESS_ANNOTATION) && error.contains("10M"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            if let Ok(limits) = read(&text) {
                prop_assert!(limits.egress.is_some_and(|rate| rate.bytes_per_second() > 0));
            }
        }
    }
}
