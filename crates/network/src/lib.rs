//! Addresses, routed veth pairs, NAT and published ports over netlink and nftables
