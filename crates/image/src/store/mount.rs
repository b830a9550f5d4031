//! The kernel's view of an image: EROFS over the metadata file, with the blobs as its devices.
//!
//! The files are mounted as they are where the kernel can (Linux 6.12 and later), their contents read past the page cache of
//! the files, so that memory holds them once, and ahead as far as the disk below reads. Else read-only loop devices stand
//! between, tuned as well as they can be, which go by themselves with the mount
//! (docs/decisions/0010-images-on-their-files.md).

use super::Inner;
use super::catalog::Image;
use crate::error::ImageError;
use rustix::mount::MountAttrFlags;
use sampan_sys::loop_device::{LoopDevice, LoopOptions};
use sampan_sys::mount::{FsContext, KeptMount};
use sampan_sys::read_ahead;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The name of the file system, which its backing-device records bear too.
const EROFS: &str = "erofs";
/// What images are made of.
const EROFS_BLOCK_BYTES: u32 = 4096;
/// `fsconfig(2)` takes 255 bytes of a string.
const FSCONFIG_STRING_BYTES_MAX: usize = 255;

impl Inner {
    pub(super) fn mount(self: &Arc<Self>, image: &Image) -> Result<OwnedFd, ImageError> {
        let failed = |source| ImageError::Mount { reference: image.reference.clone(), source };
        // The catalog's lock comes before that of the mounts.
        let record = self.catalog().record(&image.id).map(|record| (record.devices.clone(), record.acls));
        let mut mounts = self.mounts();
        if let Some(mount) = mounts.get(&image.id) {
            return mount.as_fd().try_clone_to_owned().map_err(failed);
        }
        let (devices, acls) = record.ok_or_else(|| ImageError::Unknown { reference: image.reference.clone() })?;
        let metadata = self.paths.metadata(&image.id);
        let mount = self.lazy.mount(&self.paths, &metadata, &devices, acls).map_err(failed)?;
        let given = mount.try_clone().map_err(failed)?;
        let kept = KeptMount::new(mount, self.config.mount_room.as_deref()).map_err(failed)?;
        mounts.insert(image.id, kept);
        drop(mounts);
        self.hold_mounts();
        if !self.is_whole(&image.id) {
            self.read_ahead_after_start(image.id);
        }
        Ok(given)
    }
}

/// Mounts metadata and blobs in the best way that this machine has.
pub(crate) fn mount_image(files: &[PathBuf], acls: bool) -> io::Result<OwnedFd> {
    match mount_files(files, acls) {
        Ok((mount, Ok(()))) => Ok(mount),
        Ok((mount, Err(error))) => {
            tracing::debug!(%error, "an image mounted on its files would read too little ahead");
            // A slow mount is better than none.
            Ok(mount_loops(files, acls).unwrap_or(mount))
        }
        Err(error) => {
            tracing::debug!(%error, "an image cannot be mounted on its files");
            mount_loops(files, acls)
        }
    }
}

/// The second result tells whether the mount reads ahead as far as the disk below does.
pub(crate) fn mount_files(files: &[PathBuf], acls: bool) -> io::Result<(OwnedFd, io::Result<()>)> {
    // Long paths are given by descriptor; the descriptors must live until the superblock is made.
    let mut open = Vec::new();
    let mut names = Vec::with_capacity(files.len());
    for path in files {
        if path.as_os_str().len() <= FSCONFIG_STRING_BYTES_MAX {
            names.push(path.clone());
            continue;
        }
        let file = File::open(path)?;
        names.push(PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())));
        open.push(file);
    }
    let metadata = File::open(files.first().ok_or(io::ErrorKind::InvalidInput)?)?;
    let flags: &[&str] = if acls { &["directio"] } else { &["directio", "noacl"] };
    let mount = || mount_names(&names, flags);
    match read_ahead::below(&metadata)? {
        Some(disk) => read_ahead::raise_made(EROFS, disk, mount),
        None => Ok((mount()?, Ok(()))),
    }
}

pub(crate) fn mount_loops(files: &[PathBuf], acls: bool) -> io::Result<OwnedFd> {
    let ways = std::iter::once(Reading::Together).chain(readings(files.get(1..).unwrap_or_default()));
    let devices = files.iter().zip(ways).map(|(path, reading)| attach(path, reading));
    let devices = devices.collect::<io::Result<Vec<_>>>()?;
    let names: Vec<PathBuf> = devices.iter().map(|device| device.path().to_owned()).collect();
    mount_names(&names, if acls { &[] } else { &["noacl"] })
}

/// How a file that is here as a whole is read through a loop device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Through its page cache, which turns many small reads into few large ones: metadata, small files.
    Together,
    /// Past its page cache, exactly what is wanted: large files.
    Alone,
}

/// How the devices of an image are read that stand for these blobs: where one comes twice, small files are on the first.
pub(super) fn readings<T: PartialEq>(blobs: &[T]) -> impl Iterator<Item = Reading> {
    let comes_again = |(nth, blob): (usize, &T)| blobs.iter().skip(nth + 1).any(|later| later == blob);
    blobs.iter().enumerate().map(move |numbered| if comes_again(numbered) { Reading::Together } else { Reading::Alone })
}

/// Sets the loop device of a file that is here as a whole to what reads it fastest.
pub(crate) fn tune_complete_loop(device: &LoopDevice, backing: &File, reading: Reading) -> io::Result<()> {
    device.read_ahead_as(backing)?;
    device.set_direct_io(reading == Reading::Alone)
}

/// A read-only loop device over a file that is here as a whole: the metadata, or a blob.
pub(super) fn attach(path: &Path, reading: Reading) -> io::Result<LoopDevice> {
    let backing = File::open(path)?;
    let options = LoopOptions { read_only: true, block_bytes: EROFS_BLOCK_BYTES, direct_io: false };
    let device = LoopDevice::attach(backing.as_fd(), options)?;
    if let Err(error) = tune_complete_loop(&device, &backing, reading) {
        tracing::debug!(path = %path.display(), %error, "a loop device is not as fast as it could be");
    }
    Ok(device)
}

/// `flags` are those that a kernel may refuse and do without.
pub(super) fn mount_names(names: &[PathBuf], flags: &[&str]) -> io::Result<OwnedFd> {
    let context = FsContext::open(EROFS)?;
    let (metadata, blobs) = names.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    context.set_string("source", metadata)?;
    for blob in blobs {
        context.set_string("device", blob)?;
    }
    context.set_flag("ro")?;
    for flag in flags {
        // - `noacl`: on an idmapped layer that may have ACLs, overlayfs leaves the fast path walk at every component
        //   (do_ovl_get_acl in fs/overlayfs/inode.c): a warm `find` takes a quarter longer. A kernel without them refuses.
        // - `directio`: the first kernels that mounted files knew no other way, and no name for it.
        if let Err(error) = context.set_flag(flag) {
            tracing::debug!(flag, %error, "EROFS knows nothing to switch");
        }
    }
    context.mount(MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV)
}
