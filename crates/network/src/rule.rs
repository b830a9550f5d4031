//! Rules of nf_tables: conditions, translations, verdicts.
//!
//! A rule is a list of expressions (linux/netfilter/nf_tables.h). Each loads registers, compares them or acts; one
//! that does not match ends the rule. Every method here adds the expressions of one condition, so a rule reads like
//! the line of `nft` that it is.

use sampan_sys::netlink::Message;

use crate::nftables::{NF_ACCEPT, NF_DROP, NFPROTO_IPV4, NFTA_DATA_VALUE, NFTA_LIST_ELEM};

/// `NFT_REG32_00` and `NFT_REG32_08`: where keys are put together, and where what a map gives back is put.
const KEY_REGISTER: u32 = 8;
const DATA_REGISTER: u32 = 16;
const REGISTER_BYTES: u32 = 4;

const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFT_RETURN: u32 = (-5i32).cast_unsigned();
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
/// `NFTA_FIB_F_*`
const FIB_SOURCE: u32 = 1;
const FIB_DESTINATION: u32 = 1 << 1;
const FIB_INTERFACE_IN: u32 = 1 << 3;
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;

type Expression = Box<dyn FnOnce(&mut Message)>;

/// `NFT_CMP_*`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compare {
    Equal = 0,
    NotEqual = 1,
}

/// `NFT_META_*`
#[derive(Clone, Copy, Debug)]
enum Meta {
    InterfaceIn = 6,
    InterfaceOut = 7,
    Family = 15,
    Transport = 16,
}

/// `NFT_PAYLOAD_*_HEADER`
#[derive(Clone, Copy, Debug)]
enum Layer {
    Network = 1,
    Transport = 2,
}

/// `NFT_CT_*`
#[derive(Clone, Copy, Debug)]
enum Connection {
    State = 0,
    Status = 2,
}

/// Which address of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// A rule under construction, condition by condition, then its verdict.
#[derive(Default)]
pub(crate) struct Rule {
    expressions: Vec<Expression>,
}

impl Rule {
    /// Writes the expressions into the list of a message.
    pub(crate) fn write(self, list: &mut Message) {
        for expression in self.expressions {
            expression(list);
        }
    }

    /// Only packets of this family (`NFPROTO_IPV4`, `NFPROTO_IPV6`).
    pub(crate) fn family(self, family: u8) -> Self {
        self.meta(Meta::Family, KEY_REGISTER).compare(Compare::Equal, vec![family])
    }

    /// Only packets that came in over an interface whose name begins so.
    pub(crate) fn came_from(self, compare: Compare, prefix: &str) -> Self {
        self.meta(Meta::InterfaceIn, KEY_REGISTER).compare(compare, prefix.as_bytes().to_vec())
    }

    /// Only packets that leave over an interface whose name begins so; a zero at the end makes it the whole name.
    pub(crate) fn goes_to(self, compare: Compare, prefix: &str) -> Self {
        self.meta(Meta::InterfaceOut, KEY_REGISTER).compare(compare, prefix.as_bytes().to_vec())
    }

    /// Only packets with this address inside (or outside) `network`, given with its mask of the same length.
    pub(crate) fn address(self, side: Side, compare: Compare, network: &[u8], mask: &[u8]) -> Self {
        let length = network.len();
        self.load_address(side, length, KEY_REGISTER)
            .bitwise(length as u32, mask.to_vec())
            .compare(compare, network.to_vec())
    }

    /// Only packets whose destination is the host itself (`RTN_LOCAL`).
    pub(crate) fn bound_for_this_host(self) -> Self {
        const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
        const RTN_LOCAL: u32 = 2;
        self.fib(NFT_FIB_RESULT_ADDRTYPE, FIB_DESTINATION).compare(Compare::Equal, RTN_LOCAL.to_ne_bytes().to_vec())
    }

    /// Only packets whose source the host would not reach over the interface that they came in by.
    pub(crate) fn with_a_foreign_source(self) -> Self {
        const NFT_FIB_RESULT_OIF: u32 = 1;
        self.fib(NFT_FIB_RESULT_OIF, FIB_SOURCE | FIB_INTERFACE_IN).compare(Compare::Equal, 0u32.to_ne_bytes().to_vec())
    }

    /// Only packets whose connection is known, or belongs to a known one.
    pub(crate) fn of_known_connections(self) -> Self {
        const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
        self.connection(Connection::State, ESTABLISHED_OR_RELATED)
    }

    /// Only packets whose destination was translated.
    pub(crate) fn of_translated_connections(self) -> Self {
        const IPS_DST_NAT: u32 = 1 << 5;
        self.connection(Connection::Status, IPS_DST_NAT)
    }

    /// Only packets whose source and destination address are in the set as a pair.
    pub(crate) fn address_pair_in(self, set: &'static str, address_bytes: u32) -> Self {
        let length = address_bytes as usize;
        self.load_address(Side::Source, length, KEY_REGISTER)
            .load_address(Side::Destination, length, KEY_REGISTER + address_bytes / REGISTER_BYTES)
            .lookup(set, None)
    }

