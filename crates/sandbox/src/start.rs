//! Starting containers and execs, attaching, copying: whatever passes descriptors to the agent.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustix::pipe::{PipeFlags, pipe_with};
use sampan_agent::link::Outgoing;
use sampan_wire::agent::{
    ContainerStart, ExecStart, ExecStreams, ExitStatus, MountSource as WireMountSource, MountStart,
    ProcessNamespace as WireProcessNamespace, ProcessSpec, Refusal, Reply, Request, ResourceLimit, User as WireUser,
};

use crate::cgroup::{Group, Resources};
use crate::error::{SandboxError, StartError};
use crate::limits::{OOM_SCORE_ADJUSTMENT, REQUEST_DEADLINE, START_DEADLINE, TRANSFER_DEADLINE};
use crate::sandbox::{ProcessSandbox, timestamp};
use crate::sandboxes::blocking;
use crate::spec::{
    ContainerSpec, Device, ExecSpec, GroupsPolicy, MountSource, ProcessNamespace, Seccomp, User, check_name,
    limit_number,
};
use crate::streams::{Input, Output, Terminal};
use crate::{devices, seccomp};

/// A container whose program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// In the host's pid namespace; 0 when it had ended before it could be looked at.
    pub pid: u32,
    pub at: jiff::Timestamp,
}

/// What the host gives a container beside its root: ways into its groups, and its devices.
#[derive(Debug)]
pub struct Supplies {
    cgroups: Vec<OwnedFd>,
    devices: OwnedFd,
}

/// How an exec ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecStatus {
    /// The exit code; 128 + n for a process ended by signal n.
    Ended { code: i32, signal: Option<i32> },
    /// The sandbox has gone, and the process with it.
    Lost,
}

/// A process beside a container's own. Dropping it closes its streams and lets it run.
pub struct ExecProcess {
    /// For [`ProcessSandbox::signal_exec`].
    pub id: u64,
    pub stdin: Option<Input>,
    /// With a terminal, all its output.
    pub stdout: Option<Output>,
    pub stderr: Option<Output>,
    pub terminal: Option<Terminal>,
    pub exit: BoxFuture<'static, ExecStatus>,
}

/// A share in a container's standard streams. They end with the container.
#[derive(Debug)]
pub struct Attached {
    pub stdin: Input,
    pub stdout: Output,
    pub stderr: Output,
}

impl ProcessSandbox {
    /// Starts a container; returns once its program runs.
    pub async fn start_container(&self, spec: ContainerSpec) -> Result<Started, StartError> {
        spec.check()?;
        let supplies = self.supply(&spec.name, &spec.resources, spec.privileged, &spec.devices).await?;
        self.start_supplied(spec, supplies).await
    }

    /// Makes a container's groups, with their limits, and its devices. Groups of a container that is not started after all go
    /// when one of its name is, or with the sandbox.
    pub async fn supply(
        &self,
        container: &str,
        resources: &Resources,
        privileged: bool,
        devices: &[Device],
    ) -> Result<Supplies, StartError> {
        check_name(container)?;
        let group = self.group().of_container(container);
        if group.exists() {
            self.clear_earlier_run(container, group.clone()).await?;
        }
        let (resources, wanted) = (resources.clone(), devices.to_vec());
        let (root, own_users) = (self.root_id(), self.user_namespace().is_some());
        let made = blocking("prepare the container", move || {
            group.create()?;
            group.limit(&resources)?;
            group.kill_as_one()?;
            let mut nodes = devices::find(&wanted)?;
            if !privileged {
                group.restrict_devices(own_users, &nodes)?;
            } else if !own_users {
                nodes.extend(devices::all_of_host()?);
            }
            Ok(Supplies { cgroups: group.open_entrances()?, devices: devices::make(root, &nodes)? })
        });
        Ok(made.await?)
    }

