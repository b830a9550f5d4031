//! Trees that cannot be written are refused by name, never bent.

use std::error::Error;

use sampan_erofs::{Fault, Inode, InodeId, Kind, Timestamp, Tree, WriteError, write, xattr_name_is_storable};

use crate::sample::{Sample, directory, extent, file, xattr};

fn refuse(sample: &Sample, path: &str, fault: Fault) {
    let expected = WriteError::Inode { path: path.into(), fault };
    assert_eq!(write(&sample.tree, &sample.devices), Err(expected));
}

fn refuse_inode(inode: Inode, fault: Fault) {
    let mut sample = Sample::new(&[4]);
    let usr = sample.add(sample.root(), "usr", directory());
    sample.add(usr, "thing", inode);
    refuse(&sample, "/usr/thing", fault);
}

#[test]
fn names() {
    for name in ["", ".", "..", "a/b", "a\0b"] {
        let mut sample = Sample::new(&[]);
        let etc = sample.add(sample.root(), "etc", directory());
        sample.add(etc, name, file(0, &[]));
        refuse(&sample, &format!("/etc/{name}"), Fault::Name);
    }
    let mut sample = Sample::new(&[]);
    sample.add(sample.root(), "n".repeat(256), file(0, &[]));
    refuse(&sample, &format!("/{}", "n".repeat(256)), Fault::Name);
    let mut sample = Sample::new(&[]);
    sample.add(sample.root(), "same", file(0, &[]));
    sample.add(sample.root(), "same", directory());
    refuse(&sample, "/same", Fault::DuplicateName);
}

#[test]
fn entries() {
    let mut sample = Sample::new(&[]);
    sample.link(sample.root(), "nowhere", InodeId(9));
    refuse(&sample, "/nowhere", Fault::Dangling);
    let mut sample = Sample::new(&[]);
    let a = sample.add(sample.root(), "a", directory());
    sample.link(a, "loop", a);
    refuse(&sample, "/a/loop", Fault::DirectoryLinkedTwice);
    let mut sample = Sample::new(&[]);
    sample.link(sample.root(), "root", sample.root());
    refuse(&sample, "/root", Fault::DirectoryLinkedTwice);
    assert_eq!(write(&Tree::new(file(0, &[])), &[]), Err(WriteError::RootNotDirectory));
}

#[test]
fn inodes() {
    refuse_inode(Inode { mode: 0o100_644, ..file(0, &[]) }, Fault::Mode);
    let mtime = Timestamp { seconds: 0, nanoseconds: 1_000_000_000 };
    refuse_inode(Inode { mtime, ..file(0, &[]) }, Fault::Time);
    refuse_inode(Inode::new(0, Kind::Symlink(Vec::new())), Fault::Target);
    refuse_inode(Inode::new(0, Kind::Symlink(vec![b'a'; 4096])), Fault::Target);
    refuse_inode(Inode::new(0, Kind::Symlink(b"a\0".to_vec())), Fault::Target);
    refuse_inode(Inode::new(0, Kind::CharDevice { major: 4096, minor: 0 }), Fault::DeviceNumber);
    refuse_inode(file(100, &[extent(0, 2, 0, 100)]), Fault::ExtentDevice);
}

#[test]
fn attributes() {
    let with = |xattrs| Inode { xattrs, ..file(0, &[]) };
    refuse_inode(with(vec![xattr("system.nfs4_acl", "")]), Fault::XattrName);
    refuse_inode(with(vec![xattr(&format!("user.{}", "n".repeat(251)), "")]), Fault::XattrName);
    refuse_inode(with(vec![xattr("user.a", ""), xattr("user.b", ""), xattr("user.a", "")]), Fault::XattrDuplicate);
    refuse_inode(with(vec![xattr("user.a", vec![0; 65_536])]), Fault::XattrValue);
    let many = (0..600).map(|number| xattr(&format!("user.{number}"), vec![0; 2000])).collect();
    refuse_inode(with(many), Fault::XattrTotal);
    for (name, storable) in [
        ("user.a", true),
        ("user.", false),
        ("security.capability", true),
        ("system.posix_acl_access", true),
        ("system.posix_acl_access2", false),
        ("com.apple.quarantine", false),
    ] {
        assert_eq!(xattr_name_is_storable(name.as_bytes()), storable, "{name}");
    }
}

#[test]
fn a_petabyte_of_holes_with_one_island() {
    let mut sample = Sample::new(&[1]);
    sample.add(sample.root(), "bomb", file(1 << 60, &[extent(1, 1, 0, 4096)]));
    assert_eq!(write(&sample.tree, &sample.devices), Err(WriteError::TooLarge));
}

#[test]
fn devices() {
    let mut sample = Sample::new(&[1]);
    sample.devices[0].tag = vec![b'a'; 65];
    assert_eq!(write(&sample.tree, &sample.devices), Err(WriteError::DeviceTag { device: 1 }));
    sample.devices[0].tag = vec![b'a'; 64];
    sample.devices[0].blocks = u32::MAX;
    assert_eq!(write(&sample.tree, &sample.devices), Err(WriteError::AddressSpace));
}

#[test]
fn the_message_and_its_cause_read_as_one_line() {
    let error = WriteError::Inode { path: "/usr/x".into(), fault: Fault::Mode };
    let line = format!("{error}: {}", error.source().unwrap());
    assert_eq!(line, "cannot store /usr/x in an image: the mode has bits outside 7777");
}
