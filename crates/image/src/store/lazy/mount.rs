//! Mounting an image some of whose layers are still arriving.

use super::super::Inner;
use super::super::mount::{Reading, attach, mount_image, mount_names, readings};
use super::super::paths::Paths;
use super::Lazy;
use crate::lazy::device::{LazyDevice, survivors};
use crate::lazy::limits::{ARRIVING_READ_AHEAD_KIB, START_MAX};
use sampan_kit::error_chain::ErrorChain;
use sampan_oci::digest::Digest;
use sampan_sys::loop_device::{self, LoopDevice};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

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
        let metadata = attach(metadata, Reading::Together)?;
        // The whole file system reads ahead as its first device does; a start would get what it does not want.
        metadata.set_read_ahead(0)?;
        let mut names = vec![metadata.path().to_owned()];
        let (mut whole, mut lazy, mut left) = (vec![metadata], Vec::new(), HashMap::new());
        for ((served, blob), reading) in arriving.iter().zip(blobs()).zip(readings(devices)) {
            match served.as_ref().and_then(|served| Some((served.layer.number, served.file.as_ref()?))) {
                Some((number, file)) => {
                    let left = match left.entry(number) {
                        Entry::Occupied(found) => found.into_mut(),
                        Entry::Vacant(place) => place.insert(survivors(files, number).map_err(io::Error::other)?),
                    };
                    let device = LazyDevice::attach(left, file, reading).map_err(io::Error::other)?;
                    names.push(device.path().to_owned());
                    lazy.push(device);
                }
                None => {
                    let device = attach(&blob, reading)?;
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
    /// Has a mounted image that is still arriving read ahead when its start is over. What is read then comes in any case, sooner
    /// or later, and a request for one page costs as much as one for many.
    pub(crate) fn read_ahead_after_start(self: &Arc<Self>, image: Digest) {
        let store = Arc::downgrade(self);
        self.lazy.around.runtime.spawn(async move {
            tokio::time::sleep(START_MAX).await;
            let Some(inner) = store.upgrade() else { return };
            let set = tokio::task::spawn_blocking(move || inner.read_ahead_while_arriving(&image)).await;
            if let Ok(Err(error)) = set {
                tracing::debug!(%image, %error, "an image that is arriving is read page by page");
            }
        });
    }

    /// Files that are opened from now on read ahead a little, unless the image is whole.
    pub(crate) fn read_ahead_while_arriving(&self, image: &Digest) -> io::Result<()> {
        let _one = self.lazy.read_ahead.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever finds it whole sets more, then or later.
        if self.is_whole(image) {
            return Ok(());
        }
        self.metadata_devices(image)?.iter().try_for_each(|device| device.set_read_ahead(ARRIVING_READ_AHEAD_KIB))
    }

    /// Lets a file system whose layers have all arrived read ahead as far as the disk below its metadata does: files that are
    /// opened from now on.
    pub(crate) fn read_ahead_again(&self, image: &Digest) -> io::Result<()> {
        let _one = self.lazy.read_ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let backing = File::open(self.paths.metadata(image))?;
        self.metadata_devices(image)?.iter().try_for_each(|device| device.read_ahead_as(&backing))
    }

    /// The same for all that are here and mounted: the service before this one may have been killed when one had just arrived.
    pub(crate) fn read_ahead_where_whole(&self) -> io::Result<()> {
        let mounted: HashSet<PathBuf> = loop_device::backing_files()?.into_iter().collect();
        let images = self.catalog().ids();
        let is_meant = |image: &Digest| mounted.contains(&self.paths.metadata(image)) && self.is_whole(image);
        images.iter().filter(|image| is_meant(image)).try_for_each(|image| self.read_ahead_again(image))
    }

    /// The first devices of an image's mounts, by which its file systems read ahead.
    fn metadata_devices(&self, image: &Digest) -> io::Result<Vec<LoopDevice>> {
        let metadata = self.paths.metadata(image);
        loop_device::find(|path| path == metadata)
    }

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
