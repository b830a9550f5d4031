//! A published port: which host port leads to which port of a sandbox.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Transport protocols that can be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// The number in an IP header (IANA protocol numbers).
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// One published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// The host's address that answers; `None` is every one, IPv4 and IPv6.
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: Protocol,
}

impl PortMapping {
    /// The addresses that stand for this mapping on the host, unspecified ones for "every".
    pub(crate) fn host_addresses(&self) -> Vec<IpAddr> {
        match self.host_ip {
            Some(address) => vec![address.to_canonical()],
            None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        }
    }

    /// Whether a packet could mean either.
    pub(crate) fn collides_with(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.host_port == other.host_port
            && self.host_addresses().iter().any(|mine| {
                other.host_addresses().iter().any(|theirs| {
                    mine == theirs
                        || (mine.is_ipv4() == theirs.is_ipv4() && (mine.is_unspecified() || theirs.is_unspecified()))
                })
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_collides_where_addresses_meet() {
        let mapping = |ip: Option<&str>, port, protocol| PortMapping {
            host_ip: ip.map(|ip| ip.parse().expect("address")),
            host_port: port,
            container_port: 80,
            protocol,
        };
        let everywhere = mapping(None, 8080, Protocol::Tcp);
        assert!(everywhere.collides_with(&mapping(Some("127.0.0.1"), 8080, Protocol::Tcp)));
        assert!(everywhere.collides_with(&mapping(Some("::1"), 8080, Protocol::Tcp)));
        assert!(mapping(Some("0.0.0.0"), 8080, Protocol::Tcp).collides_with(&everywhere));
        assert!(!mapping(Some("0.0.0.0"), 8080, Protocol::Tcp).collides_with(&mapping(
            Some("::"),
            8080,
            Protocol::Tcp
        )));
        assert!(!everywhere.collides_with(&mapping(None, 8080, Protocol::Udp)));
        assert!(!everywhere.collides_with(&mapping(None, 8081, Protocol::Tcp)));
        assert!(!mapping(Some("127.0.0.1"), 8080, Protocol::Tcp).collides_with(&mapping(
            Some("127.0.0.2"),
            8080,
            Protocol::Tcp
        )));
    }
}
