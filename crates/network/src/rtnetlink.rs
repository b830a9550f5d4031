//! rtnetlink requests as the network needs them: links, addresses, neighbours, routes, statistics.
//!
//! Numbers and layouts: linux/rtnetlink.h, linux/pkt_sched.h, linux/if_link.h, linux/if_addr.h, linux/neighbour.h, linux/ip.h.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use sampan_sys::netlink::{Message, Reply, flags};

use crate::prefix::Prefix;

pub(crate) const AF_INET: u8 = 2;
pub(crate) const AF_INET6: u8 = 10;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_NEWQDISC: u16 = 36;
const RTM_GETSTATS: u16 = 94;

const IFF_UP: u32 = 1;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_STATS64: u16 = 23;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_FORWARDING: u16 = 1;
const IPV4_DEVCONF_ROUTE_LOCALNET: u16 = 26;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x02;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTNH_F_ONLINK: u32 = 4;

const IFLA_STATS_LINK_64: u16 = 1;
const IFINFOMSG_BYTES: usize = 16;
const RTMSG_BYTES: usize = 12;
const IF_STATS_MSG_BYTES: usize = 12;

/// A link-layer address.
pub(crate) type Mac = [u8; 6];

/// `struct ifinfomsg`: family, type, index, flags, which flags to change.
fn link_header(index: u32, up: bool) -> [u8; IFINFOMSG_BYTES] {
    let mut header = [0; IFINFOMSG_BYTES];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    if up {
        header[8..12].copy_from_slice(&IFF_UP.to_ne_bytes());
        header[12..16].copy_from_slice(&IFF_UP.to_ne_bytes());
    }
    header
}

/// One end of a veth pair.
pub(crate) struct VethEnd<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
}

/// Makes a veth pair whose other end is born inside `namespace`, both down.
pub(crate) fn create_veth(host: &VethEnd<'_>, guest: &VethEnd<'_>, mtu: u32, namespace: BorrowedFd<'_>) -> Message {
    let end = |message: &mut Message, end: &VethEnd<'_>| {
        // One queue each: a veth has no queueing discipline that more would help, and each costs memory per CPU.
        message
            .text(IFLA_IFNAME, end.name)
            .bytes(IFLA_ADDRESS, &end.mac)
            .u32(IFLA_MTU, mtu)
            .u32(IFLA_NUM_TX_QUEUES, 1)
            .u32(IFLA_NUM_RX_QUEUES, 1);
    };
    let mut message = Message::new(RTM_NEWLINK, flags::CREATE | flags::EXCL, &link_header(0, false));
    end(&mut message, host);
    message.nest(IFLA_LINKINFO, |info| {
        info.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |data| {
            data.nest(VETH_INFO_PEER, |peer| {
                peer.raw(&link_header(0, false));
                end(peer, guest);
                peer.u32(IFLA_NET_NS_FD, namespace.as_raw_fd().cast_unsigned());
            });
        });
    });
    message
}

/// Makes a bridge without ports: a place for addresses and routes that every kernel with containers has.
pub(crate) fn create_bridge(name: &str) -> Message {
    let mut message = Message::new(RTM_NEWLINK, flags::CREATE | flags::EXCL, &link_header(0, false));
    message.text(IFLA_IFNAME, name).nest(IFLA_LINKINFO, |info| {
        info.text(IFLA_INFO_KIND, "bridge");
    });
    message
}

pub(crate) fn get_link(name: &str) -> Message {
    let mut message = Message::new(RTM_GETLINK, 0, &link_header(0, false));
    message.text(IFLA_IFNAME, name);
    message
}

pub(crate) fn get_links() -> Message {
    Message::new(RTM_GETLINK, 0, &link_header(0, false))
}

pub(crate) fn set_up(index: u32) -> Message {
    Message::new(RTM_NEWLINK, 0, &link_header(index, true))
}

pub(crate) fn set_alias(index: u32, alias: &str) -> Message {
    let mut message = Message::new(RTM_NEWLINK, 0, &link_header(index, false));
    message.bytes(IFLA_IFALIAS, alias.as_bytes());
    message
}

