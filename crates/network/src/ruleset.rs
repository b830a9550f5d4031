//! The one nf_tables table of a service, and what stands in it.
//!
//! ```text
//! raw         packets from sandboxes: no loopback addresses, no borrowed source addresses
//! prerouting  published ports, for packets that come in   ┐ four maps: any host address or one, IPv4 or IPv6;
//! output      published ports, for the host's own         ┘ a port is one element, never a rule
//! forward     to sandboxes: answers, published ports, other sandboxes of this service; nothing else
//! unreachable addresses of the pool that nobody has: an answer at once instead of silence
//! postrouting sandboxes leave under the host's address; 127.0.0.1 and a sandbox that calls itself are masked
//! ```
//!
//! The table is written whole, in one transaction, whenever it is made anew: there is no moment without it, and
//! connections that are under way live in the kernel's connection table, not here. In between, ports come and go as
//! elements. A verdict here cannot overrule another table's drop: see [`crate::Network::obstacles`].

use std::net::IpAddr;

use sampan_sys::netlink::Message;

use crate::config::Names;
use crate::leases::{Lease, Pools};
use crate::limits::ELEMENTS_PER_MESSAGE;
use crate::nftables::{self, Chain, ChainKind, Element, Hook, NFPROTO_IPV4, NFPROTO_IPV6, Set};
use crate::port::PortMapping;
use crate::prefix::Prefix;
use crate::rtnetlink::octets;
use crate::rule::{Compare, Rule, Side};

/// nft's own type numbers (its include/datatype.h); six bits each when put together.
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;

const fn types(list: &[u32]) -> u32 {
    let mut together = 0;
    let mut index = 0;
    while index < list.len() {
        together = together << 6 | list[index];
        index += 1;
    }
    together
}

const TARGET4: Option<(u32, u32)> = Some((types(&[TYPE_IPV4, TYPE_PORT]), 8));
const TARGET6: Option<(u32, u32)> = Some((types(&[TYPE_IPV6, TYPE_PORT]), 20));

const ANY4: Set =
    Set { name: "ports-any-4", key_type: types(&[TYPE_PROTOCOL, TYPE_PORT]), key_bytes: 8, data: TARGET4 };
const ANY6: Set = Set { name: "ports-any-6", data: TARGET6, ..ANY4 };
const ONE4: Set =
    Set { name: "ports-one-4", key_type: types(&[TYPE_IPV4, TYPE_PROTOCOL, TYPE_PORT]), key_bytes: 12, data: TARGET4 };
const ONE6: Set =
    Set { name: "ports-one-6", key_type: types(&[TYPE_IPV6, TYPE_PROTOCOL, TYPE_PORT]), key_bytes: 24, data: TARGET6 };
const SELF4: Set = Set { name: "self-4", key_type: types(&[TYPE_IPV4, TYPE_IPV4]), key_bytes: 8, data: None };
const SELF6: Set = Set { name: "self-6", key_type: types(&[TYPE_IPV6, TYPE_IPV6]), key_bytes: 32, data: None };
const SETS: [Set; 6] = [ANY4, ANY6, ONE4, ONE6, SELF4, SELF6];

/// Priorities: linux/netfilter_ipv4.h. Filters stand just before everybody else's.
const RAW: Chain = Chain { name: "raw", kind: ChainKind::Filter, hook: Hook::Prerouting, priority: -300 };
const PREROUTING: Chain = Chain { name: "prerouting", kind: ChainKind::Nat, hook: Hook::Prerouting, priority: -100 };
const OUTPUT: Chain = Chain { name: "output", kind: ChainKind::Nat, hook: Hook::Output, priority: -100 };
const FORWARD: Chain = Chain { name: "forward", kind: ChainKind::Filter, hook: Hook::Forward, priority: -1 };
const UNREACHABLE: Chain = Chain { name: "unreachable", kind: ChainKind::Filter, hook: Hook::Output, priority: -1 };
const POSTROUTING: Chain = Chain { name: "postrouting", kind: ChainKind::Nat, hook: Hook::Postrouting, priority: 100 };
const CHAINS: [Chain; 6] = [RAW, PREROUTING, OUTPUT, FORWARD, UNREACHABLE, POSTROUTING];

const LOOPBACK4: [u8; 4] = [127, 0, 0, 0];
const LOOPBACK4_MASK: [u8; 4] = [255, 0, 0, 0];
const LOOPBACK6: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ALL6: [u8; 16] = [255; 16];
const LINK_LOCAL6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const LINK_LOCAL6_MASK: [u8; 16] = [0xff, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The requests of the transaction that puts this table, and nothing else of its name, in force.
pub(crate) fn write<'a>(names: &Names, pools: &Pools, leases: impl Iterator<Item = &'a Lease>) -> Vec<Message> {
    let table = names.table.as_str();
    // Adding first makes deleting safe whether the table was there or not.
    let mut requests = vec![nftables::add_table(table), nftables::delete_table(table), nftables::add_table(table)];
    requests.extend((1..).zip(&SETS).map(|(id, set)| nftables::add_set(table, set, id)));
    requests.extend(CHAINS.iter().map(|chain| nftables::add_chain(table, chain)));
    requests.extend(rules(names, pools).into_iter().map(|(chain, rule)| nftables::add_rule(table, chain.name, rule)));
    requests.extend(add(names, leases.flat_map(elements).collect()));
    requests
}

