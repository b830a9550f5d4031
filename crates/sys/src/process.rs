//! clone3, pidfds, signals by descriptor, and what a process does to itself before exec.
//!
//! [`clone3`] and [`replace`] are meant for single-threaded processes only (zygote and agent): a child made from one
//! thread of many would inherit locks that nobody releases. Nothing here decides anything; policy is the callers'.
#![allow(unsafe_code, reason = "clone3(2), execve(2), signalfd(2) and _exit(2) have no safe wrapper in rustix")]

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Namespaces and other flags of [`clone3`] (`linux/sched.h`).
pub const NEW_USER: u64 = libc::CLONE_NEWUSER as u64;
pub const NEW_MOUNT: u64 = libc::CLONE_NEWNS as u64;
pub const NEW_PID: u64 = libc::CLONE_NEWPID as u64;
pub const NEW_IPC: u64 = libc::CLONE_NEWIPC as u64;
pub const NEW_UTS: u64 = libc::CLONE_NEWUTS as u64;
pub const NEW_NET: u64 = libc::CLONE_NEWNET as u64;
pub const NEW_CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;

/// `CLONE_INTO_CGROUP` (`linux/sched.h`), cgroup v2 only.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// On which side of a [`clone3`] the caller finds itself.
#[derive(Debug)]
pub enum Forked {
    /// This is the new process.
    Child,
    /// This is the caller; the child's id in the caller's pid namespace and its pidfd.
    Parent { pid: i32, pidfd: OwnedFd },
}

/// Makes a child process (`clone3(2)`) with the namespaces in `flags`, in the v2 cgroup whose directory is given.
///
/// Call it from a single-threaded process.
pub fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    let mut pidfd: RawFd = -1;
    let mut arguments = libc::clone_args {
        flags: flags | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?;
    }
    // SAFETY: `arguments` is a live `struct clone_args` of the size passed; without CLONE_VM and without a stack the
    // child goes on here on a copy of this stack, as after fork(2).
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => {
            // SAFETY: clone3 succeeded with CLONE_PIDFD, so that the kernel stored a new descriptor that is ours.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Forked::Parent { pid: i32::try_from(pid).map_err(io::Error::other)?, pidfd })
        }
    }
}

/// Replaces this process by the program at `path` (`execve(2)`); returns only if that failed.
pub fn replace(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings.iter().map(|string| string.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
    };
    let (argv, envp) = (pointers(arguments), pointers(environment));
    // SAFETY: all three are null-terminated and outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends this process at once, without destructors or exit handlers (`_exit(2)`).
pub fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process; nothing after it runs.
    unsafe { libc::_exit(code) }
}

/// Blocks these signals for the calling thread and returns a nonblocking descriptor that reports them (`signalfd(2)`).
pub fn signal_descriptor(signals: &[i32]) -> io::Result<OwnedFd> {
    let set = signal_set(signals);
    // SAFETY: `set` is an initialised set; the old mask is not wanted.
    if unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `set` is an initialised set; -1 asks for a new descriptor.
    let descriptor = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: signalfd returned a new descriptor that is ours.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Takes everything that is pending out of a descriptor of [`signal_descriptor`]; says whether there was anything.
pub fn drain_signals(descriptor: BorrowedFd<'_>) -> bool {
    let mut buffer = [0_u8; 16 * size_of::<libc::signalfd_siginfo>()];
    let mut any = false;
    while rustix::io::read(descriptor, &mut buffer).is_ok_and(|read| read > 0) {
        any = true;
    }
    any
}

/// Gives this process the signal state that a fresh program expects: nothing blocked, everything at its default.
pub fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL is always a valid disposition; refusals (SIGKILL, SIGSTOP) are of no interest.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let set = signal_set(&[]);
    // SAFETY: `set` is an initialised set; the old mask is not wanted.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) };
}

/// Ignores a signal in this process.
pub fn ignore_signal(signal: i32) {
    // SAFETY: SIG_IGN is always a valid disposition.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

fn signal_set(signals: &[i32]) -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised by sigemptyset just above.
    let mut set = unsafe { set.assume_init() };
    for signal in signals {
        // SAFETY: `set` is initialised; an invalid signal number is refused and changes nothing.
        unsafe { libc::sigaddset(&raw mut set, *signal) };
    }
    set
}

