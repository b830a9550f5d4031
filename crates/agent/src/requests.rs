//! What the agent does on request.

use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};
use sampan_sys::process::signal_by_pidfd;
use sampan_wire::agent::{
    ContainerStart, ExecStart, ExecStreams, FromDaemon, MountSource, ProcessNamespace, Refusal, Reply, Request,
};

use crate::container::Container;
use crate::copy;
use crate::fault::AtStage;
use crate::launch::{
    Asker, Child, ChildStreams, Launch, Placement, Processes, Purpose, become_program, make_child, set_size,
};
use crate::limits::{CONTAINERS_MAX, EXECS_MAX};
use crate::link::{Descriptors, LinkError, Outgoing};
use crate::pod::{Agent, now};
use crate::rootfs::{Source, Tree, Volume};
use crate::streams::{Streams, StreamsSpec, make_nonblocking};

/// The other ends of a container's pipes: the agent's and the child's.
type PipeEnds = ([Option<OwnedFd>; 3], [Option<OwnedFd>; 3]);

impl Agent {
    /// Does what is asked and replies, now or when the outcome is known. An error ends the connection.
    pub(crate) fn handle(&mut self, message: FromDaemon, mut descriptors: Descriptors) -> Result<(), LinkError> {
        let id = Asker { connection: self.connection, request_id: message.request_id };
        let outcome = match message.request {
            Request::Hello => Ok(Some(Reply::Hello(self.state()))),
            Request::Configure(configuration) => {
                let taken = configuration.cgroups.iter().map(|slot| descriptors.take(*slot));
                let cgroups = taken.collect::<Result<Vec<_>, _>>()?;
                self.configure(configuration, &cgroups).map(|()| Some(Reply::Done))
            }
            Request::StartContainer(start) => {
                let parts = ContainerParts::take(&start, &mut descriptors)?;
                self.start_container(id, *start, parts).map(|()| None)
            }
            Request::Exec(start) => {
                let cgroups = start.cgroups.iter().map(|slot| descriptors.take(*slot)).collect::<Result<_, _>>()?;
                let streams = match &start.streams {
                    ExecStreams::Terminal { columns, rows } => {
                        ChildStreams::Terminal { columns: *columns, rows: *rows }
                    }
                    ExecStreams::Pipes { stdin, stdout, stderr } => {
                        let [a, b, c] = [stdin, stdout, stderr].map(|slot| slot.map(|slot| descriptors.take(slot)));
                        ChildStreams::Pipes([a.transpose()?, b.transpose()?, c.transpose()?])
                    }
                };
                self.exec(id, *start, cgroups, streams).map(|()| None)
            }
            Request::Attach { container, stdin, stdout, stderr } => {
                let [a, b, c] = [stdin, stdout, stderr].map(|slot| slot.map(|slot| descriptors.take(slot)));
                let pipes = [a.transpose()?, b.transpose()?, c.transpose()?];
                self.attach(&container, pipes).map(|()| Some(Reply::Done))
            }
            Request::Resize { container, columns, rows } => {
                self.resize(&container, columns, rows).map(|()| Some(Reply::Done))
            }
            Request::Signal { container, signal } => self.signal(&container, signal).map(|()| Some(Reply::Done)),
            Request::KillAll => {
                self.kill_all();
                Ok(Some(Reply::Done))
            }
            Request::SignalExec { exec_id, signal } => {
                self.signal_exec(exec_id, signal);
                Ok(Some(Reply::Done))
            }
            Request::CopyOut { container, path, archive } => {
                let archive = descriptors.take(archive)?;
                self.transfer(id, &container, &archive, |report| copy::send(&path, &archive, report)).map(|()| None)
            }
            Request::CopyIn { container, directory, archive } => {
                let archive = descriptors.take(archive)?;
                self.transfer(id, &container, &archive, |_| copy::receive(&directory, &archive)).map(|()| None)
            }
            Request::ReopenLog { container, log } => {
                let log = descriptors.take(log)?;
                self.running(&container).map(|container| {
                    container.streams.reopen_log(log);
                    Some(Reply::Done)
                })
            }
            Request::Acknowledge { event_id } => {
                self.exits.retain(|exit| exit.event_id != event_id);
                Ok(Some(Reply::Done))
            }
        };
        match outcome {
            Ok(None) => {}
            Ok(Some(reply)) => self.reply(id, reply, Outgoing::default()),
            Err(refusal) => self.reply(id, Reply::Refused(refusal), Outgoing::default()),
        }
        Ok(())
    }

    fn running(&mut self, container: &str) -> Result<&mut Container, Refusal> {
        let found = self.containers.get_mut(container).filter(|one| one.ended.is_none());
        found.ok_or_else(|| Refusal::NoSuchContainer { container: container.to_owned() })
    }

