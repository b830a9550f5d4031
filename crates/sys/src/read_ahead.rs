//! How far is read ahead, in KiB: of disks, and of file systems that stand on no disk of their own.
//!
//! What a mapped file's fault or a sequential reader brings in at once is bounded by its file system's *backing-device record*.
//! File systems on a disk share the disk's record. Others have one of their own, which begins with 128 KiB and bears no more
//! than the file system's type and a number that the kernel tells nobody. Kernel interfaces:
//! `Documentation/ABI/testing/sysfs-class-bdi`, `sysfs-block`, and `super_setup_bdi` in `fs/super.c`.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const RECORDS: &str = "/sys/class/bdi";

/// Held while a record is told by its being new.
static MAKING: Mutex<()> = Mutex::new(());

/// How far the disk below a file reads ahead; `None` where its file system names no disk.
pub fn below(file: &File) -> io::Result<Option<u64>> {
    of_disk(file.metadata()?.dev()).map(|path| kib(&path)).transpose()
}

/// Has a disk read ahead at least as far as this.
pub(crate) fn raise_disk(device: u64, least: u64) -> io::Result<()> {
    raise(&of_disk(device).ok_or(io::ErrorKind::NotFound)?, least)
}

/// Makes something, and has the file systems of that type that are new then read ahead at least as far as this. Others that
/// somebody makes at the same time read ahead as far, which harms nobody. The second result is that of the raising.
pub fn raise_made<T>(
    filesystem: &str,
    least: u64,
    make: impl FnOnce() -> io::Result<T>,
) -> io::Result<(T, io::Result<()>)> {
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let before = records(filesystem);
    let made = make()?;
    let raised = before.and_then(|before| {
        let mut new = records(filesystem)?.into_iter().filter(|name| !before.contains(name)).peekable();
        new.peek().ok_or(io::ErrorKind::NotFound)?;
        new.try_for_each(|name| raise(&Path::new(RECORDS).join(name).join("read_ahead_kb"), least))
    });
    Ok((made, raised))
}

/// The records of file systems of that type, by name.
fn records(filesystem: &str) -> io::Result<HashSet<OsString>> {
    let prefix = format!("{filesystem}-");
    let names = fs::read_dir(RECORDS)?.map(|entry| Ok(entry?.file_name()));
    names.filter(|name| name.as_ref().map_or(true, |name| name.to_string_lossy().starts_with(&prefix))).collect()
}

/// The setting of a disk, or of the whole disk where the number is a partition's.
fn of_disk(device: u64) -> Option<PathBuf> {
    let node = format!("/sys/dev/block/{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let settings = ["", "/.."].map(|disk| PathBuf::from(format!("{node}{disk}/queue/read_ahead_kb")));
    settings.into_iter().find(|path| path.exists())
}

fn raise(setting: &Path, least: u64) -> io::Result<()> {
    if kib(setting)? < least { fs::write(setting, least.to_string()) } else { Ok(()) }
}

fn kib(setting: &Path) -> io::Result<u64> {
    fs::read_to_string(setting)?.trim().parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_file_system_has_nothing_to_raise() {
        let (made, raised) = raise_made("nonesuch", 1, || Ok(7)).expect("it is made");
        assert_eq!(made, 7);
        assert_eq!(raised.expect_err("no record is new").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_system_without_a_disk_names_none() {
        assert_eq!(below(&File::open("/proc/version").expect("procfs")).expect("its number"), None);
    }

    #[test]
    fn a_loop_device_reads_ahead_as_far_as_asked() {
        let control = File::open("/dev/loop-control");
        if !rustix::process::geteuid().is_root() || control.is_err() {
            eprintln!("SKIPPED: loop devices need root and /dev/loop-control");
            return;
        }
        let backing = tempfile::tempfile().expect("a file");
        backing.set_len(1 << 20).expect("room");
        let options = crate::loop_device::LoopOptions { read_only: true, block_bytes: 4096 };
        let device =
            crate::loop_device::LoopDevice::attach(std::os::fd::AsFd::as_fd(&backing), options).expect("attach");
        let number = device.file().metadata().expect("its number").rdev();
        let setting = of_disk(number).expect("its setting");
        let asked = kib(&setting).expect("KiB") + 4;
        raise_disk(number, asked).expect("raise");
        assert_eq!(kib(&setting).expect("KiB"), asked);
        raise_disk(number, 4).expect("nothing is lowered");
        assert_eq!(kib(&setting).expect("KiB"), asked);
    }
}
