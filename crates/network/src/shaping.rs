//! Rates in force: token buckets on both ends of the cable, and a policer that the sandbox cannot reach.
//!
//! ```text
//! to the sandbox    token bucket on the host's end
//! from the sandbox  token bucket on the sandbox's own end: its senders wait in their own queues, nothing is lost
//!                   policer at the host's end, a chain of its own on that interface's ingress
//! ```
//! A sandbox whose root may change its network can take its own bucket away. It then meets the policer, which lets the
//! same rate through and drops the rest. The kernel's bucket there holds a second's worth, so that a sender who knows only
//! losses still comes to his rate, and a sandbox that waits in its own queue never meets it.
//!
//! The policers stand in a table of their own: rewriting the other one must not refill buckets.

use sampan_sys::netlink::{Message, Reply};

use crate::bandwidth::Rate;
use crate::config::Names;
use crate::limits::{
    BUCKET_BYTES_MAX, BUCKET_FRAMES_MIN, BUCKET_PER_SECOND, POLICED_BYTES_PER_SECOND_MAX, QUEUE_BYTES_MAX,
    QUEUE_BYTES_MIN, QUEUE_PER_SECOND, SEGMENTED_PACKET_BYTES_MAX,
};
use crate::nftables;
use crate::rtnetlink::TokenBucket;
use crate::rule::Rule;

/// What the kernel counts of a frame beside its IP packet.
const ETHERNET_HEADER_BYTES: u32 = 14;

/// The bucket that lets `rate` through in full-sized packets.
pub(crate) fn token_bucket(rate: Rate, mtu: u32) -> TokenBucket {
    let frame = u64::from(mtu + ETHERNET_HEADER_BYTES);
    let bytes = u128::from(rate.bytes_per_second()) * u128::from(frame) / u128::from(mtu.max(1));
    let bytes_per_second = u64::try_from(bytes).unwrap_or(u64::MAX);
    let burst = (bytes_per_second / BUCKET_PER_SECOND).clamp(frame * BUCKET_FRAMES_MIN, BUCKET_BYTES_MAX);
    let queue = (bytes_per_second / QUEUE_PER_SECOND).clamp(QUEUE_BYTES_MIN, QUEUE_BYTES_MAX);
    TokenBucket {
        bytes_per_second,
        burst_bytes: u32::try_from(burst).unwrap_or(u32::MAX),
        queue_bytes: u32::try_from(queue + burst).unwrap_or(u32::MAX),
    }
}

/// The requests of the transaction that polices what comes in over a host interface. `None` for rates beyond what the
/// kernel can count: no cable carries as much.
pub(crate) fn police(names: &Names, interface: &str, rate: Rate, mtu: u32) -> Option<Vec<Message>> {
    let bytes = rate.bytes_per_second();
    if bytes > POLICED_BYTES_PER_SECOND_MAX {
        return None;
    }
    let burst = token_bucket(rate, mtu).burst_bytes.saturating_add(SEGMENTED_PACKET_BYTES_MAX);
    let table = names.policers.as_str();
    Some(vec![
        nftables::add_table(table),
        nftables::add_ingress_chain(table, interface),
        nftables::add_rule(table, interface, Rule::default().over_rate(bytes, burst).drop()),
    ])
}

/// The requests that end it; refused where there is none.
pub(crate) fn stop_policing(names: &Names, interface: &str) -> Vec<Message> {
    vec![nftables::delete_chain(&names.policers, interface)]
}

/// The request that takes the table of policers away; refused where there is none.
pub(crate) fn remove(names: &Names) -> Vec<Message> {
    vec![nftables::delete_table(&names.policers)]
}

/// The interface that a chain of the dump polices, if it is one of ours.
pub(crate) fn policed(names: &Names, reply: &Reply) -> Option<String> {
    let (table, chain) = nftables::chain_name(reply)?;
    (table == names.policers).then_some(chain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_some_milliseconds_and_never_less_than_frames() {
        let bucket = |bits| token_bucket(Rate::from_bits_per_second(bits).unwrap(), 1500);
        let fast = bucket(1_000_000_000);
        assert_eq!(fast.bytes_per_second, 126_166_666);
        assert_eq!(fast.burst_bytes, 1_261_666);
        let slow = bucket(1_000);
        assert!(slow.burst_bytes >= 2 * 1514 && u64::from(slow.queue_bytes) >= QUEUE_BYTES_MIN);
        let most = bucket(crate::limits::BITS_PER_SECOND_MAX);
        assert!(u64::from(most.burst_bytes) <= BUCKET_BYTES_MAX);
    }
}
