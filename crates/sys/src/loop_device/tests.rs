//! Real loop devices. Needs root.

use super::*;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

const BYTES: usize = 1 << 16;

fn backing_file(folder: &Path, name: &str, fill: u8) -> (File, PathBuf) {
    let path = folder.join(name);
    std::fs::write(&path, vec![fill; BYTES]).expect("write");
    (File::open(&path).expect("open"), path)
}

#[test]
fn another_file_takes_its_place_under_an_open_device() {
    let folder = tempfile::tempdir().expect("a folder");
    let (first, first_path) = backing_file(folder.path(), "first", 1);
    let (second, second_path) = backing_file(folder.path(), "second", 2);
    let (short, _) = backing_file(folder.path(), "short", 3);
    let options = LoopOptions { read_only: true, block_bytes: 4096, direct_io: false };
    let device = LoopDevice::attach_as("a name", first.as_fd(), options).expect("needs root: attach");
    let behind = |path: &Path| find(|found| found == path).expect("find").len();
    assert_eq!((behind(&first_path), behind(&second_path)), (1, 0));

    let mut bytes = vec![0; 4096];
    device.change_backing(second.as_fd()).expect("change");
    device.file().read_exact_at(&mut bytes, 4096).expect("read");
    assert_eq!(bytes, [2; 4096]);
    assert_eq!((behind(&first_path), behind(&second_path)), (0, 1));
    assert_eq!(device.name().expect("its name"), "a name");
    LoopDevice::attach_as(&"n".repeat(64), first.as_fd(), options).expect_err("a longer name than fits");
    device.set_read_ahead(0).expect("no read-ahead");
    device.set_direct_io(true).expect("direct");
    device.file().read_exact_at(&mut bytes, 8192).expect("read");
    assert_eq!(bytes, [2; 4096]);

    std::fs::write(folder.path().join("short"), [3; 512]).expect("cut");
    let error = device.change_backing(short.as_fd()).expect_err("another size");
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    let file = OpenOptions::new().read(true).write(true).open(&first_path).expect("open");
    let writable = LoopDevice::attach(file.as_fd(), LoopOptions::default()).expect("attach");
    writable.change_backing(second.as_fd()).expect_err("it may be written");
    drop(device);
    assert_eq!(behind(&second_path), 0, "it is still attached");
}
