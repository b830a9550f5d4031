//! Loop devices: attach a file, read-only or not, and let the kernel detach it.
//!
//! Every device is made with `LO_FLAGS_AUTOCLEAR`: it goes by itself when its last opener or mount goes, so a killed
//! daemon leaks none. A device that outlived its maker is found again by the file behind it, which the kernel tells
//! ([`find`]). Kernel interface: `include/uapi/linux/loop.h`.
#![allow(unsafe_code, reason = "the loop driver is spoken to by ioctl(2)")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::read_ahead;
use rustix::fs::{FileType, Mode, makedev, mknodat};

const LOOP_MAJOR: u32 = 7;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CHANGE_FD: libc::c_ulong = 0x4C06;
const LOOP_SET_DIRECT_IO: libc::c_ulong = 0x4C08;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
/// Others may take a free device between asking and configuring; this often is more than bad luck.
const ATTEMPTS_MAX: u32 = 64;
/// One at a time asks for a free device and takes it: until it is taken, the kernel tells everybody the same one.
static TAKING: Mutex<()> = Mutex::new(());

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl LoopInfo {
    fn new(flags: u32, name: &str) -> io::Result<Self> {
        let mut file_name = [0; 64];
        // The last byte stays zero.
        let place = file_name.get_mut(..name.len()).filter(|place| place.len() < 64);
        place.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(name.as_bytes());
        Ok(Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name,
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        })
    }
}

/// `struct loop_config`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// How a file is attached.
#[derive(Debug, Clone, Copy)]
pub struct LoopOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// The device's logical block: what is to be read past the page cache needs no less than its disk's.
    pub block_bytes: u32,
    /// Bypass the page cache of the backing file from the start.
    pub direct_io: bool,
}

impl Default for LoopOptions {
    fn default() -> Self {
        Self { read_only: false, block_bytes: 512, direct_io: false }
    }
}

/// An attached loop device; the kernel detaches it when this and every mount of it are gone.
#[derive(Debug)]
pub struct LoopDevice {
    file: File,
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches `backing` to a free loop device.
    pub fn attach(backing: BorrowedFd<'_>, options: LoopOptions) -> io::Result<Self> {
        Self::attach_as("", backing, options)
    }

