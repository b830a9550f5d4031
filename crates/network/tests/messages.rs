//! Netlink messages of any shape come back as they were put together, and any bytes are read without harm.

use proptest::prelude::*;
use sampan_sys::netlink::{Attributes, Message};

/// An attribute: bytes, or attributes.
#[derive(Clone, Debug)]
enum Tree {
    Leaf(u16, Vec<u8>),
    Branch(u16, Vec<Tree>),
}

fn trees() -> impl Strategy<Value = Vec<Tree>> {
    let kind = 1u16..0x3fff;
    let leaf =
        (kind.clone(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(kind, value)| Tree::Leaf(kind, value));
    let tree = leaf.prop_recursive(4, 40, 6, move |inner| {
        (kind.clone(), prop::collection::vec(inner, 0..6)).prop_map(|(kind, children)| Tree::Branch(kind, children))
    });
    prop::collection::vec(tree, 0..6)
}

fn put(message: &mut Message, trees: &[Tree]) {
    for tree in trees {
        match tree {
            Tree::Leaf(kind, value) => message.bytes(*kind, value),
            Tree::Branch(kind, children) => message.nest(*kind, |inner| put(inner, children)),
        };
    }
}

fn check(found: Attributes<'_>, expected: &[Tree]) -> Result<(), TestCaseError> {
    let found: Vec<_> = found.collect();
    prop_assert_eq!(found.len(), expected.len());
    for ((kind, value), tree) in found.into_iter().zip(expected) {
        match tree {
            Tree::Leaf(expected_kind, expected_value) => {
                prop_assert_eq!((kind, value), (*expected_kind, expected_value.as_slice()));
            }
            Tree::Branch(expected_kind, children) => {
                prop_assert_eq!(kind, *expected_kind);
                check(Attributes::of(value), children)?;
            }
        }
    }
    Ok(())
}

/// Walks every level that can be read as attributes; returns how many there were.
fn walk(bytes: &[u8], depth: u32) -> usize {
    if depth == 0 {
        return 0;
    }
    Attributes::of(bytes).map(|(_, value)| 1 + walk(value, depth - 1)).sum()
}

proptest! {
    #[test]
    fn attributes_come_back(header in prop::collection::vec(any::<u8>(), 0..20), trees in trees()) {
        let mut message = Message::new(16, 0, &header);
        put(&mut message, &trees);
        prop_assert_eq!(message.size_bytes() % 4, 0);
        let reply = message.to_reply();
        check(reply.attributes(header.len()), &trees)?;
    }

    #[test]
    fn any_bytes_are_read(bytes: Vec<u8>) {
        prop_assert!(walk(&bytes, 5) <= bytes.len() * 5);
    }
}
