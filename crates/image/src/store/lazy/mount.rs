//! Mounting an image some of whose layers are still arriving.

use super::super::Inner;
use super::super::mount::{attach, mount_image, mount_names};
use super::super::paths::Paths;
use super::Lazy;
use crate::lazy::device::LazyDevice;
use sampan_kit::error_chain::ErrorChain;
use sampan_oci::digest::Digest;
use sampan_sys::loop_device;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

/// Lets a file system whose layers have all arrived read ahead, as far as the disk below its metadata does: files that are
/// opened from now on.
pub(super) fn read_ahead_again(metadata: &Path) -> io::Result<()> {
    let backing = File::open(metadata)?;
    for device in loop_device::find(|path| path == metadata)? {
        device.read_ahead_as(&backing)?;
    }
    Ok(())
}

impl Lazy {
    /// A detached mount of metadata and blobs. Where a layer is still arriving, its device reads over FUSE, and all others are
    /// block devices, too: the kernel takes no mixture.
    pub(crate) fn mount(&self, paths: &Paths, metadata: &Path, devices: &[Digest], acls: bool) -> io::Result<OwnedFd> {
        let _shared = self.switching.read().unwrap_or_else(PoisonError::into_inner);
        let arriving: Vec<_> = devices.iter().map(|diff_id| self.get(diff_id)).collect();
        let blobs = || devices.iter().map(|diff_id| paths.blob(diff_id));
        let Some(files) = self.files.as_ref().filter(|_| arriving.iter().any(Option::is_some)) else {
            let files: Vec<PathBuf> = std::iter::once(metadata.to_owned()).chain(blobs()).collect();
            return mount_image(&files, acls);
        };
        let metadata = attach(metadata, true)?;
        // The whole file system reads ahead as its first device does; here that would fetch what nobody wants.
        metadata.set_read_ahead(0)?;
        let mut names = vec![metadata.path().to_owned()];
        let (mut whole, mut lazy) = (vec![metadata], Vec::new());
        for (served, blob) in arriving.iter().zip(blobs()) {
            match served.as_ref().and_then(|served| Some((served.layer.number, served.file.as_ref()?))) {
                Some((number, file)) => {
                    let device = LazyDevice::attach(files, number, file).map_err(io::Error::other)?;
                    names.push(device.path().to_owned());
                    lazy.push(device);
                }
                None => {
                    let device = attach(&blob, false)?;
                    names.push(device.path().to_owned());
                    whole.push(device);
                }
            }
        }
        // From here on the mount holds the devices.
        mount_names(&names, if acls { &[] } else { &["noacl"] })
    }
}

impl Inner {
    /// Has the mounts of images that are still arriving held beyond the end of this process; to be called when one is made, and
    /// when an image is whole or goes.
    pub(crate) fn hold_mounts(&self) {
        let Some(files) = &self.lazy.files else { return };
        let mounted: Vec<Digest> = self.mounts().keys().copied().collect();
        let arriving: Vec<Digest> = mounted.into_iter().filter(|image| !self.is_whole(image)).collect();
        let mounts = self.mounts();
        let held: Vec<_> = arriving.iter().filter_map(|image| Some(mounts.get(image)?.as_fd())).collect();
        if let Err(error) = files.hold(&held) {
            tracing::warn!(error = %ErrorChain(&error), "the supervisor does not hold the mounts of incomplete images");
        }
    }
}