/// Closes every descriptor from 3 up that is not in `keep` (`close_range(2)`).
///
/// Only for a table of descriptors whose process or thread will never again use, nor drop, an owner of those that are closed: that
/// of a fresh fork, or of a thread that has left the common one.
pub fn close_all_except(keep: &[RawFd]) {
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd > 2).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1);
        }
        first = fd.saturating_add(1);
    }
    close_range(first, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    // SAFETY: the caller of `close_all_except` promises that no owner of these descriptors is used again.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

/// Runs `work` on a thread of its own that has no descriptors but copies of `keep` and the standard streams, and waits for it.
///
/// For what may wait in the kernel, beyond the reach of SIGKILL, for this very process: a killed process closes its descriptors
/// when the last thread that shares them is gone, and until then its sockets and locks are not free for a successor. This thread
/// does not share them. What `work` opens is gone with it, unless it is sent away.
pub fn apart<T: Send>(keep: &[BorrowedFd<'_>], work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("apart".to_owned()).spawn_scoped(scope, || {
            // SAFETY: no memory is passed; the thread's own copy of the table has the same open descriptors.
            if unsafe { libc::unshare(libc::CLONE_FILES) } != 0 {
                return Err(io::Error::last_os_error());
            }
            close_all_except(&keep);
            work()
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes `descriptor` the given standard stream (0, 1 or 2) of this process.
pub fn become_standard_stream(descriptor: BorrowedFd<'_>, stream: u8) -> io::Result<()> {
    // SAFETY: dup2 replaces a standard stream, which no `OwnedFd` owns.
    let result = unsafe { libc::dup2(descriptor.as_raw_fd(), i32::from(stream)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends a signal to a process by its pidfd (`pidfd_send_signal(2)`); any number that the kernel knows.
pub fn signal_by_pidfd(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<u8>(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends a signal to a process by its id (`kill(2)`); -1 means every process that this one may signal.
pub fn signal_by_pid(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Enters namespaces (`setns(2)`) of a process given by its pidfd, or one given by its own descriptor.
pub fn enter_namespaces(descriptor: BorrowedFd<'_>, flags: u64) -> io::Result<()> {
    let flags = i32::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: no memory is passed.
    if unsafe { libc::setns(descriptor.as_raw_fd(), flags) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes a new, empty session keyring (`keyctl(2)`, `KEYCTL_JOIN_SESSION_KEYRING`), so that keys of whoever started this
/// process are out of its reach and of its children's.
pub fn leave_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Leaves namespaces for new ones (`unshare(2)`).
pub fn leave_namespaces(flags: u64) -> io::Result<()> {
    let flags = i32::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: no memory is passed; only namespace flags are offered by this module.
    if unsafe { libc::unshare(flags) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes over a descriptor that this process' parent left open for it, and keeps it from its own children.
pub fn inherited_descriptor(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only asks about the number; a number that is not open is refused by the kernel.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::other("the descriptor belongs to this process already"));
    }
    // SAFETY: the number is open, and since it survived exec nothing in this program has made it or owns it.
    let descriptor = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC)?;
    Ok(descriptor)
}

/// How much of the stack [`give_back_memory`] gives back at most. Less than the kernel keeps free below a stack
/// (`stack_guard_gap` in `mm/mmap.c`, 1 MiB), so that nothing else lies there.
const STACK_BYTES_GIVEN_BACK: usize = 512 * 1024;

/// Gives back to the kernel what is free of the heap (malloc_trim(3)), and what deeper calls have left of the calling thread's
/// stack (madvise(2), `MADV_DONTNEED`): for a process that is to wait for long, and of which there are many.
///
/// The thread's stack must have 512 KiB left, as any main thread's has.
#[inline(never)]
pub fn give_back_memory() {
    // SAFETY: it touches nothing that is in use, and may be called at any time.
    unsafe { libc::malloc_trim(0) };
    let mark = 0_u8;
    let page = rustix::param::page_size();
    // This function's own frame may reach into the page below the mark's, but not beyond that.
    let Some(end) = ((&raw const mark).addr() / page).checked_sub(1).map(|page_number| page_number * page) else {
        return;
    };
    let start = std::ptr::with_exposed_provenance_mut(end.saturating_sub(STACK_BYTES_GIVEN_BACK));
    // SAFETY: from there to `end` is nothing but the calling thread's stack below every live frame, and what was never mapped.
    unsafe { libc::madvise(start, STACK_BYTES_GIVEN_BACK, libc::MADV_DONTNEED) };
}
