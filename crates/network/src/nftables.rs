//! nf_tables requests, as the kernel takes them: tables, chains, sets, their elements, rules.
//!
//! Numbers and layouts: linux/netfilter/nf_tables.h. All integers in attributes are in network byte order.

use sampan_sys::netlink::{Attributes, Message, Reply, flags};

use crate::rule::Rule;

const SUBSYSTEM: u16 = 10 << 8;
const NEWTABLE: u16 = SUBSYSTEM;
const DELTABLE: u16 = SUBSYSTEM | 2;
const NEWCHAIN: u16 = SUBSYSTEM | 3;
const GETCHAIN: u16 = SUBSYSTEM | 4;
const DELCHAIN: u16 = SUBSYSTEM | 5;
const NEWRULE: u16 = SUBSYSTEM | 6;
const GETRULE: u16 = SUBSYSTEM | 7;
const DELRULE: u16 = SUBSYSTEM | 8;
const NEWSET: u16 = SUBSYSTEM | 9;
const NEWSETELEM: u16 = SUBSYSTEM | 12;
const DELSETELEM: u16 = SUBSYSTEM | 14;

/// `NFPROTO_*`
const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;
pub(crate) const NFPROTO_IPV4: u8 = 2;
pub(crate) const NFPROTO_IPV6: u8 = 10;

const NFT_SET_MAP: u32 = 0x8;

/// Where a chain hangs in the kernel's packet path (`NF_INET_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Prerouting = 0,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// What a chain is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChainKind {
    Filter,
    Nat,
}

/// A base chain whose policy is to accept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    pub(crate) kind: ChainKind,
    pub(crate) hook: Hook,
    pub(crate) priority: i32,
}

/// A set, or with `data_bytes` a map. Types are nft's own numbers, for its eyes only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) key_type: u32,
    pub(crate) key_bytes: u32,
    pub(crate) data: Option<(u32, u32)>,
}

/// One element; keys and data are put together of fields padded to four bytes each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    pub(crate) set: &'static str,
    pub(crate) key: Vec<u8>,
    pub(crate) data: Option<Vec<u8>>,
}

/// `struct nfgenmsg`
fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

pub(crate) fn add_table(table: &str) -> Message {
    const NFTA_TABLE_NAME: u16 = 1;
    let mut message = Message::new(NEWTABLE, flags::CREATE, &header(NFPROTO_INET));
    message.text(NFTA_TABLE_NAME, table);
    message
}

pub(crate) fn delete_table(table: &str) -> Message {
    const NFTA_TABLE_NAME: u16 = 1;
    let mut message = Message::new(DELTABLE, 0, &header(NFPROTO_INET));
    message.text(NFTA_TABLE_NAME, table);
    message
}

const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;

pub(crate) fn add_chain(table: &str, chain: &Chain) -> Message {
    let mut message = Message::new(NEWCHAIN, flags::CREATE, &header(NFPROTO_INET));
    message
        .text(NFTA_CHAIN_TABLE, table)
        .text(NFTA_CHAIN_NAME, chain.name)
        .nest(NFTA_CHAIN_HOOK, |hook| {
            hook.be32(NFTA_HOOK_HOOKNUM, chain.hook as u32).be32(NFTA_HOOK_PRIORITY, chain.priority.cast_unsigned());
        })
        .be32(NFTA_CHAIN_POLICY, NF_ACCEPT)
        .text(NFTA_CHAIN_TYPE, if chain.kind == ChainKind::Nat { "nat" } else { "filter" });
    message
}

/// A base chain, named like the interface, that sees what comes in over this interface before anything else does.
pub(crate) fn add_ingress_chain(table: &str, interface: &str) -> Message {
    const NFTA_HOOK_DEV: u16 = 3;
    const NF_INET_INGRESS: u32 = 5;
    let mut message = Message::new(NEWCHAIN, flags::CREATE, &header(NFPROTO_INET));
    message
        .text(NFTA_CHAIN_TABLE, table)
        .text(NFTA_CHAIN_NAME, interface)
        .nest(NFTA_CHAIN_HOOK, |hook| {
            hook.be32(NFTA_HOOK_HOOKNUM, NF_INET_INGRESS).be32(NFTA_HOOK_PRIORITY, 0).text(NFTA_HOOK_DEV, interface);
        })
        .be32(NFTA_CHAIN_POLICY, NF_ACCEPT)
        .text(NFTA_CHAIN_TYPE, "filter");
    message
}

