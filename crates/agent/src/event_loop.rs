//! The agent's poll loop: one turn waits for whatever happens next and deals with all of it.
//!
//! Order within a turn matters in one place: children's reports are read before children are reaped, so that a program
//! that ends at once is still known to have started.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{WaitOptions, WaitStatus, wait};
use sampan_sys::{process, socket};
use sampan_wire::agent::{
    AgentEvent, ChildReport, ContainerExit, ExitStatus, FromAgent, FromDaemon, Instant, Refusal, Reply, Request,
};
use sampan_wire::frame::FrameDecoder;
use sampan_wire::limits::{DESCRIPTORS_MAX, EXIT_RECORDS_MAX};

use crate::container::{Container, Ended};
use crate::launch::{Asker, Launch, Purpose};
use crate::limits::STRANGERS_MAX;
use crate::link::{Link, LinkError, Outgoing, Received};
use crate::pod::{Agent, now};
use crate::streams::{Outlet, Ready};

/// How often the loop looks at what only time changes, while there is such a thing.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// How long nothing has to happen until an agent gives back what it needs only while something does.
const REST_AFTER: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

impl Agent {
    /// One turn of the loop.
    pub(crate) fn turn(&mut self) -> std::io::Result<()> {
        let ready = self.wait()?;
        if ready.is_empty() && !self.is_ticking() {
            // There are as many agents as pods, and most of them wait most of the time.
            process::give_back_memory();
            self.rests = true;
            return Ok(());
        }
        self.rests = false;
        if ready.contains(&self.listener)
            && let Some(connection) = socket::accept(self.listener.as_fd())?
        {
            self.meet(connection);
        }
        self.hear_strangers();
        self.serve_daemon();
        self.read_reports(&ready);
        if process::drain_signals(self.signals.as_fd()) {
            self.reap();
        }
        for container in self.containers.values_mut() {
            container.streams.serve(&ready);
        }
        self.finish_containers();
        self.outlets.retain_mut(|outlet| outlet.flush() && !outlet.is_empty());
        self.flush();
        Ok(())
    }

    /// Somebody connects. Nobody of the pod may; of those from outside each is listened to until it has said who it is.
    fn meet(&mut self, connection: OwnedFd) {
        // Where the pod has processes of its own, those outside have no number here.
        let is_foreign = matches!(socket::peer_pid(connection.as_fd()), Ok(None));
        if rustix::process::getpid().is_init() && !is_foreign {
            return;
        }
        if self.strangers.len() >= STRANGERS_MAX {
            self.strangers.remove(0);
        }
        self.strangers.push(Link::new(connection));
    }

    /// Who greets as a daemon does takes the place of the one before, whose requests are nobody's any more. Until then that one stays:
    /// neither silence nor nonsense takes its place.
    fn hear_strangers(&mut self) {
        for mut link in std::mem::take(&mut self.strangers) {
            match link.receive() {
                Ok(Received::Nothing) => self.strangers.push(link),
                Ok(Received::Frame(frame, descriptors)) => {
                    if let Ok(message @ FromDaemon { request: Request::Hello, .. }) = frame.message() {
                        self.link = Some(link);
                        self.connection = self.connection.wrapping_add(1);
                        if self.handle(message, descriptors).is_err() {
                            self.link = None;
                        }
                    }
                }
                Ok(Received::Closed) | Err(_) => {}
            }
        }
    }

