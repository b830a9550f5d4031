//! Bytes that no writer made: the reader says no, or gives a tree, and never panics.

use proptest::collection::vec;
use proptest::prelude::*;
use sampan_erofs::{Inode, Kind, ReadError, read, reseal, write};

use crate::sample::{BLOCK, Sample, directory, extent, file, xattr};

/// A small image with a bit of everything.
fn image() -> Vec<u8> {
    let mut sample = Sample::new(&[8, 8]);
    let shared = vec![xattr("security.selinux", "system_u:object_r:usr_t:s0"), xattr("user.b", [3; 9])];
    for number in 0..6 {
        let parent = sample.add(sample.root(), format!("d{number}"), directory());
        let flat = file(5000, &[extent(0, 1, number, 5000)]);
        let flat = sample.add(parent, "flat", Inode { xattrs: shared.clone(), ..flat });
        sample.link(sample.root(), format!("hard{number}"), flat);
        let pieces = [extent(1, 2, number, BLOCK), extent(3, 1, 0, 10)];
        sample.add(parent, "pieces", Inode { uid: 1 << 20, ..file(3 * BLOCK + 10, &pieces) });
        sample.add(parent, "link", Inode::new(0o777, Kind::Symlink(b"../d1/flat".to_vec())));
    }
    for number in 0..200 {
        let name = format!("{number:050}");
        sample.add(sample.root(), name, Inode::new(0o600, Kind::CharDevice { major: 1, minor: number }));
    }
    write(&sample.tree, &sample.devices).unwrap()
}

#[test]
fn what_is_not_an_image_is_named() {
    assert_eq!(read(&[]), Err(ReadError::Truncated { length: 0, needed: 1028 }));
    assert_eq!(read(&[0; 8192]), Err(ReadError::NotErofs));
    let mut image = image();
    image[2000] ^= 1;
    assert!(matches!(read(&image), Err(ReadError::Checksum { .. })));
    reseal(&mut image);
    image.truncate(image.len() - 4096);
    let what = "the number of blocks differs from the length of the image";
    assert_eq!(read(&image), Err(ReadError::Superblock { what }));
}

#[test]
fn every_truncation_is_an_error() {
    let image = image();
    for length in 0..image.len() {
        assert!(read(&image[..length]).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_images_do_not_panic(
        changes in vec((any::<prop::sample::Index>(), prop_oneof![any::<u8>(), Just(0), Just(255)]), 1..12),
        nearby in any::<prop::sample::Index>(),
    ) {
        thread_local!(static IMAGE: Vec<u8> = image());
        let mut image = IMAGE.with(Clone::clone);
        // Half of the changes hit one small window, so that fields of one structure change together.
        let window = 1024 + nearby.index(image.len() - 1024 - 256);
        for (number, (index, value)) in changes.into_iter().enumerate() {
            let position = if number % 2 == 0 { window + index.index(256) } else { 1024 + index.index(image.len() - 1024) };
            image[position] = value;
        }
        reseal(&mut image);
        // What is still a tree must be one that can be written.
        if let Ok(contents) = read(&image) {
            prop_assert!(write(&contents.tree, &contents.devices).is_ok());
        }
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(mut bytes in vec(any::<u8>(), 4096..8192)) {
        bytes[1024..1028].copy_from_slice(&0xE0F5_E1E2_u32.to_le_bytes());
        reseal(&mut bytes);
        prop_assert!(read(&bytes).is_err());
    }
}
