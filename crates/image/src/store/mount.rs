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
use std::path::PathBuf;
use std::sync::PoisonError;

/// The name of the file system, which its backing-device records bear too.
const EROFS: &str = "erofs";
/// What images are made of.
const EROFS_BLOCK_BYTES: u32 = 4096;
/// `fsconfig(2)` takes 255 bytes of a string.
const FSCONFIG_STRING_BYTES_MAX: usize = 255;

impl Inner {
    pub(super) fn mount(&self, image: &Image) -> Result<OwnedFd, ImageError> {
        let failed = |source| ImageError::Mount { reference: image.reference.clone(), source };
        let mut mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mount) = mounts.get(&image.id) {
            return mount.as_fd().try_clone_to_owned().map_err(failed);
        }
        let record = self.catalog().record(&image.id).map(|record| (record.devices.clone(), record.acls));
        let (devices, acls) = record.ok_or_else(|| ImageError::Unknown { reference: image.reference.clone() })?;
        let mut files = vec![self.paths.metadata(&image.id)];
        files.extend(devices.iter().map(|diff_id| self.paths.blob(diff_id)));
        let mount = mount_image(&files, acls).map_err(failed)?;
        let given = mount.try_clone().map_err(failed)?;
        let kept = KeptMount::new(mount, self.config.mount_room.as_deref()).map_err(failed)?;
        mounts.insert(image.id, kept);
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
    let mut devices = Vec::with_capacity(files.len());
    for (nth, path) in files.iter().enumerate() {
        let backing = File::open(path)?;
        let options = LoopOptions { read_only: true, block_bytes: EROFS_BLOCK_BYTES };
        let device = LoopDevice::attach(backing.as_fd(), options)?;
        let tuned = if nth == 0 { device.read_ahead_as(&backing) } else { tune_complete_loop(&device, &backing) };
        if let Err(error) = tuned {
            tracing::debug!(path = %path.display(), %error, "a loop device is not as fast as it could be");
        }
        devices.push(device);
    }
    let names: Vec<PathBuf> = devices.iter().map(|device| device.path().to_owned()).collect();
    mount_names(&names, if acls { &[] } else { &["noacl"] })
}

/// Sets the loop device of a blob that is here as a whole to what reads it fastest. The metadata's only reads ahead: it is
/// read in single blocks, which its file's page cache turns into few large reads.
pub(crate) fn tune_complete_loop(device: &LoopDevice, backing: &File) -> io::Result<()> {
    device.read_ahead_as(backing)?;
    device.set_direct_io()
}

/// `flags` are those that a kernel may refuse and do without.
fn mount_names(names: &[PathBuf], flags: &[&str]) -> io::Result<OwnedFd> {
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
