//! Copying files out of and into a container, as a tar archive through a pipe.
//!
//! Done by a child that has entered the container's mount namespace, and with it its root: whatever a path or a symbolic link
//! says, it cannot lead out. No program of the image is needed. Owners are those of the container, by number. Extended
//! attributes are not carried.

mod receive;
mod send;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use sampan_sys::process::{self, NEW_MOUNT};
use sampan_wire::agent::Refusal;

use crate::fault::AtStage;

pub(crate) use receive::receive;
pub(crate) use send::send;

/// Enters the container's mount namespace, and with it its root, for good, keeping only the descriptors that a copy needs.
pub(crate) fn enter(init: &OwnedFd, archive: &OwnedFd, report: &OwnedFd) -> Result<(), Refusal> {
    process::close_all_except(&[init, archive, report].map(AsRawFd::as_raw_fd));
    process::enter_namespaces(init.as_fd(), NEW_MOUNT).at("join the container's mount namespace")
}

/// Something in an archive, or in the tree, that cannot be copied.
fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
