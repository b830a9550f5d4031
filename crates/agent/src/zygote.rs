//! The zygote: a small process from which every pod's agent is cloned.
//!
//! It exists because only a single-threaded process may fork without exec, and because a clone is cheap when the process
//! is: its mount namespace holds a tiny tmpfs with proc, sysfs and the agents' skeleton and nothing of the host, so that
//! an agent has four mounts to copy, and pins none of the host's.
//!
//! It serves whoever connects to its socket, one daemon after the other, and reaps agents. It holds no state that
//! matters: when it dies, agents go on under the nearest subreaper, and a new zygote makes the next ones.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{DumpableBehavior, WaitOptions, set_dumpable_behavior, wait};
use sampan_sys::process::{
    self, Forked, NEW_CGROUP, NEW_IPC, NEW_MOUNT, NEW_NET, NEW_PID, NEW_USER, NEW_UTS, clone3, signal_descriptor,
};
use sampan_sys::socket;
use sampan_wire::zygote::{ZygoteReply, ZygoteRequest};

use crate::limits::ZYGOTE_CONNECTIONS_MAX;
use crate::link::{Descriptors, Link, LinkError, Outgoing, Received};
use crate::{pod, stage};

/// Runs the zygote on a listening `SOCK_SEQPACKET` socket, for ever. Call it first thing in a process of its own.
///
/// Returns only when the zygote cannot be set up or its socket fails.
pub fn serve(listener: OwnedFd) -> io::Result<Infallible> {
    rustix::thread::set_name(c"sampan-zygote")?;
    // Agents are clones of this process: what is not dumpable cannot be traced, nor its program be reached through
    // /proc/PID/exe, by a container that such a clone enters.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::fs::fcntl_setfl(&listener, rustix::fs::fcntl_getfl(&listener)? | rustix::fs::OFlags::NONBLOCK)?;
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC, 0.into())?;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    let oom_score = rustix::fs::open("/proc/self/oom_score_adj", flags, 0.into())?;
    stage::build_for_zygote()?;
    let signals = signal_descriptor(&[libc::SIGCHLD])?;
    let mut zygote = Zygote { listener, null, oom_score, links: Vec::new() };
    // Whatever is still here, every agent has too.
    process::give_back_memory();
    loop {
        zygote.turn(&signals)?;
    }
}

struct Zygote {
    listener: OwnedFd,
    null: OwnedFd,
    /// The zygote's own `oom_score_adj`.
    oom_score: OwnedFd,
    links: Vec<Link>,
}

impl Zygote {
    /// Waits for something to happen and deals with it.
    fn turn(&mut self, signals: &OwnedFd) -> io::Result<()> {
        let mut polled = vec![PollFd::new(signals, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
        polled.extend(self.links.iter().map(|link| PollFd::new(link, PollFlags::IN)));
        match poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if process::drain_signals(signals.as_fd()) {
            while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        }
        if let Some(connection) = socket::accept(self.listener.as_fd())?
            && self.links.len() < ZYGOTE_CONNECTIONS_MAX
            && matches!(socket::peer(connection.as_fd()), Ok((_, 0)))
        {
            self.links.push(Link::new(connection));
        }
        for mut link in std::mem::take(&mut self.links) {
            if matches!(self.serve_link(&mut link), Ok(true)) {
                self.links.push(link);
            }
        }
        Ok(())
    }

    /// Answers what has arrived; false when the connection is over.
    fn serve_link(&self, link: &mut Link) -> Result<bool, LinkError> {
        loop {
            let (frame, descriptors) = match link.receive()? {
                Received::Nothing => return Ok(true),
                Received::Closed => return Ok(false),
                Received::Frame(frame, descriptors) => (frame, descriptors),
            };
            let mut outgoing = Outgoing::default();
            let reply = match frame.message::<ZygoteRequest>()? {
                ZygoteRequest::Ping => ZygoteReply::Here,
                request @ ZygoteRequest::CreateSandbox { .. } => self.create(request, descriptors, &mut outgoing)?,
            };
            link.send(&reply, outgoing)?;
            link.flush()?;
        }
    }

    fn create(
        &self,
        request: ZygoteRequest,
        mut descriptors: Descriptors,
        outgoing: &mut Outgoing,
    ) -> Result<ZygoteReply, LinkError> {
        let ZygoteRequest::CreateSandbox { id, own_user_namespace, host_network, host_pid, host_ipc, listener, cgroup } =
            request
        else {
            return Ok(ZygoteReply::Here);
        };
        let listener = descriptors.take(listener)?;
        let cgroup = cgroup.map(|slot| descriptors.take(slot)).transpose()?;
        let mut flags = NEW_MOUNT | NEW_UTS | NEW_CGROUP;
        let own =
            [(own_user_namespace, NEW_USER), (!host_network, NEW_NET), (!host_pid, NEW_PID), (!host_ipc, NEW_IPC)];
        for (_, flag) in own.iter().filter(|(wanted, _)| *wanted) {
            flags |= flag;
        }
        let score = self.take_ordinary_oom_score();
        let forked = clone3(flags, cgroup.as_ref().map(AsFd::as_fd));
        if let Some(score) = score
            && !matches!(forked, Ok(Forked::Child))
        {
            rustix::io::pwrite(&self.oom_score, score.as_bytes(), 0).ok();
        }
        Ok(match forked {
            Ok(Forked::Child) => self.become_agent(&id, listener),
            Ok(Forked::Parent { pid, pidfd }) => ZygoteReply::Created { pid, pidfd: outgoing.add(pidfd) },
            Err(error) => {
                ZygoteReply::Failed { stage: "clone3".into(), errno: error.raw_os_error().unwrap_or(libc::EIO) }
            }
        })
    }

    /// Where the service is spared when memory is short, its pods are not to be: a child inherits how low its score may be put by itself
    /// (`oom_score_adj_min` in the kernel's `fs/proc/base.c`), which only a write by one with `CAP_SYS_RESOURCE` moves. Without
    /// that right the floor stays the service's. Gives what the score was, if it was lower.
    fn take_ordinary_oom_score(&self) -> Option<String> {
        let mut text = [0_u8; 16];
        let read = rustix::io::pread(&self.oom_score, &mut text, 0).ok()?;
        let score = std::str::from_utf8(text.get(..read)?).ok()?.trim().to_owned();
        if !score.starts_with('-') {
            return None;
        }
        rustix::io::pwrite(&self.oom_score, b"0", 0).ok()?;
        Some(score)
    }

    /// The child's side: nothing of the zygote's is kept but the program itself.
    fn become_agent(&self, id: &str, listener: OwnedFd) -> ! {
        for stream in 0..3 {
            if process::become_standard_stream(self.null.as_fd(), stream).is_err() {
                process::exit_now(1);
            }
        }
        process::close_all_except(&[listener.as_raw_fd()]);
        pod::run(id, listener)
    }
}
