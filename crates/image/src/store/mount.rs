//! The kernel's view of an image: EROFS over the metadata file, with the blobs as its devices.
//!
//! Read-only loop devices stand between, which go by themselves with the mount: a file-backed mount (Linux 6.12 and later)
//! reads ahead 128 KiB where the disk below does megabytes, and random reads through it took up to nine times as long
//! (docs/decisions/0009-images-over-loop-devices.md). Where a machine has no loop devices, files are mounted as they are.

use super::Inner;
use super::catalog::Image;
use crate::error::ImageError;
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use sampan_sys::loop_device::{LoopDevice, LoopOptions};
use sampan_sys::mount::{FsContext, KeptMount, os_error};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::PoisonError;

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

/// Mounts metadata and blobs in the way that this machine has.
pub(crate) fn mount_image(files: &[PathBuf], acls: bool) -> io::Result<OwnedFd> {
    mount_loops(files, acls).or_else(|error| match os_error(&error).map(Errno::from_raw_os_error) {
        // What a machine says that has no loop driver, or keeps it from this service.
        Some(Errno::NOENT | Errno::NXIO | Errno::NODEV | Errno::PERM | Errno::ACCESS) => mount_files(files, acls),
        _ => Err(error),
    })
}

fn mount_files(files: &[PathBuf], acls: bool) -> io::Result<OwnedFd> {
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
    mount_names(&names, acls)
}

pub(crate) fn mount_loops(files: &[PathBuf], acls: bool) -> io::Result<OwnedFd> {
    let mut devices = Vec::with_capacity(files.len());
    for path in files {
        let backing = File::open(path)?;
        let options = LoopOptions { read_only: true, direct_io: false };
        let device = LoopDevice::attach(backing.as_fd(), options)?;
        if let Err(error) = device.read_ahead_as(&backing) {
            tracing::debug!(path = %path.display(), %error, "a loop device keeps its own read-ahead");
        }
        devices.push(device);
    }
    let names: Vec<PathBuf> = devices.iter().map(|device| device.path().to_owned()).collect();
    mount_names(&names, acls)
}

fn mount_names(names: &[PathBuf], acls: bool) -> io::Result<OwnedFd> {
    let context = FsContext::open("erofs")?;
    let (metadata, blobs) = names.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    context.set_string("source", metadata)?;
    for blob in blobs {
        context.set_string("device", blob)?;
    }
    context.set_flag("ro")?;
    if !acls && let Err(error) = context.set_flag("noacl") {
        // On an idmapped layer that may have ACLs, overlayfs leaves the fast path walk at every component
        // (do_ovl_get_acl in fs/overlayfs/inode.c): a warm `find` takes a quarter longer. A kernel without them refuses.
        tracing::debug!(%error, "EROFS knows no ACLs to switch off");
    }
    context.mount(MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV)
}
