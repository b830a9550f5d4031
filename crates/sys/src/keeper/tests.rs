//! Both sides against each other.

use super::*;
use std::io::{Read, Write};

/// A child of a parent that holds this.
fn child(kept: &KeptDescriptors) -> (OwnedFd, DescriptorKeeper) {
    let (ours, theirs) = socket::pair().expect("a pair");
    kept.hand_down(ours.as_fd()).expect("hand down");
    (ours, DescriptorKeeper::open(theirs).expect("take over"))
}

#[test]
fn what_a_killed_child_kept_reaches_the_next() {
    let mut kept = KeptDescriptors::default();
    let (parent, first) = child(&kept);
    assert!(first.take("pipe").is_empty(), "there was nobody before");
    let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
    first.keep("pipe", &[reader.as_fd(), writer.as_fd()]).expect("keep");
    first.keep("other", &[parent.as_fd()]).expect("keep");
    first.release("other").expect("release");
    // Dies before the parent has looked at its socket.
    drop(first);
    assert!(!kept.drain(parent.as_fd()).expect("drain"), "the child is gone");

    for _generation in 0..2 {
        let (_parent, next) = child(&kept);
        assert!(next.take("other").is_empty());
        let [theirs_read, theirs_write] = next.take("pipe").try_into().expect("two descriptors, in their order");
        std::fs::File::from(theirs_write).write_all(b"on").expect("write");
        let mut bytes = [0; 2];
        std::fs::File::from(theirs_read).read_exact(&mut bytes).expect("read");
        assert_eq!(&bytes, b"on");
        assert!(next.take("pipe").is_empty(), "taken twice");
    }
    writer.write_all(b"x").expect("our own copies are open still");
    reader.read_exact(&mut [0]).expect("read");
}

#[test]
fn a_name_holds_what_was_kept_last() {
    let mut kept = KeptDescriptors::default();
    let (parent, keeper) = child(&kept);
    let (reader, writer) = std::io::pipe().expect("a pipe");
    keeper.keep("a", &[reader.as_fd()]).expect("keep");
    keeper.keep("a", &[reader.as_fd(), writer.as_fd()]).expect("keep");
    assert!(kept.drain(parent.as_fd()).expect("drain"));
    assert_eq!(kept.kept.get("a").map(Vec::len), Some(2));
    keeper.release("a").expect("release");
    keeper.release("never-kept").expect("release");
    assert!(kept.drain(parent.as_fd()).expect("drain"));
    assert!(kept.is_empty());
}

#[test]
fn nonsense_is_refused_and_changes_nothing() {
    let mut kept = KeptDescriptors::default();
    let (parent, keeper) = child(&kept);
    for nonsense in [&b"K"[..], b"Kname", b"D", b"E", b"X", b"Dname/other", b"D\xff", &[b'D'; 100]] {
        socket::send(keeper.inner.socket.as_fd(), nonsense, &[]).expect("send");
        kept.drain(parent.as_fd()).expect_err("nonsense");
    }
    for number in 0..NAMES_MAX {
        keeper.keep(&format!("n{number}"), &[parent.as_fd()]).expect("keep");
    }
    assert!(kept.drain(parent.as_fd()).expect("drain"));
    keeper.keep("one-more", &[parent.as_fd()]).expect("send");
    kept.drain(parent.as_fd()).expect_err("more than are kept");
    assert_eq!(kept.kept.len(), NAMES_MAX);
    keeper.keep(&"n".repeat(NAME_BYTES_MAX + 1), &[parent.as_fd()]).expect_err("a long name");
}

#[test]
fn a_parent_that_says_nothing_is_an_error() {
    let (ours, theirs) = socket::pair().expect("a pair");
    drop(ours);
    let error = DescriptorKeeper::open(theirs).expect_err("there is no parent");
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}