    fn start_container(&mut self, id: Asker, start: ContainerStart, parts: ContainerParts) -> Result<(), Refusal> {
        let Some(configuration) = &self.configuration else {
            return Err(Refusal::NotNow { why: "the pod is not configured yet".into() });
        };
        let (shared, on_host) = (configuration.share_process_namespace, configuration.host_process_namespace);
        let starting = |launch: &Launch| matches!(&launch.purpose, Purpose::Container(one) if one.name == start.name);
        if self.containers.contains_key(&start.name) || self.launches.iter().any(starting) {
            return Err(Refusal::NameTaken { container: start.name });
        }
        if self.containers.len().saturating_add(self.launches.len()) >= CONTAINERS_MAX {
            return Err(Refusal::NotNow { why: format!("the pod has {CONTAINERS_MAX} containers already") });
        }
        let ContainerParts { tree, cgroups, log } = parts;
        let (agents_ends, streams) = if start.tty {
            ([None, None, None], ChildStreams::Terminal { columns: 0, rows: 0 })
        } else {
            let (agents, childs) = make_pipes(start.stdin).at("make pipes")?;
            (agents, ChildStreams::Pipes(childs))
        };
        let target = self.target_of(&start.process_namespace)?;
        let processes = match (&start.process_namespace, &target, &self.own_pid_namespace) {
            (ProcessNamespace::Target(_), Some(init), Some(own)) => {
                Processes::Of { init: init.as_fd(), agent_pid_namespace: own.as_fd() }
            }
            (ProcessNamespace::Own, ..) if !shared => Processes::Own,
            _ => Processes::Agents,
        };
        let own_processes = matches!(processes, Processes::Own);
        let placement = Placement::New { tree: &tree, processes };
        let Child { pid, pidfd, report } = self.with_oom_score(start.process.oom_score_adjustment, || {
            make_child(&placement, |report| {
                become_program(&placement, &start.process, &cgroups, &streams, on_host, report)
            })
        })?;
        let spec = StreamsSpec { tty: start.tty, stdin: start.stdin, stdin_once: start.stdin_once };
        let container = Container {
            name: start.name,
            pid,
            pidfd,
            started_at: now(),
            process: start.process,
            tty: start.tty,
            stdin: start.stdin,
            streams: Streams::new(spec, log, agents_ends),
            members: if own_processes { None } else { cgroups.into_iter().next() },
            ended: None,
        };
        let purpose = Purpose::Container(Box::new(container));
        self.launches.push(Launch { asker: id, pid, report, purpose, failure: None, exited: None });
        Ok(())
    }

    /// The init of the container whose processes another one is to see.
    fn target_of(&mut self, namespace: &ProcessNamespace) -> Result<Option<OwnedFd>, Refusal> {
        let ProcessNamespace::Target(target) = namespace else { return Ok(None) };
        let init = &self.running(target)?.pidfd;
        rustix::io::fcntl_dupfd_cloexec(init, 3).at("duplicate a pidfd").map(Some)
    }

    /// That there is nobody is no failure.
    fn kill_all(&self) {
        if self.configuration.as_ref().is_none_or(|configuration| !configuration.host_process_namespace) {
            // From PID 1, -1 is everybody else in the pod.
            drop(sampan_sys::process::signal_by_pid(-1, libc::SIGKILL));
            return;
        }
        for container in self.containers.values().filter(|container| container.ended.is_none()) {
            signal_by_pidfd(container.pidfd.as_fd(), libc::SIGKILL).ok();
        }
        for (pid, _) in &self.execs {
            drop(sampan_sys::process::signal_by_pid(*pid, libc::SIGKILL));
        }
    }

    /// Signals an exec and what it has started in its own group. One that has ended hears nothing.
    fn signal_exec(&self, wanted: u64, signal: i32) {
        let Some((pid, _)) = self.execs.iter().find(|(_, exec_id)| *exec_id == wanted).filter(|(pid, _)| *pid > 1)
        else {
            return;
        };
        // Both may have ended by themselves.
        drop(sampan_sys::process::signal_by_pid(pid.saturating_neg(), signal));
        drop(sampan_sys::process::signal_by_pid(*pid, signal));
    }

    fn exec(
        &mut self,
        id: Asker,
        start: ExecStart,
        cgroups: Vec<OwnedFd>,
        streams: ChildStreams,
    ) -> Result<(), Refusal> {
        self.room_for_exec()?;
        let container = self.running(&start.container)?;
        let mut process = container.process.clone();
        process.command = start.command;
        let name_of = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
        for entry in start.environment {
            process.environment.retain(|existing| name_of(existing) != name_of(&entry));
            process.environment.push(entry);
        }
        if let Some(directory) = start.working_directory {
            process.working_directory = directory;
        }
        if let Some(user) = start.user {
            process.user = user;
        }
        let init = rustix::io::fcntl_dupfd_cloexec(&container.pidfd, 3).at("duplicate a pidfd")?;
        let child = self.make_child_beside(&init, process.oom_score_adjustment, |placement, report| {
            become_program(placement, &process, &cgroups, &streams, false, report)
        })?;
        let purpose = Purpose::Exec { exec_id: start.exec_id, terminal: None };
        let Child { pid, report, .. } = child;
        self.launches.push(Launch { asker: id, pid, report, purpose, failure: None, exited: None });
        Ok(())
    }

