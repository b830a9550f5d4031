//! Descriptors in the runtime's event loop.

use std::io;
use std::os::fd::AsRawFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers an owner of a descriptor.
#[allow(
    deprecated,
    reason = "its successor is unsafe for types whose descriptor may change; those here own one for life, and unsafe is for sys"
)]
pub(crate) fn watch<T: AsRawFd>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(owner, interest)
}

/// Both directions.
pub(crate) const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);