    /// Looks protocol and destination port (behind the destination address, if `address_bytes` is not 0) up in a map,
    /// and sends the packet to the address and port found there.
    pub(crate) fn translate_by(mut self, map: &'static str, address_bytes: u32, family: u8) -> Self {
        let mut register = KEY_REGISTER;
        if address_bytes > 0 {
            self = self.load_address(Side::Destination, address_bytes as usize, register);
            register += address_bytes / REGISTER_BYTES;
        }
        let target_bytes: u32 = if family == NFPROTO_IPV4 { 4 } else { 16 };
        self.meta(Meta::Transport, register)
            .payload(Layer::Transport, 2, 2, register + 1)
            .lookup(map, Some(DATA_REGISTER))
            .translate(family, target_bytes)
    }

    /// Only packets beyond this rate. The bucket holds a second's worth and `burst_bytes`.
    pub(crate) fn over_rate(self, bytes_per_second: u64, burst_bytes: u32) -> Self {
        const NFTA_LIMIT_RATE: u16 = 1;
        const NFTA_LIMIT_UNIT: u16 = 2;
        const NFTA_LIMIT_BURST: u16 = 3;
        const NFTA_LIMIT_TYPE: u16 = 4;
        const NFTA_LIMIT_FLAGS: u16 = 5;
        const NFT_LIMIT_PKT_BYTES: u32 = 1;
        const NFT_LIMIT_F_INV: u32 = 1;
        const SECOND: u64 = 1;
        self.with("limit", move |data| {
            data.bytes(NFTA_LIMIT_RATE, &bytes_per_second.to_be_bytes())
                .bytes(NFTA_LIMIT_UNIT, &SECOND.to_be_bytes())
                .be32(NFTA_LIMIT_BURST, burst_bytes)
                .be32(NFTA_LIMIT_TYPE, NFT_LIMIT_PKT_BYTES)
                .be32(NFTA_LIMIT_FLAGS, NFT_LIMIT_F_INV);
        })
    }

    pub(crate) fn accept(self) -> Self {
        self.verdict(NF_ACCEPT)
    }

    pub(crate) fn drop(self) -> Self {
        self.verdict(NF_DROP)
    }

    /// Ends this chain for the packet.
    pub(crate) fn leave(self) -> Self {
        self.verdict(NFT_RETURN)
    }

    /// Gives the packet the host's address on the way that it takes.
    pub(crate) fn masquerade(self) -> Self {
        self.with("masq", |_data| {})
    }

    /// Tells the sender that there is no such host.
    pub(crate) fn reject_host(self) -> Self {
        const NFTA_REJECT_TYPE: u16 = 1;
        const NFTA_REJECT_ICMP_CODE: u16 = 2;
        const NFT_REJECT_ICMPX_UNREACH: u32 = 2;
        const NFT_REJECT_ICMPX_HOST_UNREACH: u8 = 2;
        self.with("reject", |data| {
            data.be32(NFTA_REJECT_TYPE, NFT_REJECT_ICMPX_UNREACH)
                .u8(NFTA_REJECT_ICMP_CODE, NFT_REJECT_ICMPX_HOST_UNREACH);
        })
    }

    fn with(mut self, name: &'static str, fill: impl FnOnce(&mut Message) + 'static) -> Self {
        const NFTA_EXPR_NAME: u16 = 1;
        const NFTA_EXPR_DATA: u16 = 2;
        self.expressions.push(Box::new(move |list| {
            list.nest(NFTA_LIST_ELEM, |expression| {
                expression.text(NFTA_EXPR_NAME, name).nest(NFTA_EXPR_DATA, fill);
            });
        }));
        self
    }

    fn meta(self, key: Meta, register: u32) -> Self {
        const NFTA_META_DREG: u16 = 1;
        const NFTA_META_KEY: u16 = 2;
        self.with("meta", move |data| {
            data.be32(NFTA_META_DREG, register).be32(NFTA_META_KEY, key as u32);
        })
    }

    fn compare(self, compare: Compare, value: Vec<u8>) -> Self {
        const NFTA_CMP_SREG: u16 = 1;
        const NFTA_CMP_OP: u16 = 2;
        const NFTA_CMP_DATA: u16 = 3;
        self.with("cmp", move |data| {
            data.be32(NFTA_CMP_SREG, KEY_REGISTER).be32(NFTA_CMP_OP, compare as u32).nest(NFTA_CMP_DATA, |operand| {
                operand.bytes(NFTA_DATA_VALUE, &value);
            });
        })
    }

    /// Leaves the bits of the key register that `mask` has.
    fn bitwise(self, length: u32, mask: Vec<u8>) -> Self {
        const NFTA_BITWISE_SREG: u16 = 1;
        const NFTA_BITWISE_DREG: u16 = 2;
        const NFTA_BITWISE_LEN: u16 = 3;
        const NFTA_BITWISE_MASK: u16 = 4;
        const NFTA_BITWISE_XOR: u16 = 5;
        self.with("bitwise", move |data| {
            let nothing = vec![0; mask.len()];
            data.be32(NFTA_BITWISE_SREG, KEY_REGISTER)
                .be32(NFTA_BITWISE_DREG, KEY_REGISTER)
                .be32(NFTA_BITWISE_LEN, length)
                .nest(NFTA_BITWISE_MASK, |value| {
                    value.bytes(NFTA_DATA_VALUE, &mask);
                })
                .nest(NFTA_BITWISE_XOR, |value| {
                    value.bytes(NFTA_DATA_VALUE, &nothing);
                });
        })
    }

