//! The cable between the host and one sandbox: a veth pair, its addresses, routes and neighbours.
//!
//! Nothing is ever asked or announced on it: both ends know each other's link-layer address for good, the sandbox's
//! gateway (169.254.1.1 and fe80::1) exists only as its neighbour entry, and the host holds no address on its end.
//! Three system calls make it: the pair, the sandbox's end, the host's end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use sampan_sys::namespace;
use sampan_sys::netlink::{Family, Message, NetlinkSocket};

use crate::bandwidth::Rate;
use crate::config::{Names, stable_hash};
use crate::error::{Attempted as _, NetworkError};
use crate::leases::{Lease, Pools};
use crate::rtnetlink::{self, Link, Mac, VethEnd};
use crate::shaping;

/// The sandbox's gateway: link-local, so it collides with no address that the sandbox may want to reach.
const GATEWAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Every host end has the same locally administered address: they never share a link.
const HOST_MAC: Mac = [0x02, 0x53, 0x50, 0x4e, 0x00, 0x01];
/// What the sandbox calls its interface.
const GUEST_INTERFACE: &str = "eth0";
/// The loopback interface has this index in every network namespace.
const LOOPBACK_INDEX: u32 = 1;

/// Makes the cable on the network's own thread, whose namespace is `home`; returns the host interface's index. What was half made stays, for [`NetworkError`]'s receiver to
/// clean up.
pub(crate) fn lay(
    home: BorrowedFd<'_>,
    host: &NetlinkSocket,
    names: &Names,
    lease: &Lease,
    pools: &Pools,
    mtu: u32,
    namespace: BorrowedFd<'_>,
) -> Result<u32, NetworkError> {
    let name = names.host_interface(&lease.sandbox);
    let guest_mac = guest_mac(&lease.sandbox);
    let host_end = VethEnd { name: &name, mac: HOST_MAC };
    let guest_end = VethEnd { name: GUEST_INTERFACE, mac: guest_mac };
    let made = host
        .pipeline(vec![rtnetlink::create_veth(&host_end, &guest_end, mtu, namespace), rtnetlink::get_link(&name)])
        .attempted(|| format!("make interface {name} and its other end eth0"))?;
    let Some(link) = made.iter().find_map(Link::read) else { return Err(NetworkError::Stopped) };

    let inside = namespace::visit_network(home, namespace, || NetlinkSocket::open(Family::Route))
        .and_then(|socket| socket)
        .map_err(|source| NetworkError::System { operation: "enter the sandbox's network namespace", source })?;
    inside
        .pipeline(guest_requests(link.peer, lease, guest_mac, mtu))
        .attempted(|| format!("set up eth0 of sandbox {}", lease.sandbox))?;
    host.pipeline(host_requests(link.index, names, lease, pools, guest_mac, mtu))
        .attempted(|| format!("set up interface {name}"))?;
    Ok(link.index)
}

fn guest_requests(index: u32, lease: &Lease, guest_mac: Mac, mtu: u32) -> Vec<Message> {
    let mut requests: Vec<Message> = bucket(index, lease.bandwidth.egress, mtu).into_iter().collect();
    requests.extend([
        rtnetlink::set_up(LOOPBACK_INDEX),
        rtnetlink::set_quiet_ipv6(index),
        rtnetlink::set_up(index),
        rtnetlink::add_address(index, lease.ipv4.into(), 32),
        rtnetlink::add_neighbour(index, GATEWAY4.into(), HOST_MAC),
        rtnetlink::add_default_route(index, GATEWAY4.into()),
    ]);
    if let Some(ipv6) = lease.ipv6 {
        requests.extend([
            rtnetlink::add_address(index, link_local(guest_mac).into(), 64),
            rtnetlink::add_address(index, ipv6.into(), 128),
            rtnetlink::add_neighbour(index, GATEWAY6.into(), HOST_MAC),
            rtnetlink::add_default_route(index, GATEWAY6.into()),
        ]);
    }
    requests
}

/// A sandbox is never on the air faster than it should be: buckets come before the interface is up.
fn bucket(index: u32, rate: Option<Rate>, mtu: u32) -> Option<Message> {
    rate.map(|rate| rtnetlink::set_token_bucket(index, shaping::token_bucket(rate, mtu)))
}

fn host_requests(index: u32, names: &Names, lease: &Lease, pools: &Pools, guest_mac: Mac, mtu: u32) -> Vec<Message> {
    let mut requests =
        vec![rtnetlink::set_alias(index, &names.alias(&lease.sandbox)), rtnetlink::set_ipv4_forwarding(index)];
    if lease.ipv6.is_some() {
        requests.push(rtnetlink::set_quiet_ipv6(index));
    }
    requests.extend(bucket(index, lease.bandwidth.ingress, mtu));
    requests.push(rtnetlink::set_up(index));
    let targets: [(IpAddr, Option<IpAddr>); 2] = [
        (lease.ipv4.into(), pools.gateway4().map(IpAddr::from)),
        (lease.ipv6.unwrap_or(Ipv6Addr::UNSPECIFIED).into(), pools.gateway6().map(IpAddr::from)),
    ];
    for (address, source) in targets.into_iter().filter(|(address, _)| !address.is_unspecified()) {
        requests.push(rtnetlink::add_neighbour(index, address, guest_mac));
        requests.push(rtnetlink::add_host_route(index, address, source));
    }
    requests
}

/// A locally administered unicast address that follows from the sandbox's id.
fn guest_mac(sandbox: &str) -> Mac {
    let [a, b, c, d, e, ..] = stable_hash(sandbox).to_be_bytes();
    [0x02, a, b, c, d, e]
}

/// The link-local address that the kernel would have made of it (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: Mac) -> Ipv6Addr {
    let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, word(a ^ 2, b), word(c, 0xff), word(0xfe, d), word(e, f))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_addresses_are_made_as_the_kernel_does() {
        assert_eq!(link_local([0x02, 0xfc, 0, 0, 0, 1]).to_string(), "fe80::fc:ff:fe00:1");
    }
}