    /// Starts a container that has its supplies already, which must have been made for this one.
    pub async fn start_supplied(&self, spec: ContainerSpec, supplies: Supplies) -> Result<Started, StartError> {
        spec.check()?;
        let (request, outgoing) = self.start_request(spec, supplies)?;
        let (reply, mut descriptors) = self.ask(request, outgoing, START_DEADLINE).await?;
        match reply {
            Reply::Started { pidfd, started_at } => {
                let pidfd = descriptors.take(pidfd).map_err(SandboxError::Protocol)?;
                Ok(Started { pid: host_pid(&pidfd), at: timestamp(started_at) })
            }
            Reply::Refused(refusal) => Err(refusal.into()),
            _ => Err(SandboxError::UnexpectedAnswer.into()),
        }
    }

    /// Removes the group of an earlier run of the same container: its counters must not be taken for the next one's.
    async fn clear_earlier_run(&self, name: &str, group: Group) -> Result<(), SandboxError> {
        if self.running().await?.iter().any(|(running, _)| running == name) {
            return Err(Refusal::NameTaken { container: name.to_owned() }.into());
        }
        blocking("remove the group of the container's earlier run", move || group.remove()).await
    }

    fn start_request(&self, spec: ContainerSpec, supplies: Supplies) -> Result<(Request, Outgoing), SandboxError> {
        let mut outgoing = Outgoing::default();
        let seccomp = match &spec.seccomp {
            Seccomp::RuntimeDefault => self.node.filters.default_filter(spec.capabilities).to_vec(),
            Seccomp::Unconfined => Vec::new(),
            Seccomp::Localhost(json) => seccomp::from_json(json, spec.capabilities)?,
        };
        let limit = |limit: &crate::spec::Limit| {
            Ok(ResourceLimit { resource: limit_number(&limit.name)?, soft: limit.soft, hard: limit.hard })
        };
        let process = ProcessSpec {
            command: spec.command,
            environment: join_environment(&spec.env),
            working_directory: spec.working_dir,
            user: wire_user(spec.user),
            supplemental_groups: spec.supplemental_groups,
            strict_groups: spec.groups_policy == GroupsPolicy::Strict,
            capabilities: spec.capabilities.bits(),
            ambient_capabilities: spec.ambient_capabilities.bits(),
            no_new_privileges: spec.no_new_privileges,
            seccomp,
            limits: spec.rlimits.iter().map(limit).collect::<Result<_, SandboxError>>()?,
            oom_score_adjustment: spec.oom_score_adjustment.unwrap_or(OOM_SCORE_ADJUSTMENT),
            apparmor_profile: spec.apparmor_profile,
        };
        let mounts = spec.mounts.into_iter().map(|mount| MountStart {
            source: match mount.source {
                MountSource::Detached(mount) => WireMountSource::Detached(outgoing.add(mount)),
                MountSource::Tmpfs { size_bytes, mode } => WireMountSource::Tmpfs { size_bytes, mode },
            },
            destination: mount.destination,
            read_only: mount.read_only,
        });
        let mounts = mounts.collect();
        let start = ContainerStart {
            name: spec.name,
            root: outgoing.add(spec.root),
            devices: outgoing.add(supplies.devices),
            mounts,
            cgroups: supplies.cgroups.into_iter().map(|entrance| outgoing.add(entrance)).collect(),
            cgroup_hierarchies: self.group().version_1_controllers(),
            log: outgoing.add(spec.log),
            process,
            tty: spec.tty,
            stdin: spec.stdin,
            stdin_once: spec.stdin_once,
            read_only_root: spec.read_only_root,
            privileged: spec.privileged,
            process_namespace: match spec.process_namespace {
                ProcessNamespace::Own => WireProcessNamespace::Own,
                ProcessNamespace::Pod | ProcessNamespace::Node => WireProcessNamespace::Agents,
                ProcessNamespace::Target(container) => WireProcessNamespace::Target(container),
            },
            masked_paths: spec.masked_paths,
            read_only_paths: spec.read_only_paths,
        };
        Ok((Request::StartContainer(Box::new(start)), outgoing))
    }