    /// The same, and has the kernel remember a name of at most 63 bytes, whatever file is behind the device later.
    pub fn attach_as(name: &str, backing: BorrowedFd<'_>, options: LoopOptions) -> io::Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        let _taking = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = io::Error::from_raw_os_error(libc::EBUSY);
        for _ in 0..ATTEMPTS_MAX {
            // SAFETY: LOOP_CTL_GET_FREE takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            let number = u32::try_from(number).map_err(|_negative| io::Error::last_os_error())?;
            let (file, path) = open_device(number)?;
            match configure(&file, backing, options, name) {
                Ok(()) => return Ok(Self { file, path }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// The device's node, such as `/dev/loop3`.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// What it was called when it was attached.
    pub fn name(&self) -> io::Result<String> {
        let mut info = LoopInfo::new(0, "")?;
        // SAFETY: LOOP_GET_STATUS64 writes one `struct loop_info64`, which lives across the call.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let name = info.file_name.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    /// Reads ahead as far as the disk below `backing` does, where that is further than a loop device does by itself.
    /// A file system that names no disk changes nothing.
    pub fn read_ahead_as(&self, backing: &File) -> io::Result<()> {
        let Some(disk) = read_ahead::below(backing)? else { return Ok(()) };
        read_ahead::raise_disk(self.file.metadata()?.rdev(), disk)
    }

    /// How far reads of this device, and of a file system whose first device it is, read ahead. Files that are open already
    /// keep what they were opened with.
    pub fn set_read_ahead(&self, kib: u32) -> io::Result<()> {
        let device = self.file.metadata()?.rdev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib.to_string())
    }

    /// Puts another file of the same size behind a read-only device, under whatever is mounted from it. Waits for the reads
    /// that are under way; later ones go to `backing`. How the device reads (direct or not) stays.
    ///
    /// # Errors
    /// `EINVAL` for a device that may be written, or a file of another size; `ENXIO` when the device was detached meanwhile.
    pub fn change_backing(&self, backing: BorrowedFd<'_>) -> io::Result<()> {
        self.apart(&[backing], LOOP_CHANGE_FD, || {
            libc::c_ulong::try_from(backing.as_raw_fd()).map_err(io::Error::other)
        })
    }

    /// Reads past the page cache of the backing file, so that memory holds one copy, or through it. Waits for the reads that
    /// are under way; what of the file is not on the disk yet is written first. `EINVAL` where the file cannot be read so, or
    /// not in blocks as small as the device's.
    pub fn set_direct_io(&self, direct: bool) -> io::Result<()> {
        self.apart(&[], LOOP_SET_DIRECT_IO, || Ok(libc::c_ulong::from(direct)))
    }

    /// One ioctl(2) with a number, which waits for the reads that are under way. They may be this process' own to answer, which
    /// may be killed meanwhile: see [`crate::process::apart`].
    fn apart(
        &self,
        keep: &[BorrowedFd<'_>],
        request: libc::c_ulong,
        argument: impl FnOnce() -> io::Result<libc::c_ulong> + Send,
    ) -> io::Result<()> {
        let keep: Vec<BorrowedFd<'_>> = keep.iter().copied().chain([self.file.as_fd()]).collect();
        crate::process::apart(&keep, || {
            let argument = argument()?;
            // SAFETY: the requests that this is called with take a number or a descriptor, and no memory.
            let result = unsafe { libc::ioctl(self.file.as_raw_fd(), request, argument) };
            if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        })
    }

    /// The open device.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Every attached device behind which is a file that `is_meant`, opened, so that none of them goes by itself.
///
/// Paths are as the kernel tells them: from the root of the file's own mount, which for a mount that is attached nowhere is
/// all there is.
pub fn find(is_meant: impl Fn(&Path) -> bool) -> io::Result<Vec<LoopDevice>> {
    let mut found = Vec::new();
    for number in numbers()? {
        if !backing(number).is_some_and(|path| is_meant(&path)) {
            continue;
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let Ok(file) = OpenOptions::new().read(true).custom_flags(libc::O_CLOEXEC).open(&path) else { continue };
        // It may have become another's between the question and the opening.
        if backing(number).is_some_and(|path| is_meant(&path)) {
            found.push(LoopDevice { file, path });
        }
    }
    Ok(found)
}

/// The files behind all attached devices, as [`find`] has them.
pub fn backing_files() -> io::Result<Vec<PathBuf>> {
    Ok(numbers()?.into_iter().filter_map(backing).collect())
}

/// Every device that the kernel has, attached or not.
fn numbers() -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.strip_prefix("loop")?.parse::<u32>().ok()));
    }
    Ok(numbers)
}

/// The file behind a device; `None` when nothing is.
fn backing(number: u32) -> Option<PathBuf> {
    let told = std::fs::read_to_string(format!("/sys/block/loop{number}/loop/backing_file")).ok()?;
    let told = told.strip_suffix('\n').unwrap_or(&told);
    Some(PathBuf::from(told.strip_suffix(" (deleted)").unwrap_or(told)))
}

/// Opens the device's node, making it first where `/dev` is not the kernel's own devtmpfs.
fn open_device(number: u32) -> io::Result<(File, PathBuf)> {
    let path = PathBuf::from(format!("/dev/loop{number}"));
    let open = || OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(&path);
    match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let device = makedev(LOOP_MAJOR, number);
            match mknodat(rustix::fs::CWD, &path, FileType::BlockDevice, Mode::from_raw_mode(0o660), device) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => Ok((open()?, path)),
                Err(error) => Err(error.into()),
            }
        }
        opened => Ok((opened?, path)),
    }
}

fn configure(device: &File, backing: BorrowedFd<'_>, options: LoopOptions, name: &str) -> io::Result<()> {
    let mut flags = LO_FLAGS_AUTOCLEAR;
    if options.read_only {
        flags |= LO_FLAGS_READ_ONLY;
    }
    if options.direct_io {
        flags |= LO_FLAGS_DIRECT_IO;
    }
    let info = LoopInfo::new(flags, name)?;
    let fd = u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?;
    let config = LoopConfig { fd, block_size: options.block_bytes, info, reserved: [0; 8] };
    // SAFETY: LOOP_CONFIGURE reads one `struct loop_config`, which lives across the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests;