    fn transfer(
        &mut self,
        id: Asker,
        container: &str,
        archive: &OwnedFd,
        body: impl FnOnce(&OwnedFd) -> Result<std::convert::Infallible, Refusal>,
    ) -> Result<(), Refusal> {
        self.room_for_exec()?;
        let container = self.running(container)?;
        let score = container.process.oom_score_adjustment;
        let init = rustix::io::fcntl_dupfd_cloexec(&container.pidfd, 3).at("duplicate a pidfd")?;
        let child = self.make_child_beside(&init, score, |_, report| {
            copy::enter(&init, archive, report)?;
            body(report)
        })?;
        let purpose = Purpose::Transfer { answered: false };
        let Child { pid, report, .. } = child;
        self.launches.push(Launch { asker: id, pid, report, purpose, failure: None, exited: None });
        Ok(())
    }

    fn make_child_beside(
        &self,
        init: &OwnedFd,
        oom_score_adjustment: i32,
        body: impl FnOnce(&Placement<'_>, &OwnedFd) -> Result<std::convert::Infallible, Refusal>,
    ) -> Result<Child, Refusal> {
        let Some(own) = &self.own_pid_namespace else {
            return Err(Refusal::NotNow { why: "the pod is not configured yet".into() });
        };
        let placement = Placement::Beside { init: init.as_fd(), agent_pid_namespace: own.as_fd() };
        self.with_oom_score(oom_score_adjustment, || make_child(&placement, |report| body(&placement, report)))
    }

    fn room_for_exec(&self) -> Result<(), Refusal> {
        if self.execs.len().saturating_add(self.launches.len()) < EXECS_MAX {
            return Ok(());
        }
        Err(Refusal::NotNow { why: format!("{EXECS_MAX} execs run in the pod already") })
    }

    fn attach(&mut self, container: &str, pipes: [Option<OwnedFd>; 3]) -> Result<(), Refusal> {
        for pipe in pipes.iter().flatten() {
            make_nonblocking(pipe).at("attach")?;
        }
        if self.running(container)?.streams.attach(pipes) {
            return Ok(());
        }
        Err(Refusal::NotNow { why: "too many clients are attached already".into() })
    }

    fn resize(&mut self, container: &str, columns: u16, rows: u16) -> Result<(), Refusal> {
        match self.running(container)?.streams.terminal() {
            Some(terminal) => set_size(terminal, columns, rows).at("resize the terminal"),
            None => Err(Refusal::NotNow { why: "the container has no terminal".into() }),
        }
    }

    fn signal(&mut self, container: &str, signal: i32) -> Result<(), Refusal> {
        signal_by_pidfd(self.running(container)?.pidfd.as_fd(), signal).at("signal the container")
    }
}

/// A container's descriptors, taken out of the request.
struct ContainerParts {
    tree: Tree,
    cgroups: Vec<OwnedFd>,
    log: OwnedFd,
}

impl ContainerParts {
    fn take(start: &ContainerStart, descriptors: &mut Descriptors) -> Result<Self, LinkError> {
        let mut volumes = Vec::with_capacity(start.mounts.len());
        for mount in &start.mounts {
            let source = match &mount.source {
                MountSource::Detached(slot) => Source::Detached(descriptors.take(*slot)?),
                MountSource::Tmpfs { size_bytes, mode } => Source::Tmpfs { size_bytes: *size_bytes, mode: *mode },
            };
            volumes.push(Volume { source, destination: mount.destination.clone(), read_only: mount.read_only });
        }
        let tree = Tree {
            root: descriptors.take(start.root)?,
            devices: descriptors.take(start.devices)?,
            volumes,
            cgroup_hierarchies: start.cgroup_hierarchies.clone(),
            read_only: start.read_only_root,
            privileged: start.privileged,
            masked_paths: start.masked_paths.clone(),
            read_only_paths: start.read_only_paths.clone(),
        };
        let cgroups = start.cgroups.iter().map(|slot| descriptors.take(*slot)).collect::<Result<_, _>>()?;
        Ok(Self { tree, cgroups, log: descriptors.take(start.log)? })
    }
}

/// Pipes for a container without a terminal; only the agent's ends are nonblocking.
fn make_pipes(with_stdin: bool) -> rustix::io::Result<PipeEnds> {
    let (stdout, childs_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, childs_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    let (childs_stdin, stdin) = if with_stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        (Some(read), Some(write))
    } else {
        (None, None)
    };
    for descriptor in stdin.iter().chain([&stdout, &stderr]) {
        make_nonblocking(descriptor)?;
    }
    Ok(([stdin, Some(stdout), Some(stderr)], [childs_stdin, Some(childs_stdout), Some(childs_stderr)]))
}
