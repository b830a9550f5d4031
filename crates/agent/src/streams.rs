//! A container's standard streams: from its pipes or terminal to the log and to whoever is attached, and back.
//!
//! ```text
//! container stdout/stderr ─┬─> log (CRI lines)
//!   or terminal            ├─> replay ring (until somebody attaches)
//!                          └─> client queues ─> clients' pipes
//! clients' stdin pipes ────> stdin queue ─> container's stdin or terminal
//! ```
//!
//! Nothing here blocks and every queue is bounded. A client that does not take its output holds the container up, as a
//! terminal or pipe would, but no longer than `CLIENT_STALL_MAX`; the log is written either way.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Instant as Monotonic;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::limits::{
    CLIENT_QUEUE_BYTES_MAX, CLIENT_STALL_MAX, CLIENTS_MAX, READ_BYTES, REPLAY_BYTES_MAX, STDIN_QUEUE_BYTES_MAX,
};
use crate::log::{Log, Source};
use crate::pod::now;

/// What poll(2) found ready.
#[derive(Debug, Default)]
pub(crate) struct Ready(Vec<(RawFd, PollFlags)>);

impl Ready {
    pub(crate) fn of(polled: &[PollFd<'_>]) -> Self {
        let ready = polled.iter().filter(|fd| !fd.revents().is_empty());
        Self(ready.map(|fd| (fd.as_fd().as_raw_fd(), fd.revents())).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn contains(&self, descriptor: &OwnedFd) -> bool {
        self.0.iter().any(|(ready, _)| *ready == descriptor.as_raw_fd())
    }

    /// Whether the other end of a pipe has been closed.
    fn is_broken(&self, pipe: &OwnedFd) -> bool {
        let broken = PollFlags::ERR | PollFlags::NVAL;
        self.0.iter().any(|(ready, events)| *ready == pipe.as_raw_fd() && events.intersects(broken))
    }
}

/// A pipe to a client and what waits to go into it.
#[derive(Debug)]
pub(crate) struct Outlet {
    pipe: OwnedFd,
    queue: VecDeque<u8>,
    /// Since when nothing could be written although something waited.
    stalled_since: Option<Monotonic>,
}

impl Outlet {
    fn new(pipe: OwnedFd) -> Self {
        Self { pipe, queue: VecDeque::new(), stalled_since: None }
    }

    /// Writes what the pipe takes; false when the client is gone or has stalled for too long.
    pub(crate) fn flush(&mut self) -> bool {
        loop {
            let (front, _) = self.queue.as_slices();
            if front.is_empty() {
                return true;
            }
            match rustix::io::write(&self.pipe, front) {
                Ok(written) => {
                    self.queue.drain(..written);
                    self.stalled_since = None;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    return self.stalled_since.get_or_insert_with(Monotonic::now).elapsed() < CLIENT_STALL_MAX;
                }
                Err(_) => return false,
            }
        }
    }

    fn is_full(&self) -> bool {
        self.queue.len() > CLIENT_QUEUE_BYTES_MAX
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn poll_into<'a>(&'a self, polled: &mut Vec<PollFd<'a>>) {
        let wanted = if self.queue.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        polled.push(PollFd::new(&self.pipe, wanted));
    }
}

/// One who is attached.
#[derive(Debug)]
struct Client {
    stdin: Option<OwnedFd>,
    stdout: Option<Outlet>,
    stderr: Option<Outlet>,
}

/// The agent's ends of a container's standard streams.
#[derive(Debug)]
pub(crate) struct Streams {
    /// The terminal's master; then `stdout` is a duplicate of it and there is no `stderr` and no `stdin`.
    terminal: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    stdin_once: bool,
    accepts_stdin: bool,
    /// The one client whose stdin counts has ended: close the container's once the queue is empty.
    stdin_ended: bool,
    stdin_queue: VecDeque<u8>,
    log: Log,
    /// Output before the first client, for that one; `None` once it has had it or where nothing is replayed.
    replay: Option<VecDeque<u8>>,
    clients: Vec<Client>,
}

/// What a container wants of its streams.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StreamsSpec {
    pub(crate) tty: bool,
    pub(crate) stdin: bool,
    pub(crate) stdin_once: bool,
}

impl Streams {
    /// The agent's ends of the pipes; with a terminal there are none until [`Streams::set_terminal`].
    pub(crate) fn new(spec: StreamsSpec, log: OwnedFd, pipes: [Option<OwnedFd>; 3]) -> Self {
        let [stdin, stdout, stderr] = pipes;
        Self {
            terminal: None,
            stdin,
            stdout,
            stderr,
            stdin_once: spec.stdin_once,
            accepts_stdin: spec.stdin,
            stdin_ended: false,
            stdin_queue: VecDeque::new(),
            log: Log::new(log),
            replay: (spec.tty || spec.stdin_once).then(VecDeque::new),
            clients: Vec::new(),
        }
    }

    /// The container's child has made its terminal.
    pub(crate) fn set_terminal(&mut self, master: OwnedFd) -> rustix::io::Result<()> {
        rustix::io::ioctl_fionbio(&master, true)?;
        self.stdout = Some(rustix::io::fcntl_dupfd_cloexec(&master, 3)?);
        self.terminal = Some(master);
        Ok(())
    }

    pub(crate) fn terminal(&self) -> Option<&OwnedFd> {
        self.terminal.as_ref()
    }

    pub(crate) fn reopen_log(&mut self, file: OwnedFd) {
        self.log.reopen(file);
    }

    /// Lets somebody take part; false when there are too many already.
    pub(crate) fn attach(&mut self, pipes: [Option<OwnedFd>; 3]) -> bool {
        if self.clients.len() >= CLIENTS_MAX {
            return false;
        }
        let [stdin, stdout, stderr] = pipes;
        let mut client = Client { stdin, stdout: stdout.map(Outlet::new), stderr: stderr.map(Outlet::new) };
        if let (Some(outlet), Some(replay)) = (client.stdout.as_mut(), self.replay.take()) {
            outlet.queue = replay;
        }
        self.clients.push(client);
        true
    }

    /// Whether every output has ended.
    pub(crate) fn output_ended(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }

    fn held_up(&self) -> bool {
        let full = |outlet: &Option<Outlet>| outlet.as_ref().is_some_and(Outlet::is_full);
        self.clients.iter().any(|client| full(&client.stdout) || full(&client.stderr))
    }

    /// Whether somebody must be looked at again even when nothing becomes ready.
    pub(crate) fn has_waiting_output(&self) -> bool {
        let waits = |outlet: &Option<Outlet>| outlet.as_ref().is_some_and(|outlet| !outlet.is_empty());
        self.clients.iter().any(|client| waits(&client.stdout) || waits(&client.stderr))
    }

    pub(crate) fn poll_into<'a>(&'a self, polled: &mut Vec<PollFd<'a>>) {
        if !self.held_up() {
            polled.extend(self.stdout.iter().chain(&self.stderr).map(|fd| PollFd::new(fd, PollFlags::IN)));
        }
        if let Some(sink) = self.stdin_sink().filter(|_| !self.stdin_queue.is_empty()) {
            polled.push(PollFd::new(sink, PollFlags::OUT));
        }
        for client in &self.clients {
            if let Some(stdin) = client.stdin.as_ref().filter(|_| self.stdin_queue.len() < STDIN_QUEUE_BYTES_MAX) {
                polled.push(PollFd::new(stdin, PollFlags::IN));
            }
            for outlet in client.stdout.iter().chain(&client.stderr) {
                outlet.poll_into(polled);
            }
        }
    }

    /// Moves whatever can be moved.
    pub(crate) fn serve(&mut self, ready: &Ready) {
        self.take_client_input(ready);
        self.feed_container();
        if !self.held_up() {
            self.take_output(ready, Source::Stdout);
            self.take_output(ready, Source::Stderr);
        }
        self.flush_clients(ready);
    }

    /// Reads what is left without waiting for anybody, and closes the outputs.
    pub(crate) fn drain(&mut self) {
        for source in [Source::Stdout, Source::Stderr] {
            // A pipe or terminal holds at most 1 MiB (`/proc/sys/fs/pipe-max-size`).
            for _ in 0..(1024 * 1024 / READ_BYTES) {
                if !self.read_once(source) {
                    break;
                }
            }
            self.end_output(source);
        }
    }

    /// What still has to reach clients after the container's end.
    pub(crate) fn into_outlets(self) -> impl Iterator<Item = Outlet> {
        self.clients.into_iter().flat_map(|client| client.stdout.into_iter().chain(client.stderr))
    }

    fn output(&mut self, source: Source) -> &mut Option<OwnedFd> {
        match source {
            Source::Stdout => &mut self.stdout,
            Source::Stderr => &mut self.stderr,
        }
    }

    fn take_output(&mut self, ready: &Ready, source: Source) {
        if self.output(source).as_ref().is_some_and(|descriptor| ready.contains(descriptor)) {
            self.read_once(source);
        }
    }

    /// Reads once; false when there was nothing more to read.
    #[inline(never)]
    fn read_once(&mut self, source: Source) -> bool {
        let Some(descriptor) = self.output(source) else { return false };
        let mut buffer = [0_u8; READ_BYTES];
        match rustix::io::read(&*descriptor, &mut buffer) {
            Ok(read) if read > 0 => {
                self.distribute(source, buffer.get(..read).unwrap_or_default());
                true
            }
            Err(Errno::INTR) => true,
            Err(Errno::AGAIN) => false,
            // A terminal whose last user has closed it says EIO.
            Ok(_) | Err(_) => {
                self.end_output(source);
                false
            }
        }
    }

    fn end_output(&mut self, source: Source) {
        if self.output(source).take().is_some() {
            self.log.finish(source, now());
        }
    }

    fn distribute(&mut self, source: Source, bytes: &[u8]) {
        self.log.write(source, bytes, now());
        if let Some(replay) = self.replay.as_mut() {
            replay.extend(bytes);
            let excess = replay.len().saturating_sub(REPLAY_BYTES_MAX);
            replay.drain(..excess);
        }
        for client in &mut self.clients {
            let outlet = match source {
                Source::Stdout => &mut client.stdout,
                Source::Stderr => &mut client.stderr,
            };
            if let Some(outlet) = outlet.as_mut() {
                outlet.queue.extend(bytes);
            }
        }
    }

    fn flush_clients(&mut self, ready: &Ready) {
        for client in &mut self.clients {
            for outlet in [&mut client.stdout, &mut client.stderr] {
                // A client that has closed its end is noticed also while nothing waits for it.
                let gone = |outlet: &mut Outlet| !outlet.flush() || ready.is_broken(&outlet.pipe);
                outlet.take_if(gone);
            }
        }
        self.clients.retain(|client| client.stdin.is_some() || client.stdout.is_some() || client.stderr.is_some());
    }

    fn stdin_sink(&self) -> Option<&OwnedFd> {
        self.stdin.as_ref().or(self.terminal.as_ref())
    }

    fn take_client_input(&mut self, ready: &Ready) {
        for client in &mut self.clients {
            let Some(stdin) = client.stdin.as_ref().filter(|stdin| ready.contains(stdin)) else { continue };
            if self.stdin_queue.len() >= STDIN_QUEUE_BYTES_MAX {
                continue;
            }
            match read_into(&mut self.stdin_queue, stdin, self.accepts_stdin) {
                Ok(read) if read > 0 => {}
                Err(Errno::INTR | Errno::AGAIN) => {}
                Ok(_) | Err(_) => {
                    client.stdin = None;
                    self.stdin_ended |= self.stdin_once;
                }
            }
        }
    }

    fn feed_container(&mut self) {
        while !self.stdin_queue.is_empty() {
            let (front, _) = self.stdin_queue.as_slices();
            let Some(sink) = self.stdin.as_ref().or(self.terminal.as_ref()) else {
                self.stdin_queue.clear();
                return;
            };
            match rustix::io::write(sink, front) {
                Ok(written) => drop(self.stdin_queue.drain(..written)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.stdin = None;
                    self.stdin_queue.clear();
                }
            }
        }
        if self.stdin_ended {
            self.stdin = None;
        }
    }
}

/// Reads once; what came is queued or thrown away. Apart from the loop, which would clear this buffer in every turn.
#[inline(never)]
fn read_into(queue: &mut VecDeque<u8>, from: &OwnedFd, wanted: bool) -> rustix::io::Result<usize> {
    let mut buffer = [0_u8; READ_BYTES];
    let read = rustix::io::read(from, &mut buffer)?;
    if wanted {
        queue.extend(buffer.get(..read).unwrap_or_default());
    }
    Ok(read)
}

/// A client's end must never block the agent, whoever made it.
pub(crate) fn make_nonblocking(descriptor: &OwnedFd) -> rustix::io::Result<()> {
    rustix::io::ioctl_fionbio(descriptor.as_fd(), true)
}