    fn payload(self, layer: Layer, offset: u32, length: u32, register: u32) -> Self {
        const NFTA_PAYLOAD_DREG: u16 = 1;
        const NFTA_PAYLOAD_BASE: u16 = 2;
        const NFTA_PAYLOAD_OFFSET: u16 = 3;
        const NFTA_PAYLOAD_LEN: u16 = 4;
        self.with("payload", move |data| {
            data.be32(NFTA_PAYLOAD_DREG, register)
                .be32(NFTA_PAYLOAD_BASE, layer as u32)
                .be32(NFTA_PAYLOAD_OFFSET, offset)
                .be32(NFTA_PAYLOAD_LEN, length);
        })
    }

    /// Addresses stand at bytes 12 and 16 of an IPv4 header (RFC 791), 8 and 24 of an IPv6 one (RFC 8200).
    fn load_address(self, side: Side, length: usize, register: u32) -> Self {
        let offset = match (length, side) {
            (4, Side::Source) => 12,
            (4, Side::Destination) => 16,
            (_, Side::Source) => 8,
            (_, Side::Destination) => 24,
        };
        self.payload(Layer::Network, offset, length as u32, register)
    }

    fn fib(self, result: u32, fib_flags: u32) -> Self {
        const NFTA_FIB_DREG: u16 = 1;
        const NFTA_FIB_RESULT: u16 = 2;
        const NFTA_FIB_FLAGS: u16 = 3;
        self.with("fib", move |data| {
            data.be32(NFTA_FIB_DREG, KEY_REGISTER).be32(NFTA_FIB_RESULT, result).be32(NFTA_FIB_FLAGS, fib_flags);
        })
    }

    /// Compares bits of the connection's state; registers hold them in host byte order.
    fn connection(self, key: Connection, bits: u32) -> Self {
        const NFTA_CT_DREG: u16 = 1;
        const NFTA_CT_KEY: u16 = 2;
        self.with("ct", move |data| {
            data.be32(NFTA_CT_DREG, KEY_REGISTER).be32(NFTA_CT_KEY, key as u32);
        })
        .bitwise(REGISTER_BYTES, bits.to_ne_bytes().to_vec())
        .compare(Compare::NotEqual, vec![0; REGISTER_BYTES as usize])
    }

    /// A set lookup fails the rule when nothing is found; a map's finding goes to `result`.
    fn lookup(self, set: &'static str, result: Option<u32>) -> Self {
        const NFTA_LOOKUP_SET: u16 = 1;
        const NFTA_LOOKUP_SREG: u16 = 2;
        const NFTA_LOOKUP_DREG: u16 = 3;
        self.with("lookup", move |data| {
            data.text(NFTA_LOOKUP_SET, set).be32(NFTA_LOOKUP_SREG, KEY_REGISTER);
            if let Some(register) = result {
                data.be32(NFTA_LOOKUP_DREG, register);
            }
        })
    }

    /// Gives the packet this source address.
    pub(crate) fn send_as(self, family: u8, address: Vec<u8>) -> Self {
        const NFT_NAT_SNAT: u32 = 0;
        self.with("immediate", move |data| {
            data.be32(NFTA_IMMEDIATE_DREG, DATA_REGISTER).nest(NFTA_IMMEDIATE_DATA, |value| {
                value.bytes(NFTA_DATA_VALUE, &address);
            });
        })
        .with("nat", move |data| {
            data.be32(NFTA_NAT_TYPE, NFT_NAT_SNAT)
                .be32(NFTA_NAT_FAMILY, u32::from(family))
                .be32(NFTA_NAT_REG_ADDR_MIN, DATA_REGISTER);
        })
    }

    fn translate(self, family: u8, address_bytes: u32) -> Self {
        const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
        const NFT_NAT_DNAT: u32 = 1;
        self.with("nat", move |data| {
            data.be32(NFTA_NAT_TYPE, NFT_NAT_DNAT)
                .be32(NFTA_NAT_FAMILY, u32::from(family))
                .be32(NFTA_NAT_REG_ADDR_MIN, DATA_REGISTER)
                .be32(NFTA_NAT_REG_PROTO_MIN, DATA_REGISTER + address_bytes / REGISTER_BYTES);
        })
    }

    fn verdict(self, code: u32) -> Self {
        const NFT_REG_VERDICT: u32 = 0;
        self.with("immediate", move |data| {
            data.be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT).nest(NFTA_IMMEDIATE_DATA, |value| {
                value.nest(NFTA_DATA_VERDICT, |verdict| {
                    verdict.be32(NFTA_VERDICT_CODE, code);
                });
            });
        })
    }
}
