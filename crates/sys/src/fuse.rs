//! FUSE: a detached mount, more queues for it, and asking the kernel for requests again.
//!
//! No program such as `fusermount` has a part in this: root opens `/dev/fuse` and gives it to `fsopen("fuse")`. The mount is
//! attached nowhere; files in it are opened relative to its descriptor. It lives as long as that descriptor or an open file
//! in it; its connection lives as long as somebody holds one of the queues. Kernel interface: `include/uapi/linux/fuse.h`,
//! `Documentation/filesystems/fuse.rst`. What goes over the queues is in [`protocol`].
#![allow(unsafe_code, reason = "FUSE_DEV_IOC_CLONE is an ioctl(2)")]

pub mod protocol;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::MountAttrFlags;

use crate::mount::FsContext;
use crate::process::apart;
use crate::socket;

const DEVICE: &str = "/dev/fuse";
/// `FUSE_DEV_IOC_CLONE`: `_IOR(229, 0, uint32_t)`.
const FUSE_DEV_IOC_CLONE: libc::c_ulong = 0x8004_E500;

/// A mount and its first queue.
#[derive(Debug)]
pub struct FuseMount {
    /// The detached mount; its root is a directory.
    pub mount: OwnedFd,
    /// The queue whose first request is `INIT`.
    pub queue: OwnedFd,
}

impl FuseMount {
    /// Makes a mount whose files belong to root and can be read by anybody who is given one of them.
    ///
    /// # Errors
    /// `NotFound` where there is no `/dev/fuse`; the kernel's own otherwise.
    pub fn new(source: &str) -> io::Result<Self> {
        let queue = open_queue()?;
        let context = FsContext::open("fuse")?;
        context.set_string("source", source)?;
        context.set_string("fd", queue.as_raw_fd().to_string())?;
        context.set_string("rootmode", "40000")?;
        context.set_string("user_id", "0")?;
        context.set_string("group_id", "0")?;
        context.set_flag("allow_other")?;
        let attributes =
            MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
        Ok(Self { mount: context.mount(attributes)?, queue })
    }
}

/// One more queue of the same connection. A request is answered on the queue that it was read from.
pub fn clone_queue(queue: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let clone = open_queue()?;
    let number = u32::try_from(queue.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: FUSE_DEV_IOC_CLONE reads one `u32`, which lives across the call.
    let result = unsafe { libc::ioctl(clone.as_raw_fd(), FUSE_DEV_IOC_CLONE, &raw const number) };
    if result == 0 { Ok(clone) } else { Err(io::Error::last_os_error()) }
}

/// Has the kernel queue again every request that was read on any queue and not answered (Linux 6.9 and later).
pub fn resend(queue: BorrowedFd<'_>) -> io::Result<()> {
    rustix::io::write(queue, &protocol::resend())?;
    Ok(())
}

/// Whether the connection of a queue is there still: not aborted, not unmounted.
pub fn is_connected(queue: BorrowedFd<'_>) -> io::Result<bool> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut polled = [PollFd::from_borrowed_fd(queue, PollFlags::IN)];
    poll(&mut polled, Some(&now))?;
    let [polled] = polled;
    Ok(!polled.revents().intersects(PollFlags::ERR | PollFlags::NVAL))
}

/// Opens a file of a mount for reading.
///
/// A process that serves the mount itself may be killed while it waits for its own answer, and that wait cannot be killed: it is
/// done by [`crate::process::apart`].
pub fn open_file(mount: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let (ours, theirs) = socket::pair()?;
    apart(&[mount, theirs.as_fd()], || {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = openat(mount, name, flags, Mode::empty())?;
        socket::send(theirs.as_fd(), b"f", &[file.as_fd()]).map(drop)
    })?;
    let mut files = Vec::new();
    socket::receive(ours.as_fd(), &mut [0], &mut files)?;
    files.pop().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn open_queue() -> io::Result<OwnedFd> {
    Ok(openat(CWD, DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
}
