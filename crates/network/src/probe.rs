//! Whether this kernel can do what a network needs, tried out where it disturbs nobody.

use std::io;
use std::os::fd::AsFd;

use sampan_sys::namespace;
use sampan_sys::netlink::{Family, NetlinkSocket};

use crate::bandwidth::Bandwidth;
use crate::config::Names;
use crate::error::{Attempted as _, NetworkError};
use crate::leases::{Lease, Pools};
use crate::limits::MTU_DEFAULT;
use crate::prefix::Prefix;
use crate::rtnetlink::{self, Link};
use crate::{cable, ruleset};

/// Does once, in an empty network namespace of its own, what a service does: interfaces of both kinds, addresses,
/// routes, the whole table. The error names what the kernel refuses. Blocks for some milliseconds; needs root.
pub fn probe() -> Result<(), NetworkError> {
    namespace::in_new_network(try_everything).map_err(no_namespace)?
}

fn no_namespace(source: io::Error) -> NetworkError {
    NetworkError::System { operation: "make a network namespace to try things in", source }
}

fn try_everything() -> Result<(), NetworkError> {
    let names = Names::of("sampan-probe");
    let pools = Pools { ipv4: Prefix::around([10, 187, 0, 0].into(), 16), ipv6: None };
    let lease = Lease {
        sandbox: "probe".to_owned(),
        boot: String::new(),
        ipv4: [10, 187, 0, 2].into(),
        ipv6: None,
        ports: Vec::new(),
        bandwidth: Bandwidth::default(),
    };
    let socket = |family| {
        NetlinkSocket::open(family)
            .map_err(|source| NetworkError::System { operation: "open a netlink socket", source })
    };
    let route = socket(Family::Route)?;
    let anchor = route
        .pipeline(vec![rtnetlink::create_bridge(&names.anchor), rtnetlink::get_link(&names.anchor)])
        .attempted(|| "make an interface of kind bridge".to_owned())?
        .iter()
        .find_map(Link::read)
        .map_or(0, |link| link.index);
    let mut addresses = vec![rtnetlink::set_up(anchor)];
    addresses.extend(pools.gateways().into_iter().map(|gateway| rtnetlink::add_address(anchor, gateway, 16)));
    route.pipeline(addresses).attempted(|| "give an interface an address".to_owned())?;

    let (home, guest) =
        (namespace::current_network().map_err(no_namespace)?, namespace::new_network().map_err(no_namespace)?);
    cable::lay(home.as_fd(), &route, &names, &lease, &pools, MTU_DEFAULT, guest.as_fd())?;
    socket(Family::Netfilter)?
        .transaction(ruleset::write(&names, &pools, [lease].iter()))
        .attempted(|| "write an nf_tables table of family inet with NAT".to_owned())
}

#[cfg(test)]
mod tests {
    /// Needs root, like the service itself.
    #[test]
    fn this_kernel_can() {
        super::probe().expect("needs root and nf_tables");
    }
}
