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

use rustix::fs::{FileType, Mode, makedev, mknodat};

const LOOP_MAJOR: u32 = 7;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
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
#[derive(Debug, Clone, Copy, Default)]
pub struct LoopOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// Bypass the page cache of the backing file, so that memory holds one copy.
    pub direct_io: bool,
}

/// An attached loop device; the kernel detaches it when this and every mount of it are gone.
#[derive(Debug)]
pub struct LoopDevice {
    file: File,
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches `backing` to a free loop device, in 4 KiB sectors where direct I/O is asked for, else 512 bytes.
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
    /// A file system without a block device of its own says nothing, and changes nothing.
    pub fn read_ahead_as(&self, backing: &File) -> io::Result<()> {
        let window = |device: u64| {
            let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
            PathBuf::from(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"))
        };
        let kib = |path: &PathBuf| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let ours = window(self.file.metadata()?.rdev());
        let (Some(disk), Some(own)) = (kib(&window(backing.metadata()?.dev())), kib(&ours)) else { return Ok(()) };
        if disk > own { std::fs::write(ours, disk.to_string()) } else { Ok(()) }
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
    if options.direct_io {
        flags |= LO_FLAGS_DIRECT_IO;
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
    let block_size = if options.direct_io { 4096 } else { 512 };
    let config = LoopConfig { fd, block_size, info, reserved: [0; 8] };
    // SAFETY: LOOP_CONFIGURE reads one `struct loop_config`, which lives across the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