    /// Runs a command beside a container's own process, under the same limits and restrictions.
    pub async fn exec(&self, container: &str, spec: ExecSpec) -> Result<ExecProcess, StartError> {
        let group = self.group().of_container(container);
        let absent = |error: SandboxError| match error {
            SandboxError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                SandboxError::NoSuchContainer { container: container.to_owned() }
            }
            other => other,
        };
        let cgroups = blocking("open the container's groups", move || group.open_entrances()).await.map_err(absent)?;
        let mut outgoing = Outgoing::default();
        let cgroups = cgroups.into_iter().map(|entrance| outgoing.add(entrance)).collect();
        let mut ours = [None, None, None];
        let streams = if spec.tty {
            let (columns, rows) = spec.terminal_size.unwrap_or_default();
            ExecStreams::Terminal { columns, rows }
        } else {
            let (pipes, theirs) = make_pipes(spec.stdin).map_err(SandboxError::io("make pipes"))?;
            ours = pipes;
            let [stdin, stdout, stderr] = theirs.map(|pipe| pipe.map(|pipe| outgoing.add(pipe)));
            ExecStreams::Pipes { stdin, stdout, stderr }
        };
        let exec_id = self.next_exec_id();
        let start = ExecStart {
            exec_id,
            container: container.to_owned(),
            command: spec.command,
            environment: join_environment(&spec.env),
            working_directory: spec.working_dir,
            user: spec.user.map(wire_user),
            cgroups,
            streams,
        };
        let exit = self.events.expect_exec(exec_id);
        let answer = self.ask(Request::Exec(Box::new(start)), outgoing, START_DEADLINE).await;
        let (reply, mut descriptors) = answer.inspect_err(|_| self.events.forget_exec(exec_id))?;
        let terminal = match reply {
            Reply::ExecStarted { terminal } => {
                terminal.map(|slot| descriptors.take(slot)).transpose().map_err(SandboxError::Protocol)?
            }
            other => {
                self.events.forget_exec(exec_id);
                let Reply::Refused(refusal) = other else { return Err(SandboxError::UnexpectedAnswer.into()) };
                return Err(refusal.into());
            }
        };
        let exit = async move { exit.await.map_or(ExecStatus::Lost, status) }.boxed();
        Ok(exec_process(exec_id, ours, terminal, spec.stdin, exit).map_err(SandboxError::io("open the streams"))?)
    }

    /// Unique across daemons: an exec of the one before may still end.
    fn next_exec_id(&self) -> u64 {
        let count = self.next_exec_id.fetch_add(1, Ordering::Relaxed);
        (u64::from(std::process::id()) << 32) | (count & 0xffff_ffff)
    }

    /// Takes part in a container's standard streams from now on; the first one is told at most 64 KiB of what a terminal
    /// (or a container with `stdin_once`) said before. Input is ignored by a container without stdin.
    pub async fn attach(&self, container: &str) -> Result<Attached, SandboxError> {
        let (stdin, stdout, stderr) = self.take_part(container, true).await?;
        Ok(Attached { stdin: stdin.ok_or(SandboxError::UnexpectedAnswer)?, stdout, stderr })
    }

    /// The same for one who has nothing to say: only standard output and standard error. Where input ends with the first
    /// who attached to it, listeners do not count.
    pub async fn listen(&self, container: &str) -> Result<(Output, Output), SandboxError> {
        let (_, stdout, stderr) = self.take_part(container, false).await?;
        Ok((stdout, stderr))
    }

    async fn take_part(
        &self,
        container: &str,
        with_stdin: bool,
    ) -> Result<(Option<Input>, Output, Output), SandboxError> {
        let (ours, theirs) = make_pipes(with_stdin).map_err(SandboxError::io("make pipes"))?;
        let mut outgoing = Outgoing::default();
        let [stdin, stdout, stderr] = theirs.map(|pipe| pipe.map(|pipe| outgoing.add(pipe)));
        let request = Request::Attach { container: container.to_owned(), stdin, stdout, stderr };
        self.command(request, outgoing).await?;
        let [stdin, Some(stdout), Some(stderr)] = ours else { return Err(SandboxError::UnexpectedAnswer) };
        let open = || Ok((stdin.map(Input::new).transpose()?, Output::new(stdout)?, Output::new(stderr)?));
        open().map_err(SandboxError::io("open the streams"))
    }

    /// Sets the size of a container's own terminal.
    pub async fn resize(&self, container: &str, columns: u16, rows: u16) -> Result<(), SandboxError> {
        let request = Request::Resize { container: container.to_owned(), columns, rows };
        self.command(request, Outgoing::default()).await
    }

    /// A tar archive of `path`, whose entries are named relative to its parent. An archive that breaks off has failed.
    pub async fn copy_out(&self, container: &str, path: &str) -> Result<OwnedFd, SandboxError> {
        let (read, write) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|error| SandboxError::io("make a pipe")(error.into()))?;
        let mut outgoing = Outgoing::default();
        let (container, path) = (container.to_owned(), path.to_owned());
        let request = Request::CopyOut { container, path, archive: outgoing.add(write) };
        match self.ask(request, outgoing, REQUEST_DEADLINE).await?.0 {
            Reply::Done => Ok(read),
            Reply::Refused(refusal) => Err(refusal.into()),
            _ => Err(SandboxError::UnexpectedAnswer),
        }
    }

    /// Where to write a tar archive that is extracted in `directory`, and the outcome once it has been closed.
    pub async fn copy_in(
        self: &std::sync::Arc<Self>,
        container: &str,
        directory: &str,
    ) -> Result<(OwnedFd, BoxFuture<'static, Result<(), SandboxError>>), SandboxError> {
        let (read, write) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|error| SandboxError::io("make a pipe")(error.into()))?;
        let mut outgoing = Outgoing::default();
        let (container, directory) = (container.to_owned(), directory.to_owned());
        let request = Request::CopyIn { container, directory, archive: outgoing.add(read) };
        let sandbox = std::sync::Arc::clone(self);
        let outcome = tokio::spawn(async move {
            match sandbox.ask(request, outgoing, TRANSFER_DEADLINE).await?.0 {
                Reply::Done => Ok(()),
                Reply::Refused(refusal) => Err(refusal.into()),
                _ => Err(SandboxError::UnexpectedAnswer),
            }
        });
        let joined = async move { outcome.await.unwrap_or(Err(SandboxError::AgentGone)) };
        Ok((write, joined.boxed()))
    }
}

