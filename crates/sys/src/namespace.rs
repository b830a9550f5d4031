//! Network namespaces entered on threads made for it.
//!
//! A thread that is in a namespace of its own must never return to a pool: whoever gets it next would speak to the
//! wrong network. So a closure runs on a fresh thread, which ends with it, or on a thread that never runs anything but
//! its owner's work and comes back at once. Other namespaces are entered by the
//! single-threaded zygote and agent only, elsewhere.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// The calling thread's network namespace.
pub fn current_network() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Runs `work` on a thread of its own inside `network`, and waits for it (setns(2); needs `CAP_SYS_ADMIN` over both
/// the caller's and the namespace's user namespace).
///
/// Sockets that `work` opens stay in that namespace wherever they are used later.
pub fn in_network<T: Send>(network: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_thread(|| {
        move_into_link_name_space(network, Some(LinkNameSpaceType::Network))?;
        Ok(work())
    })
}

/// Runs `work` on the calling thread inside `network` and comes back to `home`, the namespace it came from: for a
/// thread of one owner that goes in and out often, where starting a thread each time would cost more than the work.
///
/// # Panics
///
/// When the way back is barred. The thread would otherwise go on in the wrong network.
pub fn visit_network<T>(home: BorrowedFd<'_>, network: BorrowedFd<'_>, work: impl FnOnce() -> T) -> io::Result<T> {
    struct Return<'a>(BorrowedFd<'a>);
    impl Drop for Return<'_> {
        fn drop(&mut self) {
            if let Err(errno) = move_into_link_name_space(self.0, Some(LinkNameSpaceType::Network)) {
                panic!("a thread cannot return to its network namespace: {errno}");
            }
        }
    }
    move_into_link_name_space(network, Some(LinkNameSpaceType::Network))?;
    let _return = Return(home);
    Ok(work())
}

/// Runs `work` on a thread of its own inside a new, empty network namespace, and waits for it.
pub fn in_new_network<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_thread(|| {
        unshare_network()?;
        Ok(work())
    })
}

/// A new, empty network namespace, held by its descriptor.
pub fn new_network() -> io::Result<OwnedFd> {
    in_new_network(current_network)?
}

#[allow(unsafe_code, reason = "rustix marks unshare unsafe because of descriptor tables")]
fn unshare_network() -> io::Result<()> {
    // SAFETY: NEWNET does not touch the descriptor table, the only flag that makes this call unsafe is FILES.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.map_err(io::Error::from)
}

fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("in-namespace".to_owned()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    /// Needs root.
    #[test]
    fn a_closure_sees_the_other_namespace_and_its_thread_does_not_come_back() {
        let inode = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).expect("stat").st_ino;
        let here = current_network().expect("own namespace");
        let other = new_network().expect("needs root: unshare(CLONE_NEWNET)");
        let seen = in_network(other.as_fd(), || current_network().expect("inside")).expect("setns");
        assert_eq!(inode(seen.as_fd()), inode(other.as_fd()));
        assert_ne!(inode(seen.as_fd()), inode(here.as_fd()));
        let visited = visit_network(here.as_fd(), other.as_fd(), || current_network().expect("inside")).expect("setns");
        assert_eq!(inode(visited.as_fd()), inode(other.as_fd()));
        let still_here = current_network().expect("own namespace");
        assert_eq!(inode(still_here.as_fd()), inode(here.as_fd()));
    }
}
