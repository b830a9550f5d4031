//! Addresses, routed veth pairs, NAT and published ports over netlink and nftables.
//!
//! Every sandbox has a cable of its own to the host (a veth pair with a /32 and a /128, no bridge), and the host
//! routes: between sandboxes, to the world under its own address, and from published ports to the sandbox behind
//! them. Two things on the host are shared: one interface that holds the gateway addresses (`spn-host`), and one
//! nf_tables table.
//!
//! ```text
//!   sandbox                      host
//!   eth0 10.187.0.2/32  ═══════  spn-0123456789a   route 10.187.0.2/32   table inet sampan: ports, masquerade
//!   default via 169.254.1.1      spn-host 10.187.0.1/16, fd..::1/64      forwarding on
//! ```
//!
//! Invariants: no program is run; an address in use has a lease file; the table is replaced whole or changed by
//! elements, so that it is never half there; what this crate makes on the host begins with the service's four-letter
//! prefix or stands in its table, so that [`Network::reconcile`] finds all of it after any kill.

mod bandwidth;
mod cable;
mod cni;
mod config;
mod conntrack;
mod dns;
mod error;
mod held_port;
mod holder;
mod host;
mod leases;
pub mod limits;
mod network;
mod nftables;
mod pools;
mod port;
mod prefix;
mod probe;
mod rtnetlink;
mod rule;
mod ruleset;
mod shaping;
mod shared_firewall;
mod sysctl;

pub use bandwidth::{Bandwidth, EGRESS_ANNOTATION, INGRESS_ANNOTATION, InvalidBandwidth, Rate};
pub use cni::{CniConfig, CniError, fuzz_cni};
pub use config::NetworkConfig;
pub use dns::{DnsPolicy, DnsSettings, HostAlias, fuzz_resolv_conf};
pub use error::{NetworkError, PortHolder};
pub use network::{AttachOptions, Attachment, Network, Obstacle, PodName, Usage};
pub use port::{PortMapping, Protocol};
pub use prefix::{InvalidPrefix, Prefix};
pub use probe::probe;
