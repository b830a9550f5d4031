//! Address ranges in prefix notation, IPv4 and IPv6 alike.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An address range such as `10.187.0.0/16`; the bits behind the prefix are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

/// A text that is no address range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an address range such as 10.187.0.0/16 or fd00:1234::/64")]
pub struct InvalidPrefix {
    text: String,
}

impl Prefix {
    /// The range of `length` bits around `address`; a length beyond the family's width is cut to it.
    pub fn around(address: IpAddr, length: u8) -> Self {
        let width = width(address);
        let length = length.min(width);
        let mask = host_mask(width, length);
        Self { address: from_bits(bits(address) & !mask, address), length }
    }

    pub fn address(&self) -> IpAddr {
        self.address
    }

    pub fn length(&self) -> u8 {
        self.length
    }

    pub fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_ipv4() && Self::around(address, self.length).address == self.address
    }

    /// Two ranges overlap exactly when one contains the other's first address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    /// The address at this offset, `None` behind the range's end.
    pub fn nth(&self, offset: u32) -> Option<IpAddr> {
        let last = host_mask(width(self.address), self.length);
        (u128::from(offset) <= last).then(|| from_bits(bits(self.address) | u128::from(offset), self.address))
    }

    /// Where in the range this address stands, if it does and the offset fits.
    pub fn offset_of(&self, address: IpAddr) -> Option<u32> {
        self.contains(address).then(|| bits(address) & host_mask(width(address), self.length))?.try_into().ok()
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Ones where the host part of an address stands.
fn host_mask(width: u8, length: u8) -> u128 {
    match width - length {
        128 => u128::MAX,
        host_bits => (1 << host_bits) - 1,
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn from_bits(bits: u128, family: IpAddr) -> IpAddr {
    match family {
        IpAddr::V4(_) => Ipv4Addr::from_bits(bits as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(bits).into(),
    }
}

impl FromStr for Prefix {
    type Err = InvalidPrefix;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (address, length) = text.split_once('/')?;
            let address: IpAddr = address.parse().ok()?;
            let length: u8 = length.parse().ok().filter(|length| *length <= width(address))?;
            Some(Self::around(address, length)).filter(|prefix| prefix.address == address)
        };
        parse().ok_or_else(|| InvalidPrefix { text: text.to_owned() })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl TryFrom<String> for Prefix {
    type Error = InvalidPrefix;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_overlap_when_one_holds_the_other() {
        let overlap =
            |a: &str, b: &str| a.parse::<Prefix>().expect("first").overlaps(&b.parse::<Prefix>().expect("second"));
        assert!(overlap("10.0.0.0/8", "10.187.0.0/16"));
        assert!(overlap("10.187.0.0/16", "10.0.0.0/8"));
        assert!(overlap("10.187.0.0/16", "10.187.3.4/32"));
        assert!(!overlap("10.187.0.0/16", "10.188.0.0/16"));
        assert!(overlap("0.0.0.0/0", "10.188.0.0/16"));
        assert!(!overlap("0.0.0.0/0", "fd00::/8"));
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in ["", "10.0.0.0", "10.0.0.1/8", "10.0.0.0/33", "fd00::/129", "fd00::1/64", "x/8", "10.0.0.0/-1"] {
            assert!(text.parse::<Prefix>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn an_offset_leads_there_and_back(base: u32, length in 0u8..=32, offset: u32) {
            let prefix = Prefix::around(Ipv4Addr::from_bits(base).into(), length);
            prop_assert_eq!(prefix.to_string().parse::<Prefix>(), Ok(prefix));
            if let Some(address) = prefix.nth(offset) {
                prop_assert!(prefix.contains(address));
                prop_assert_eq!(prefix.offset_of(address), Some(offset));
            } else {
                prop_assert!(length > 0 && u64::from(offset) >= 1u64 << (32 - length));
            }
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,40}") {
            if let Ok(prefix) = text.parse::<Prefix>() {
                prop_assert_eq!(prefix.to_string().parse::<Prefix>(), Ok(prefix));
            }
        }
    }
}
