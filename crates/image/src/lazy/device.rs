//! Loop devices over incomplete blobs, and their way to local files.
//!
//! ```text
//!  EROFS ── loop device ── direct I/O ──▶ file over FUSE      while incomplete
//!                      └── LOOP_CHANGE_FD ──▶ the local blob  once complete, under the live mount
//! ```
//!
//! A layer with small and large files has two of them, which bear in the kernel how they are to be read in the end.
//!
//! - **Direct I/O.** A loop device that reads through the page cache of the file behind it does so in one worker: a read that
//!   waits for the network would hold up every other one of that blob. With direct I/O reads are under way side by side, and
//!   FUSE keeps no pages of its own ([decision 11](../../../../docs/decisions/0011-lazy-files.md)).
//! - **Found again.** The kernel tells which file is behind a device, also when that file's FUSE connection is dead. Devices are
//!   shared by every mount of the same blob, whichever service made them, and go by themselves with the last.
//! - **Concurrency.** Changing what is behind a device waits for the reads that are under way: never do it on a thread that
//!   answers them.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use sampan_sys::loop_device::{self, LoopDevice, LoopOptions};

use super::connection::{FuseError, LazyFiles};
use crate::store::Reading;

/// The names of devices for small files, and for all others.
const TOGETHER: &str = "sampan-together";
const ALONE: &str = "sampan-alone";

/// A read-only loop device over a file of [`LazyFiles`]. The kernel detaches it when this and every mount of it are gone.
#[derive(Debug)]
pub(crate) struct LazyDevice {
    device: LoopDevice,
}

impl LazyDevice {
    /// A device that is to be read so once the layer is complete: one of those that are `left` ([`survivors`]), or a new one. `file`
    /// is what [`LazyFiles::add`] opened. To be called after [`LazyFiles::resume`].
    pub(crate) fn attach(left: &mut Vec<LoopDevice>, file: &File, reading: Reading) -> Result<Self, FuseError> {
        let readings = left.iter().map(reading_of).collect::<Result<Vec<_>, _>>()?;
        if let Some(nth) = readings.iter().position(|found| *found == reading) {
            return Ok(Self { device: left.swap_remove(nth) });
        }
        let options = LoopOptions { read_only: true, block_bytes: 4096, direct_io: true };
        let name = if reading == Reading::Together { TOGETHER } else { ALONE };
        let device = LoopDevice::attach_as(name, file.as_fd(), options).map_err(FuseError::device("attach the"))?;
        device.set_read_ahead(0).map_err(FuseError::device("tune the"))?;
        Ok(Self { device })
    }

    /// Its node, to mount from.
    pub(crate) fn path(&self) -> &Path {
        self.device.path()
    }
}

/// Moves what is left from a connection that is no more to the file of this number over the new one; nothing is to be done where
/// the connection is the earlier service's. To be called once, after [`LazyFiles::resume`].
pub(crate) fn mend_devices(files: &LazyFiles, number: u64, file: &File) -> Result<(), FuseError> {
    if files.is_inherited() {
        return Ok(());
    }
    for device in survivors(files, number)? {
        device.change_backing(file.as_fd()).map_err(FuseError::device("mend the"))?;
    }
    Ok(())
}

/// Puts the complete blob `local`, of the same size, behind every device of this number, this service's and those left from
/// earlier ones; gives the devices, for whoever knows how devices of complete blobs are tuned, with the way in which they are to
/// be read. They read directly still.
///
/// Nothing reads the file of that number through them afterwards. Blocks until reads that are under way have their answers.
pub(crate) fn switch_devices(
    files: &LazyFiles,
    number: u64,
    local: &File,
) -> Result<Vec<(LoopDevice, Reading)>, FuseError> {
    let mut devices = Vec::new();
    for device in survivors(files, number)? {
        device.change_backing(local.as_fd()).map_err(FuseError::device("give the local file to the"))?;
        let reading = reading_of(&device)?;
        devices.push((device, reading));
    }
    Ok(devices)
}

fn reading_of(device: &LoopDevice) -> Result<Reading, FuseError> {
    let name = device.name().map_err(FuseError::device("look at the"))?;
    Ok(if name == TOGETHER { Reading::Together } else { Reading::Alone })
}

/// The devices of this number, of this service or left from an earlier one.
pub(crate) fn survivors(files: &LazyFiles, number: u64) -> Result<Vec<LoopDevice>, FuseError> {
    let path = files.backing_path(number);
    loop_device::find(|backing| backing == path).map_err(FuseError::device("look for the"))
}