/// Takes a chain away with its rules.
pub(crate) fn delete_chain(table: &str, chain: &str) -> Message {
    let mut message = Message::new(DELCHAIN, 0, &header(NFPROTO_INET));
    message.text(NFTA_CHAIN_TABLE, table).text(NFTA_CHAIN_NAME, chain);
    message
}

/// Table and name of a chain of family `inet`.
pub(crate) fn chain_name(reply: &Reply) -> Option<(String, String)> {
    let text = |kind| Some(String::from_utf8_lossy(reply.attribute(4, kind)?).trim_end_matches('\0').to_owned());
    let [family, ..] = reply.header::<4>();
    (family == NFPROTO_INET).then_some(())?;
    Some((text(NFTA_CHAIN_TABLE)?, text(NFTA_CHAIN_NAME)?))
}

/// Every chain of every family, for [`ForeignChain::read`].
pub(crate) fn get_chains() -> Message {
    Message::new(GETCHAIN, 0, &header(NFPROTO_UNSPEC))
}

/// A chain of anybody's that sees forwarded packets and drops what no rule accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForeignChain {
    /// `NFPROTO_*`
    pub(crate) family: u8,
    pub(crate) table: String,
    pub(crate) chain: String,
}

impl ForeignChain {
    /// The chain, if it is a base chain on the forward hook whose policy is to drop.
    pub(crate) fn read(reply: &Reply) -> Option<Self> {
        let text = |kind| {
            let value = reply.attribute(4, kind)?;
            Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned())
        };
        let be32 = |value: &[u8]| value.try_into().ok().map(u32::from_be_bytes);
        let hook = Attributes::of(reply.attribute(4, NFTA_CHAIN_HOOK)?).find(|(kind, _)| *kind == NFTA_HOOK_HOOKNUM)?.1;
        let drops = be32(reply.attribute(4, NFTA_CHAIN_POLICY)?)? == NF_DROP;
        let [family, ..] = reply.header::<4>();
        (be32(hook)? == Hook::Forward as u32 && drops).then_some(Self {
            family,
            table: text(NFTA_CHAIN_TABLE)?,
            chain: text(NFTA_CHAIN_NAME)?,
        })
    }
}

/// `id` tells sets of one transaction apart.
pub(crate) fn add_set(table: &str, set: &Set, id: u32) -> Message {
    const NFTA_SET_TABLE: u16 = 1;
    const NFTA_SET_NAME: u16 = 2;
    const NFTA_SET_FLAGS: u16 = 3;
    const NFTA_SET_KEY_TYPE: u16 = 4;
    const NFTA_SET_KEY_LEN: u16 = 5;
    const NFTA_SET_DATA_TYPE: u16 = 6;
    const NFTA_SET_DATA_LEN: u16 = 7;
    const NFTA_SET_ID: u16 = 10;
    let mut message = Message::new(NEWSET, flags::CREATE, &header(NFPROTO_INET));
    message
        .text(NFTA_SET_TABLE, table)
        .text(NFTA_SET_NAME, set.name)
        .be32(NFTA_SET_FLAGS, if set.data.is_some() { NFT_SET_MAP } else { 0 })
        .be32(NFTA_SET_KEY_TYPE, set.key_type)
        .be32(NFTA_SET_KEY_LEN, set.key_bytes)
        .be32(NFTA_SET_ID, id);
    if let Some((data_type, data_bytes)) = set.data {
        message.be32(NFTA_SET_DATA_TYPE, data_type).be32(NFTA_SET_DATA_LEN, data_bytes);
    }
    message
}

/// Adds elements that all belong to one set.
pub(crate) fn add_elements(table: &str, set: &str, elements: &[Element]) -> Message {
    elements_message(NEWSETELEM, flags::CREATE, table, set, elements)
}