    fn wait(&self) -> std::io::Result<Ready> {
        let mut polled = vec![PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
        if let Some(link) = &self.link {
            let wanted = if link.wants_write() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            polled.push(PollFd::new(link, wanted));
        }
        polled.extend(self.strangers.iter().map(|link| PollFd::new(link, PollFlags::IN)));
        polled.extend(self.launches.iter().map(|launch| PollFd::new(&launch.report, PollFlags::IN)));
        for container in self.containers.values() {
            container.streams.poll_into(&mut polled);
        }
        self.outlets.iter().for_each(|outlet| outlet.poll_into(&mut polled));
        let limit = if self.is_ticking() { Some(&TICK) } else { (!self.rests).then_some(&REST_AFTER) };
        match poll(&mut polled, limit) {
            Ok(_) => Ok(Ready::of(&polled)),
            Err(rustix::io::Errno::INTR) => Ok(Ready::default()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether there is something that only time changes.
    fn is_ticking(&self) -> bool {
        !self.outlets.is_empty()
            || self.containers.values().any(|one| one.ended.is_some() || one.streams.has_waiting_output())
    }

    fn serve_daemon(&mut self) {
        loop {
            let Some(link) = self.link.as_mut() else { return };
            let outcome = match link.receive() {
                Ok(Received::Nothing) => return,
                Ok(Received::Frame(frame, descriptors)) => frame
                    .message::<FromDaemon>()
                    .map_err(LinkError::from)
                    .and_then(|message| self.handle(message, descriptors)),
                Ok(Received::Closed) => {
                    self.link = None;
                    return;
                }
                Err(error) => Err(error),
            };
            if outcome.is_err() {
                self.link = None;
            }
        }
    }

    /// Answers a request, if the one who asked is still there.
    pub(crate) fn reply(&mut self, asker: Asker, reply: Reply, descriptors: Outgoing) {
        let Asker { connection, request_id } = asker;
        if connection != self.connection {
            return;
        }
        self.tell(&FromAgent::Reply { request_id, reply }, descriptors);
    }

    fn tell(&mut self, message: &FromAgent, descriptors: Outgoing) {
        if let Some(link) = self.link.as_mut()
            && link.send(message, descriptors).is_err()
        {
            self.link = None;
        }
    }

    fn flush(&mut self) {
        if self.link.as_mut().is_some_and(|link| link.flush().is_err()) {
            self.link = None;
        }
    }

    fn read_reports(&mut self, ready: &Ready) {
        for mut launch in std::mem::take(&mut self.launches) {
            if !ready.contains(&launch.report) || !self.read_report(&mut launch) {
                self.launches.push(launch);
            } else {
                self.finish_launch(launch);
            }
        }
    }

    /// Reads what a child has to say; true once it has nothing more to say.
    fn read_report(&mut self, launch: &mut Launch) -> bool {
        loop {
            let (mut buffer, mut descriptors) = ([0_u8; 8192], Vec::with_capacity(DESCRIPTORS_MAX));
            match socket::receive(launch.report.as_fd(), &mut buffer, &mut descriptors) {
                Ok(0) => return true,
                Ok(read) => self.take_report(launch, buffer.get(..read).unwrap_or_default(), descriptors),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return false,
                Err(_) => return true,
            }
        }
    }

    fn take_report(&mut self, launch: &mut Launch, bytes: &[u8], descriptors: Vec<OwnedFd>) {
        let mut decoder = FrameDecoder::default();
        decoder.feed(bytes);
        let Ok(Some(frame)) = decoder.next_frame() else { return };
        match frame.message::<ChildReport>() {
            Ok(ChildReport::Failed(refusal)) => launch.failure = Some(refusal),
            Ok(ChildReport::Terminal(_)) => match (&mut launch.purpose, descriptors.into_iter().next()) {
                (Purpose::Container(container), Some(master)) => {
                    if let Err(error) = container.streams.set_terminal(master) {
                        launch.failure =
                            Some(Refusal::Failed { stage: "take the terminal".into(), errno: error.raw_os_error() });
                    }
                }
                (Purpose::Exec { terminal, .. }, master) => *terminal = master,
                _ => {}
            },
            Ok(ChildReport::Opened) => {
                if let Purpose::Transfer { answered } = &mut launch.purpose {
                    *answered = true;
                    self.reply(launch.asker, Reply::Done, Outgoing::default());
                }
            }
            Err(_) => {}
        }
    }

    /// A child has become its program, or has not.
    fn finish_launch(&mut self, launch: Launch) {
        let Launch { asker, pid, purpose, failure, exited, .. } = launch;
        if let Some(refusal) = failure {
            if let Purpose::Container(container) = &purpose
                && asker.connection != self.connection
            {
                // The daemon that asked is dead, and the next one was told that it runs.
                self.record_exit(container.name.clone(), ExitStatus::Code(refusal_code(&refusal)), now(), now());
            } else if !matches!(purpose, Purpose::Transfer { answered: true }) {
                self.reply(asker, Reply::Refused(refusal), Outgoing::default());
            }
            return;
        }
        let mut outgoing = Outgoing::default();
        match purpose {
            Purpose::Container(mut container) => {
                container.started_at = now();
                let Ok(pidfd) = rustix::io::fcntl_dupfd_cloexec(&container.pidfd, 3) else { return };
                let reply = Reply::Started { pidfd: outgoing.add(pidfd), started_at: container.started_at };
                self.reply(asker, reply, outgoing);
                let name = container.name.clone();
                self.containers.insert(name, *container);
            }
            Purpose::Exec { exec_id, terminal } => {
                let reply = Reply::ExecStarted { terminal: terminal.map(|master| outgoing.add(master)) };
                self.reply(asker, reply, outgoing);
                self.execs.push((pid, exec_id));
            }
            Purpose::Transfer { answered } => {
                if !answered {
                    self.reply(asker, Reply::Done, outgoing);
                }
            }
        }
        if let Some(status) = exited {
            self.note_exit(pid, status);
        }
    }

    /// Reaps every child that has ended, orphans of a shared pid namespace included.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if let Some(status) = exit_status(status) {
                self.note_exit(pid.as_raw_nonzero().get(), status);
            }
        }
    }

    fn note_exit(&mut self, pid: i32, status: ExitStatus) {
        if let Some(index) = self.launches.iter().position(|launch| launch.pid == pid) {
            // Its end of the report closed with it, so that everything it said is there to be read.
            let mut launch = self.launches.swap_remove(index);
            launch.exited = Some(status);
            self.read_report(&mut launch);
            self.finish_launch(launch);
        } else if let Some(container) = self.containers.values_mut().find(|container| container.pid == pid) {
            container.ended = Some(Ended { status, at: now(), since: std::time::Instant::now() });
        } else if let Some(index) = self.execs.iter().position(|(exec_pid, _)| *exec_pid == pid) {
            let (_, exec_id) = self.execs.swap_remove(index);
            self.tell(&FromAgent::Event(AgentEvent::ExecExited { exec_id, status }), Outgoing::default());
        }
    }

    /// Records the exit of every container whose output is complete.
    fn finish_containers(&mut self) {
        self.containers.values().for_each(Container::kill_members);
        let over: Vec<String> =
            self.containers.values().filter(|one| one.is_over()).map(|one| one.name.clone()).collect();
        for name in over {
            let Some(mut container) = self.containers.remove(&name) else { continue };
            let Some(ended) = container.ended else { continue };
            container.streams.drain();
            self.outlets.extend(container.streams.into_outlets().filter(|outlet: &Outlet| !outlet.is_empty()));
            self.record_exit(name, ended.status, container.started_at, ended.at);
        }
    }

    /// Keeps an end until somebody acknowledges it, and tells it to who is there.
    fn record_exit(&mut self, container: String, status: ExitStatus, started_at: Instant, finished_at: Instant) {
        let exit = ContainerExit { event_id: self.next_event_id, container, status, started_at, finished_at };
        self.next_event_id = self.next_event_id.saturating_add(1);
        if self.exits.len() >= EXIT_RECORDS_MAX {
            self.exits.pop_front();
        }
        self.exits.push_back(exit.clone());
        self.tell(&FromAgent::Event(AgentEvent::ContainerExited(exit)), Outgoing::default());
    }
}

/// What a shell makes of a program that did not start.
const fn refusal_code(refusal: &Refusal) -> i32 {
    match refusal {
        Refusal::CommandNotFound { .. } => 127,
        Refusal::PermissionDenied { .. } => 126,
        _ => 128,
    }
}

fn exit_status(status: WaitStatus) -> Option<ExitStatus> {
    status.exit_status().map(ExitStatus::Code).or_else(|| status.terminating_signal().map(ExitStatus::Signal))
}
