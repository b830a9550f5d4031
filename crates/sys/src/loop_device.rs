//! Loop devices: attach a file, read-only or not, and let the kernel detach it.
//!
//! Every device is made with `LO_FLAGS_AUTOCLEAR`: it goes by itself when its last opener or mount goes, so a killed
//! daemon leaks none. Kernel interface: `include/uapi/linux/loop.h`.
#![allow(unsafe_code, reason = "the loop driver is spoken to by ioctl(2)")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use crate::read_ahead;
use rustix::fs::{FileType, Mode, makedev, mknodat};

const LOOP_MAJOR: u32 = 7;
const LOOP_SET_DIRECT_IO: libc::c_ulong = 0x4C08;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Others may take a free device between asking and configuring; this often is more than bad luck.
const ATTEMPTS_MAX: u32 = 64;

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
}

impl Default for LoopOptions {
    fn default() -> Self {
        Self { read_only: false, block_bytes: 512 }
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
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        let mut last = io::Error::from_raw_os_error(libc::EBUSY);
        for _ in 0..ATTEMPTS_MAX {
            // SAFETY: LOOP_CTL_GET_FREE takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            let number = u32::try_from(number).map_err(|_negative| io::Error::last_os_error())?;
            let (file, path) = open_device(number)?;
            match configure(&file, backing, options) {
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

    /// Reads ahead as far as the disk below `backing` does, where that is further than a loop device does by itself.
    /// A file system that names no disk changes nothing.
    pub fn read_ahead_as(&self, backing: &File) -> io::Result<()> {
        let Some(disk) = read_ahead::below(backing)? else { return Ok(()) };
        read_ahead::raise_disk(self.file.metadata()?.rdev(), disk)
    }

    /// Bypasses the page cache of the backing file from now on, so that memory holds one copy. What of the file is not on
    /// the disk yet is written first. `EINVAL` where the file cannot be read so, or not in blocks as small as the device's.
    pub fn set_direct_io(&self) -> io::Result<()> {
        let yes: libc::c_ulong = 1;
        // SAFETY: LOOP_SET_DIRECT_IO takes a number.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), LOOP_SET_DIRECT_IO, yes) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The open device.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
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

fn configure(device: &File, backing: BorrowedFd<'_>, options: LoopOptions) -> io::Result<()> {
    let mut flags = LO_FLAGS_AUTOCLEAR;
    if options.read_only {
        flags |= LO_FLAGS_READ_ONLY;
    }
    let info = LoopInfo {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let fd = u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?;
    let config = LoopConfig { fd, block_size: options.block_bytes, info, reserved: [0; 8] };
    // SAFETY: LOOP_CONFIGURE reads one `struct loop_config`, which lives across the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