/// No link-local address of the kernel's own making (it would announce and probe it), to be sent before `set_up`.
pub(crate) fn set_quiet_ipv6(index: u32) -> Message {
    let mut message = Message::new(RTM_NEWLINK, 0, &link_header(index, false));
    message.nest(IFLA_AF_SPEC, |families| {
        families.nest(u16::from(AF_INET6), |ipv6| {
            ipv6.u8(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
        });
    });
    message
}

/// The host's end forwards, and may carry packets whose one side is 127.0.0.0/8 before or after translation.
pub(crate) fn set_ipv4_forwarding(index: u32) -> Message {
    let mut message = Message::new(RTM_NEWLINK, 0, &link_header(index, false));
    message.nest(IFLA_AF_SPEC, |families| {
        families.nest(u16::from(AF_INET), |ipv4| {
            ipv4.nest(IFLA_INET_CONF, |settings| {
                settings.u32(IPV4_DEVCONF_FORWARDING, 1).u32(IPV4_DEVCONF_ROUTE_LOCALNET, 1);
            });
        });
    });
    message
}

/// A token bucket with a queue before it (tc-tbf(8)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TokenBucket {
    /// Of whole frames.
    pub(crate) bytes_per_second: u64,
    pub(crate) burst_bytes: u32,
    pub(crate) queue_bytes: u32,
}

/// Sends what leaves over the interface through a token bucket.
pub(crate) fn set_token_bucket(index: u32, bucket: TokenBucket) -> Message {
    const TC_H_ROOT: u32 = u32::MAX;
    const TCA_KIND: u16 = 1;
    const TCA_OPTIONS: u16 = 2;
    const TCA_TBF_PARMS: u16 = 1;
    const TCA_TBF_RATE64: u16 = 4;
    const TCA_TBF_BURST: u16 = 6;
    const TC_LINKLAYER_ETHERNET: u8 = 1;
    // `struct tcmsg`: family, interface, handle, parent, info.
    let mut header = [0; 20];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[12..16].copy_from_slice(&TC_H_ROOT.to_ne_bytes());
    // `struct tc_tbf_qopt`: two `tc_ratespec` of twelve bytes (the link layer second, the rate last), limit, buffer, mtu.
    let mut options = [0; 36];
    options[1] = TC_LINKLAYER_ETHERNET;
    options[8..12].copy_from_slice(&u32::try_from(bucket.bytes_per_second).unwrap_or(u32::MAX).to_ne_bytes());
    options[24..28].copy_from_slice(&bucket.queue_bytes.to_ne_bytes());
    let mut message = Message::new(RTM_NEWQDISC, flags::CREATE | flags::REPLACE, &header);
    message.text(TCA_KIND, "tbf").nest(TCA_OPTIONS, |nest| {
        nest.bytes(TCA_TBF_PARMS, &options)
            .bytes(TCA_TBF_RATE64, &bucket.bytes_per_second.to_ne_bytes())
            .u32(TCA_TBF_BURST, bucket.burst_bytes);
    });
    message
}

pub(crate) fn set_group(index: u32, group: u32) -> Message {
    let mut message = Message::new(RTM_NEWLINK, 0, &link_header(index, false));
    message.u32(IFLA_GROUP, group);
    message
}

/// Deletes a whole group at once: the kernel waits one grace period for all instead of one for each.
pub(crate) fn delete_group(group: u32) -> Message {
    let mut message = Message::new(RTM_DELLINK, 0, &link_header(0, false));
    message.u32(IFLA_GROUP, group);
    message
}

pub(crate) fn delete_link(index: u32) -> Message {
    Message::new(RTM_DELLINK, 0, &link_header(index, false))
}

/// Adds an address without asking the neighbours whether it is free.
pub(crate) fn add_address(index: u32, address: IpAddr, length: u8) -> Message {
    let scope = match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => RT_SCOPE_LINK,
        _ => RT_SCOPE_UNIVERSE,
    };
    let [a, b, c, d] = index.to_ne_bytes();
    let header = [family(address), length, 0, scope, a, b, c, d];
    let mut message = Message::new(RTM_NEWADDR, flags::CREATE | flags::REPLACE, &header);
    let bytes = octets(address);
    message.bytes(IFA_LOCAL, &bytes).bytes(IFA_ADDRESS, &bytes);
    if address.is_ipv6() {
        message.u32(IFA_FLAGS, IFA_F_NODAD);
    }
    message
}

/// A neighbour that is known for good: nobody ever asks for it.
pub(crate) fn add_neighbour(index: u32, address: IpAddr, mac: Mac) -> Message {
    let mut header = [0; 12];
    header[0] = family(address);
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
    let mut message = Message::new(RTM_NEWNEIGH, flags::CREATE | flags::REPLACE, &header);
    message.bytes(NDA_DST, &octets(address)).bytes(NDA_LLADDR, &mac);
    message
}

fn route_header(family: u8, length: u8, scope: u8, flags: u32) -> [u8; RTMSG_BYTES] {
    let mut header = [family, length, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST, 0, 0, 0, 0];
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header
}

