//! Forgetting datagram flows that would go past a new translation, or on to a sandbox that is gone.
//!
//! The kernel decides about translation once per flow, and a flow of datagrams lives as long as its sender goes on.
//! Who sends to a published UDP port before it is published, or across a change of sandbox, would never be heard; so
//! those flows are deleted, and the next datagram starts anew. TCP needs nothing of the kind: its senders notice.
//!
//! Numbers and layouts: linux/netfilter/nfnetlink_conntrack.h. Dumps are filtered in the kernel (since 5.8).

use std::net::IpAddr;

use sampan_sys::netlink::{Attributes, Message, NetlinkError, NetlinkSocket, Reply};

use crate::port::Protocol;
use crate::rtnetlink::{AF_INET, AF_INET6};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const NFGENMSG_BYTES: usize = 4;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// net/netfilter/nf_internals.h: compare the protocol and the destination port.
const FILTER_PROTOCOL_AND_DESTINATION_PORT: u32 = 1 << 3 | 1 << 5;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const IPS_SEEN_REPLY: u32 = 1 << 1;

/// Deletes the UDP flows to `port` that nobody answers untranslated, or that are translated to one of `targets`.
pub(crate) fn forget_udp(socket: &NetlinkSocket, port: u16, targets: &[IpAddr]) -> Result<usize, NetlinkError> {
    let mut forgotten = 0;
    for family in [AF_INET, AF_INET6] {
        let mut stale = Vec::new();
        socket.dump(flows_to(family, port), |reply| {
            if let Some(flow) = Flow::read(reply)
                && flow.is_stale(targets)
                && let Some(request) = delete(family, reply)
            {
                stale.push(request);
            }
        })?;
        forgotten += stale.len();
        // One by one, as each may have ended by itself in the meantime.
        for request in stale {
            match socket.call(request) {
                Err(error) if !error.is(rustix::io::Errno::NOENT) => return Err(error),
                _ => {}
            }
        }
    }
    Ok(forgotten)
}

fn flows_to(family: u8, port: u16) -> Message {
    let mut message = Message::new(GET, 0, &[family, 0, 0, 0]);
    message
        .nest(CTA_TUPLE_ORIG, |tuple| {
            tuple.nest(CTA_TUPLE_PROTO, |transport| {
                transport.u8(CTA_PROTO_NUM, Protocol::Udp.number()).bytes(CTA_PROTO_DST_PORT, &port.to_be_bytes());
            });
        })
        .nest(CTA_FILTER, |filter| {
            filter.u32(CTA_FILTER_ORIG_FLAGS, FILTER_PROTOCOL_AND_DESTINATION_PORT).u32(CTA_FILTER_REPLY_FLAGS, 0);
        });
    message
}

/// A flow is deleted by its own first direction and its id.
fn delete(family: u8, flow: &Reply) -> Option<Message> {
    let tuple = flow.attribute(NFGENMSG_BYTES, CTA_TUPLE_ORIG)?;
    let id = flow.attribute(NFGENMSG_BYTES, CTA_ID)?;
    let mut message = Message::new(DELETE, 0, &[family, 0, 0, 0]);
    message
        .nest(CTA_TUPLE_ORIG, |nested| {
            nested.raw(tuple);
        })
        .bytes(CTA_ID, id);
    Some(message)
}

#[derive(Debug, PartialEq, Eq)]
struct Flow {
    asked: IpAddr,
    answering: IpAddr,
    answered: bool,
}

impl Flow {
    fn read(reply: &Reply) -> Option<Self> {
        let tuple = |kind| reply.attribute(NFGENMSG_BYTES, kind);
        let status = u32::from_be_bytes(reply.attribute(NFGENMSG_BYTES, CTA_STATUS)?.try_into().ok()?);
        Some(Self {
            asked: address(tuple(CTA_TUPLE_ORIG)?, [2, 4])?,
            answering: address(tuple(CTA_TUPLE_REPLY)?, [1, 3])?,
            answered: status & IPS_SEEN_REPLY != 0,
        })
    }

    fn is_stale(&self, targets: &[IpAddr]) -> bool {
        targets.contains(&self.answering) || (self.answering == self.asked && !self.answered)
    }
}

/// An address of a tuple: `CTA_IP_V4_SRC` 1, `CTA_IP_V4_DST` 2, `CTA_IP_V6_SRC` 3, `CTA_IP_V6_DST` 4.
fn address(tuple: &[u8], kinds: [u16; 2]) -> Option<IpAddr> {
    let addresses = Attributes::of(tuple).find(|(kind, _)| *kind == CTA_TUPLE_IP)?.1;
    let value = Attributes::of(addresses).find(|(kind, _)| kinds.contains(kind))?.1;
    <[u8; 4]>::try_from(value).map(IpAddr::from).or_else(|_not_ipv4| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
}