/// The request that takes the table away; refused where there is none.
pub(crate) fn remove(names: &Names) -> Vec<Message> {
    vec![nftables::delete_table(&names.table)]
}

/// The requests that publish a sandbox's ports in the table that is in force.
pub(crate) fn add(names: &Names, elements: Vec<Element>) -> Vec<Message> {
    by_set(elements, |set, chunk| nftables::add_elements(&names.table, set, chunk))
}

/// The requests that withdraw a sandbox's ports; refused as a whole when one is not there.
pub(crate) fn withdraw(names: &Names, elements: Vec<Element>) -> Vec<Message> {
    by_set(elements, |set, chunk| nftables::delete_elements(&names.table, set, chunk))
}

fn by_set(mut elements: Vec<Element>, request: impl Fn(&'static str, &[Element]) -> Message) -> Vec<Message> {
    elements.sort();
    elements
        .chunk_by(|a, b| a.set == b.set)
        .flat_map(|same_set| same_set.chunks(ELEMENTS_PER_MESSAGE))
        .filter_map(|chunk| Some(request(chunk.first()?.set, chunk)))
        .collect()
}

/// What a sandbox's published ports put into the maps.
pub(crate) fn elements(lease: &Lease) -> Vec<Element> {
    let mut elements = Vec::new();
    for target in lease.addresses() {
        let translated: Vec<_> = lease.ports.iter().flat_map(|port| port_elements(port, target)).collect();
        if !translated.is_empty() {
            let set = if target.is_ipv4() { SELF4.name } else { SELF6.name };
            elements.push(Element { set, key: [octets(target), octets(target)].concat(), data: None });
        }
        elements.extend(translated);
    }
    elements
}

fn port_elements(port: &PortMapping, target: IpAddr) -> Vec<Element> {
    let field = |number: u16| {
        let [high, low] = number.to_be_bytes();
        [high, low, 0, 0]
    };
    port.host_addresses()
        .into_iter()
        .filter(|address| address.is_ipv4() == target.is_ipv4())
        .map(|address| {
            let mut key = if address.is_unspecified() { Vec::new() } else { octets(address) };
            key.extend([port.protocol.number(), 0, 0, 0]);
            key.extend(field(port.host_port));
            let set = match (address.is_ipv4(), address.is_unspecified()) {
                (true, true) => ANY4,
                (true, false) => ONE4,
                (false, true) => ANY6,
                (false, false) => ONE6,
            };
            let data = [octets(target), field(port.container_port).to_vec()].concat();
            Element { set: set.name, key, data: Some(data) }
        })
        .collect()
}

fn rules(names: &Names, pools: &Pools) -> Vec<(Chain, Rule)> {
    let ours = names.prefix.as_str();
    let mut rules = from_sandboxes(ours);
    rules.extend(published());
    rules.extend(masked(ours, pools));
    rules.extend(forwarded(ours, &names.anchor));
    rules.extend(leaving(ours, pools));
    rules
}

fn from_sandboxes(ours: &str) -> Vec<(Chain, Rule)> {
    let from_ours = || Rule::default().came_from(Compare::Equal, ours);
    let loopback = |side| from_ours().family(NFPROTO_IPV4).address(side, Compare::Equal, &LOOPBACK4, &LOOPBACK4_MASK);
    vec![
        // The host's end has route_localnet: without this a sandbox could reach what listens on the host's 127.0.0.1.
        (RAW, loopback(Side::Destination).drop()),
        (RAW, loopback(Side::Source).drop()),
        (RAW, from_ours().with_a_foreign_source().drop()),
    ]
}

fn published() -> Vec<(Chain, Rule)> {
    let family = |family| Rule::default().family(family);
    let mut rules = vec![
        // A packet for 127.0.0.1 that comes in by wire is a forgery, and must not be led to a port published there.
        (
            PREROUTING,
            family(NFPROTO_IPV4).address(Side::Destination, Compare::Equal, &LOOPBACK4, &LOOPBACK4_MASK).leave(),
        ),
    ];
    // The kernel has no route_localnet for IPv6, and does not forward link-local sources: both are left to the
    // sockets that hold the ports.
    let ipv6 = || {
        family(NFPROTO_IPV6).address(Side::Destination, Compare::NotEqual, &LOOPBACK6, &ALL6).address(
            Side::Destination,
            Compare::NotEqual,
            &LINK_LOCAL6,
            &LINK_LOCAL6_MASK,
        )
    };
    for chain in [PREROUTING, OUTPUT] {
        rules.extend([
            (chain, family(NFPROTO_IPV4).translate_by(ONE4.name, 4, NFPROTO_IPV4)),
            (chain, ipv6().translate_by(ONE6.name, 16, NFPROTO_IPV6)),
            (chain, family(NFPROTO_IPV4).bound_for_this_host().translate_by(ANY4.name, 0, NFPROTO_IPV4)),
            (chain, ipv6().bound_for_this_host().translate_by(ANY6.name, 0, NFPROTO_IPV6)),
        ]);
    }
    rules
}

/// Callers whose own address would lead the answer past the translation come from the gateway's.
fn masked(ours: &str, pools: &Pools) -> Vec<(Chain, Rule)> {
    let mut rules = Vec::new();
    for gateway in pools.gateways() {
        let address = octets(gateway);
        let (family, pairs) = if gateway.is_ipv4() { (NFPROTO_IPV4, SELF4.name) } else { (NFPROTO_IPV6, SELF6.name) };
        let to_ours = || Rule::default().goes_to(Compare::Equal, ours).family(family);
        if gateway.is_ipv4() {
            // A process of the host that called 127.0.0.1.
            let from_loopback = to_ours().address(Side::Source, Compare::Equal, &LOOPBACK4, &LOOPBACK4_MASK);
            rules.push((POSTROUTING, from_loopback.send_as(family, address.clone())));
        }
        // A sandbox that called its own published port.
        let calls_itself = to_ours().address_pair_in(pairs, address.len() as u32);
        rules.push((POSTROUTING, calls_itself.send_as(family, address)));
    }
    rules
}

fn forwarded(ours: &str, anchor: &str) -> Vec<(Chain, Rule)> {
    let to_ours = || Rule::default().goes_to(Compare::Equal, ours);
    let to_nobody = || Rule::default().goes_to(Compare::Equal, &format!("{anchor}\0"));
    vec![
        (FORWARD, to_nobody().reject_host()),
        (UNREACHABLE, to_nobody().reject_host()),
        (FORWARD, to_ours().of_known_connections().accept()),
        (FORWARD, to_ours().of_translated_connections().accept()),
        (FORWARD, to_ours().came_from(Compare::Equal, ours).accept()),
        (FORWARD, to_ours().drop()),
    ]
}

fn leaving(ours: &str, pools: &Pools) -> Vec<(Chain, Rule)> {
    let leaves = |family, pool: Prefix| {
        let network = octets(pool.address());
        let mask = mask(pool.length(), network.len());
        let rule = Rule::default()
            .family(family)
            .goes_to(Compare::NotEqual, ours)
            .address(Side::Source, Compare::Equal, &network, &mask)
            .masquerade();
        (POSTROUTING, rule)
    };
    let mut rules = vec![leaves(NFPROTO_IPV4, pools.ipv4)];
    rules.extend(pools.ipv6.map(|pool| leaves(NFPROTO_IPV6, pool)));
    rules
}

fn mask(length: u8, bytes: usize) -> Vec<u8> {
    (0..bytes as u32)
        .map(|index| {
            let ones = u32::from(length).saturating_sub(index * 8).min(8);
            !u8::MAX.checked_shr(ones).unwrap_or(0)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Protocol;

    #[test]
    fn masks_have_as_many_ones_as_the_prefix() {
        assert_eq!(mask(16, 4), [255, 255, 0, 0]);
        assert_eq!(mask(20, 4), [255, 255, 240, 0]);
        assert_eq!(mask(64, 16)[..9], [255, 255, 255, 255, 255, 255, 255, 255, 0]);
        assert_eq!(mask(32, 4), [255; 4]);
    }

    #[test]
    fn a_port_on_every_address_is_one_element_a_family() {
        let lease = Lease {
            sandbox: "a".to_owned(),
            boot: String::new(),
            ipv4: [10, 187, 0, 2].into(),
            ipv6: Some("fd00::2".parse().expect("address")),
            ports: vec![PortMapping { host_ip: None, host_port: 8080, container_port: 80, protocol: Protocol::Tcp }],
            bandwidth: crate::Bandwidth::default(),
        };
        let made = elements(&lease);
        assert_eq!(
            made.iter().map(|element| element.set).collect::<Vec<_>>(),
            ["self-4", "ports-any-4", "self-6", "ports-any-6"]
        );
        assert_eq!(made[1].key, [6, 0, 0, 0, 0x1f, 0x90, 0, 0]);
        assert_eq!(made[1].data.as_deref(), Some([10, 187, 0, 2, 0, 80, 0, 0].as_slice()));
        assert_eq!(made[3].data.as_ref().map(Vec::len), Some(20));
    }
}