/// The host's way to one sandbox; the host speaks to it from `source`.
pub(crate) fn add_host_route(index: u32, address: IpAddr, source: Option<IpAddr>) -> Message {
    let bytes = octets(address);
    let length = if address.is_ipv4() { 32 } else { 128 };
    let scope = if address.is_ipv4() { RT_SCOPE_LINK } else { RT_SCOPE_UNIVERSE };
    let header = route_header(family(address), length, scope, 0);
    let mut message = Message::new(RTM_NEWROUTE, flags::CREATE | flags::REPLACE, &header);
    message.bytes(RTA_DST, &bytes).u32(RTA_OIF, index);
    if let Some(source) = source {
        message.bytes(RTA_PREFSRC, &octets(source));
    }
    message
}

/// A sandbox's way to everywhere, over a link-local gateway that is on this link whatever the addresses say.
pub(crate) fn add_default_route(index: u32, gateway: IpAddr) -> Message {
    let header = route_header(family(gateway), 0, RT_SCOPE_UNIVERSE, RTNH_F_ONLINK);
    let mut message = Message::new(RTM_NEWROUTE, flags::CREATE | flags::REPLACE, &header);
    message.bytes(RTA_GATEWAY, &octets(gateway)).u32(RTA_OIF, index);
    message
}

pub(crate) fn get_routes(family: u8) -> Message {
    let mut header = [0; RTMSG_BYTES];
    header[0] = family;
    Message::new(RTM_GETROUTE, 0, &header)
}

/// The 64-bit counters of every interface.
pub(crate) fn get_statistics() -> Message {
    let mut header = [0; IF_STATS_MSG_BYTES];
    header[8..12].copy_from_slice(&(1u32 << (IFLA_STATS_LINK_64 - 1)).to_ne_bytes());
    Message::new(RTM_GETSTATS, 0, &header)
}

/// What a link says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: String,
    pub(crate) mtu: u32,
    /// The other end's index, of a veth.
    pub(crate) peer: u32,
    pub(crate) counters: Counters,
}

/// Bytes that went through an interface, from the interface's own point of view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
}

impl Counters {
    /// `struct rtnl_link_stats64` begins with packets received and sent, bytes received and sent.
    fn read(bytes: &[u8]) -> Self {
        let word = |index: usize| {
            bytes.get(index * 8..index * 8 + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_ne_bytes)
        };
        Self { received_bytes: word(2), sent_bytes: word(3) }
    }
}

impl Link {
    pub(crate) fn read(reply: &Reply) -> Option<Self> {
        if reply.kind != RTM_NEWLINK {
            return None;
        }
        let header: [u8; IFINFOMSG_BYTES] = reply.header();
        let index = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
        let mut link =
            Self { index, name: String::new(), alias: String::new(), mtu: 0, peer: 0, counters: Counters::default() };
        for (kind, value) in reply.attributes(IFINFOMSG_BYTES) {
            match kind {
                IFLA_IFNAME => link.name = text(value),
                IFLA_IFALIAS => link.alias = text(value),
                IFLA_MTU => link.mtu = number(value),
                IFLA_LINK => link.peer = number(value),
                IFLA_STATS64 => link.counters = Counters::read(value),
                _ => {}
            }
        }
        Some(link)
    }
}

/// An entry of [`get_statistics`]: interface index and counters.
pub(crate) fn read_statistics(reply: &Reply) -> Option<(u32, Counters)> {
    let header: [u8; IF_STATS_MSG_BYTES] = reply.header();
    let index = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
    Some((index, Counters::read(reply.attribute(IF_STATS_MSG_BYTES, IFLA_STATS_LINK_64)?)))
}

/// A route to somewhere in particular, or the default one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) destination: Prefix,
    pub(crate) interface: u32,
}

impl Route {
    /// Reads a unicast or local route; others (broadcast, multicast, prohibited) claim no addresses for use.
    pub(crate) fn read(reply: &Reply) -> Option<Self> {
        if reply.kind != RTM_NEWROUTE {
            return None;
        }
        let header: [u8; RTMSG_BYTES] = reply.header();
        let [route_family, length, .., kind, _, _, _, _] = header;
        if kind != RTN_UNICAST && kind != RTN_LOCAL {
            return None;
        }
        let destination = match (route_family, reply.attribute(RTMSG_BYTES, RTA_DST)) {
            (AF_INET, None) => Ipv4Addr::UNSPECIFIED.into(),
            (AF_INET6, None) => Ipv6Addr::UNSPECIFIED.into(),
            (AF_INET, Some(bytes)) => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
            (AF_INET6, Some(bytes)) => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
            _ => return None,
        };
        let interface = reply.attribute(RTMSG_BYTES, RTA_OIF).map_or(0, number);
        Some(Self { destination: Prefix::around(destination, length), interface })
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
}

fn number(value: &[u8]) -> u32 {
    value.try_into().map_or(0, u32::from_ne_bytes)
}