fn status(status: ExitStatus) -> ExecStatus {
    match status {
        ExitStatus::Code(code) => ExecStatus::Ended { code, signal: None },
        ExitStatus::Signal(signal) => ExecStatus::Ended { code: 128_i32.saturating_add(signal), signal: Some(signal) },
    }
}

fn exec_process(
    id: u64,
    pipes: [Option<OwnedFd>; 3],
    terminal: Option<OwnedFd>,
    with_stdin: bool,
    exit: BoxFuture<'static, ExecStatus>,
) -> io::Result<ExecProcess> {
    if let Some(master) = terminal {
        let duplicate = rustix::io::fcntl_dupfd_cloexec(&master, 3)?;
        return Ok(ExecProcess {
            id,
            terminal: Some(Terminal::new(&master)?),
            stdin: with_stdin.then(|| Input::new(duplicate)).transpose()?,
            stdout: Some(Output::new(master)?),
            stderr: None,
            exit,
        });
    }
    let [stdin, stdout, stderr] = pipes;
    Ok(ExecProcess {
        id,
        stdin: stdin.map(Input::new).transpose()?,
        stdout: stdout.map(Output::new).transpose()?,
        stderr: stderr.map(Output::new).transpose()?,
        terminal: None,
        exit,
    })
}

/// Our ends and theirs of stdin (where wanted), stdout and stderr.
type PipeEnds = ([Option<OwnedFd>; 3], [Option<OwnedFd>; 3]);

fn make_pipes(with_stdin: bool) -> io::Result<PipeEnds> {
    let (stdout, their_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, their_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    let (their_stdin, stdin) = if with_stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        (Some(read), Some(write))
    } else {
        (None, None)
    };
    Ok(([stdin, Some(stdout), Some(stderr)], [their_stdin, Some(their_stdout), Some(their_stderr)]))
}

fn join_environment(environment: &[(String, String)]) -> Vec<String> {
    environment.iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn wire_user(user: User) -> WireUser {
    match user {
        User::Ids { uid, gid, groups } => WireUser::Ids { uid, gid, groups },
        User::Named(name) => WireUser::Named(name),
    }
}

/// The pid behind a pidfd as `/proc` shows it (proc_pid_fdinfo(5)).
fn host_pid(pidfd: &OwnedFd) -> u32 {
    let path = format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(pidfd));
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse::<i64>().ok());
    pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default()
}