pub(crate) fn delete_elements(table: &str, set: &str, elements: &[Element]) -> Message {
    elements_message(DELSETELEM, 0, table, set, elements)
}

fn elements_message(kind: u16, flags: u16, table: &str, set: &str, elements: &[Element]) -> Message {
    const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
    const NFTA_SET_ELEM_LIST_SET: u16 = 2;
    const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
    const NFTA_SET_ELEM_KEY: u16 = 1;
    const NFTA_SET_ELEM_DATA: u16 = 2;
    let mut message = Message::new(kind, flags, &header(NFPROTO_INET));
    message.text(NFTA_SET_ELEM_LIST_TABLE, table).text(NFTA_SET_ELEM_LIST_SET, set).nest(
        NFTA_SET_ELEM_LIST_ELEMENTS,
        |list| {
            for element in elements {
                list.nest(NFTA_LIST_ELEM, |item| {
                    item.nest(NFTA_SET_ELEM_KEY, |key| {
                        key.bytes(NFTA_DATA_VALUE, &element.key);
                    });
                    if let (NEWSETELEM, Some(data)) = (kind, &element.data) {
                        item.nest(NFTA_SET_ELEM_DATA, |value| {
                            value.bytes(NFTA_DATA_VALUE, data);
                        });
                    }
                });
            }
        },
    );
    message
}

pub(crate) const NFTA_LIST_ELEM: u16 = 1;
pub(crate) const NFTA_DATA_VALUE: u16 = 1;
pub(crate) const NF_DROP: u32 = 0;
pub(crate) const NF_ACCEPT: u32 = 1;

const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;

/// Puts a rule at the head of somebody else's chain, with a comment to know it by.
pub(crate) fn insert_rule(chain: &ForeignChain, rule: Rule, comment: &str) -> Message {
    let mut message = Message::new(NEWRULE, flags::CREATE, &header(chain.family));
    message.text(NFTA_RULE_TABLE, &chain.table).text(NFTA_RULE_CHAIN, &chain.chain).nest(
        NFTA_RULE_EXPRESSIONS,
        |list| {
            rule.write(list);
        },
    );
    message.bytes(NFTA_RULE_USERDATA, &comment_data(comment));
    message
}

pub(crate) fn get_rules(chain: &ForeignChain) -> Message {
    let mut message = Message::new(GETRULE, 0, &header(chain.family));
    message.text(NFTA_RULE_TABLE, &chain.table).text(NFTA_RULE_CHAIN, &chain.chain);
    message
}

pub(crate) fn delete_rule(chain: &ForeignChain, handle: u64) -> Message {
    let mut message = Message::new(DELRULE, 0, &header(chain.family));
    message
        .text(NFTA_RULE_TABLE, &chain.table)
        .text(NFTA_RULE_CHAIN, &chain.chain)
        .bytes(NFTA_RULE_HANDLE, &handle.to_be_bytes());
    message
}

/// The handle of a rule with exactly this comment.
pub(crate) fn handle_of_commented_rule(reply: &Reply, comment: &str) -> Option<u64> {
    let commented = reply.attribute(4, NFTA_RULE_USERDATA)? == comment_data(comment);
    let handle = reply.attribute(4, NFTA_RULE_HANDLE)?.try_into().ok().map(u64::from_be_bytes)?;
    commented.then_some(handle)
}

/// libnftnl's udata.h: type 0 is a comment; type and length take a byte each, the text ends with a zero.
fn comment_data(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).unwrap_or(u8::MAX);
    [&[0, length], comment.as_bytes(), &[0]].concat()
}

pub(crate) fn add_rule(table: &str, chain: &str, rule: Rule) -> Message {
    let mut message = Message::new(NEWRULE, flags::CREATE | flags::APPEND, &header(NFPROTO_INET));
    message.text(NFTA_RULE_TABLE, table).text(NFTA_RULE_CHAIN, chain).nest(NFTA_RULE_EXPRESSIONS, |list| {
        rule.write(list);
    });
    message
}
