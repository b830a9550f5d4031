//! Making a process of a container: what the agent prepares, and what the child does until it is the program.
//!
//! The child inherits the request by memory and its mounts, groups and pipes by descriptor. It tells the agent what went
//! wrong (or hands over its terminal's master) through a close-on-exec socket: when that socket ends in silence, the
//! program runs. The agent never waits for it; see [`Launch`].

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{CWD, Mode, OFlags};
use sampan_sys::process::{self, Forked, NEW_CGROUP, NEW_MOUNT, NEW_PID, clone3, leave_namespaces};
use sampan_sys::socket;
use sampan_wire::Slot;
use sampan_wire::agent::{ChildReport, ExitStatus, ProcessSpec, Refusal};
use sampan_wire::frame;

use crate::container::Container;
use crate::fault::AtStage;
use crate::identity::{self, Identity};
use crate::privileges;
use crate::rootfs::{Terminal, Tree, ensure, open_terminal};

/// Where programs are looked for when the environment does not say (docker's default).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A child whose report has not ended yet.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) asker: Asker,
    pub(crate) pid: i32,
    pub(crate) report: OwnedFd,
    pub(crate) purpose: Purpose,
    pub(crate) failure: Option<Refusal>,
    /// Set when the child was reaped before its report was read to the end.
    pub(crate) exited: Option<ExitStatus>,
}

/// Who waits for a reply: a request of one connection. A later connection counts its requests anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) connection: u64,
    pub(crate) request_id: u64,
}

/// What a child is to become.
#[derive(Debug)]
pub(crate) enum Purpose {
    Container(Box<Container>),
    Exec {
        exec_id: u64,
        terminal: Option<OwnedFd>,
    },
    /// An archive on its way out (answered when its path is open) or in (answered at the end).
    Transfer {
        answered: bool,
    },
}

/// A container's streams on the child's side.
#[derive(Debug)]
pub(crate) enum ChildStreams {
    /// The child makes a terminal in the container's devpts and hands its master over.
    Terminal { columns: u16, rows: u16 },
    /// What is absent is `/dev/null`.
    Pipes([Option<OwnedFd>; 3]),
}

/// Where a child lives.
pub(crate) enum Placement<'a> {
    /// A new container in a mount namespace of its own.
    New { tree: &'a Tree, processes: Processes<'a> },
    /// A process beside a container's init, given by its pidfd; `agent_pid_namespace` leads back.
    Beside { init: BorrowedFd<'a>, agent_pid_namespace: BorrowedFd<'a> },
}

/// Whose processes a new container sees.
#[derive(Clone, Copy)]
pub(crate) enum Processes<'a> {
    /// Its own.
    Own,
    /// The agent's: the pod's, or the host's.
    Agents,
    /// Those of another container's init.
    Of { init: BorrowedFd<'a>, agent_pid_namespace: BorrowedFd<'a> },
}

/// A child as the agent holds it.
pub(crate) struct Child {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) report: OwnedFd,
}

/// Clones a child that runs `body` with its end of the report; whatever `body` returns is reported as a failure.
pub(crate) fn make_child(
    placement: &Placement<'_>,
    body: impl FnOnce(&OwnedFd) -> Result<Infallible, Refusal>,
) -> Result<Child, Refusal> {
    let (report, childs_end) = socket::pair().at("make a report socket")?;
    rustix::io::ioctl_fionbio(&report, true).at("make a report socket")?;
    let (flags, joined) = match placement {
        Placement::New { processes: Processes::Own, .. } => (NEW_MOUNT | NEW_PID, None),
        Placement::New { processes: Processes::Agents, .. } => (NEW_MOUNT, None),
        Placement::New { processes: Processes::Of { init, agent_pid_namespace }, .. } => {
            (NEW_MOUNT, Some((*init, *agent_pid_namespace)))
        }
        Placement::Beside { init, agent_pid_namespace } => (0, Some((*init, *agent_pid_namespace))),
    };
    if let Some((init, _)) = joined {
        process::enter_namespaces(init, NEW_PID).at("join the container's pid namespace")?;
    }
    let forked = clone3(flags, None);
    if matches!(forked, Ok(Forked::Child)) {
        process::reset_signals();
        let Err(refusal) = body(&childs_end);
        report_to_agent(&childs_end, &ChildReport::Failed(refusal), &[]);
        process::exit_now(1);
    }
    if let Some((_, agent_pid_namespace)) = joined {
        process::enter_namespaces(agent_pid_namespace, NEW_PID).at("return to the pod's pid namespace")?;
    }
    match forked.at("clone a process")? {
        Forked::Parent { pid, pidfd } => Ok(Child { pid, pidfd, report }),
        Forked::Child => process::exit_now(1),
    }
}

/// Best effort: when the agent has gone, there is nobody to tell.
pub(crate) fn report_to_agent(report: &OwnedFd, message: &ChildReport, descriptors: &[BorrowedFd<'_>]) {
    if let Ok(bytes) = frame::encode(message, descriptors.len()) {
        drop(socket::send(report.as_fd(), &bytes, descriptors));
    }
}

/// The child's side of a container or an exec, from the first instruction to the program's.
pub(crate) fn become_program(
    placement: &Placement<'_>,
    process: &ProcessSpec,
    cgroups: &[OwnedFd],
    streams: &ChildStreams,
    dies_with_agent: bool,
    report: &OwnedFd,
) -> Result<Infallible, Refusal> {
    let mut keep: Vec<RawFd> = cgroups.iter().map(AsRawFd::as_raw_fd).collect();
    keep.push(report.as_raw_fd());
    if let ChildStreams::Pipes(pipes) = streams {
        keep.extend(pipes.iter().flatten().map(AsRawFd::as_raw_fd));
    }
    keep_of_placement(placement, &mut keep);
    process::close_all_except(&keep);

    for group in cgroups {
        rustix::io::write(group, b"0").at("enter the container's cgroup")?;
    }
    let terminal = take_place(placement, matches!(streams, ChildStreams::Terminal { .. }))?;
    rustix::process::setsid().at("start a session")?;
    take_streams(streams, terminal.as_ref(), report)?;

    let (passwd, group) = identity::read_accounts();
    let supplemental = &process.supplemental_groups;
    let identity = identity::resolve(&process.user, supplemental, process.strict_groups, &passwd, &group)?;
    if let Some(terminal) = &terminal {
        // As login does: the terminal belongs to its user. A read-only or foreign one still works for its opener.
        rustix::fs::fchown(&terminal.user_end, Some(rustix::fs::Uid::from_raw(identity.uid)), None).ok();
    }
    let directory = working_directory(process)?;
    privileges::confine(process, &identity)?;
    rustix::process::chdir(directory.as_str())
        .map_err(|_errno| Refusal::BadWorkingDirectory { directory: directory.clone() })?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if dies_with_agent {
        // Not where a set-uid program is to run; its group's end reaches that one too.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).at("follow the agent")?;
    }
    Err(execute(process, &identity))
}

fn keep_of_placement(placement: &Placement<'_>, keep: &mut Vec<RawFd>) {
    match placement {
        Placement::New { tree, .. } => {
            keep.extend([tree.root.as_raw_fd(), tree.devices.as_raw_fd()]);
            keep.extend(tree.volumes.iter().filter_map(|volume| match &volume.source {
                crate::rootfs::Source::Detached(mount) => Some(mount.as_raw_fd()),
                crate::rootfs::Source::Tmpfs { .. } => None,
            }));
        }
        Placement::Beside { init, .. } => keep.push(init.as_raw_fd()),
    }
}

fn take_place(placement: &Placement<'_>, with_terminal: bool) -> Result<Option<Terminal>, Refusal> {
    match placement {
        Placement::New { tree, .. } => {
            leave_namespaces(NEW_CGROUP).at("leave the pod's cgroup namespace")?;
            let terminal = tree.assemble(with_terminal)?;
            tree.enter()?;
            Ok(terminal)
        }
        Placement::Beside { init, .. } => {
            process::enter_namespaces(*init, NEW_MOUNT | NEW_CGROUP).at("join the container's namespaces")?;
            if with_terminal { Ok(Some(open_terminal(CWD, "/dev/pts/ptmx")?)) } else { Ok(None) }
        }
    }
}

fn take_streams(streams: &ChildStreams, terminal: Option<&Terminal>, report: &OwnedFd) -> Result<(), Refusal> {
    let stage = "connect the standard streams";
    match (streams, terminal) {
        (ChildStreams::Terminal { columns, rows }, Some(terminal)) => {
            set_size(&terminal.master, *columns, *rows).at("size the terminal")?;
            report_to_agent(report, &ChildReport::Terminal(Slot(0)), &[terminal.master.as_fd()]);
            rustix::process::ioctl_tiocsctty(&terminal.user_end).at("take the terminal")?;
            for stream in 0..3 {
                process::become_standard_stream(terminal.user_end.as_fd(), stream).at(stage)?;
            }
        }
        (ChildStreams::Pipes(pipes), _) => {
            let flags = OFlags::RDWR | OFlags::CLOEXEC;
            let null = rustix::fs::open("/dev/null", flags, Mode::empty()).at("open /dev/null")?;
            for (stream, pipe) in (0..3).zip(pipes) {
                process::become_standard_stream(pipe.as_ref().unwrap_or(&null).as_fd(), stream).at(stage)?;
            }
        }
        (ChildStreams::Terminal { .. }, None) => {
            return Err(Refusal::Failed { stage: stage.into(), errno: libc::ENOTTY });
        }
    }
    Ok(())
}

/// Sets a terminal's size; nothing is done for 0 × 0, which means that the size is not known.
pub(crate) fn set_size(terminal: &OwnedFd, columns: u16, rows: u16) -> rustix::io::Result<()> {
    if columns == 0 && rows == 0 {
        return Ok(());
    }
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size)
}

/// The working directory, created when it is missing, as docker does.
fn working_directory(process: &ProcessSpec) -> Result<String, Refusal> {
    let directory = if process.working_directory.is_empty() { "/" } else { &process.working_directory };
    let refusal = || Refusal::BadWorkingDirectory { directory: directory.to_owned() };
    if !directory.starts_with('/') {
        return Err(refusal());
    }
    let root = sampan_sys::mount::open_directory(CWD, "/").at("open the root")?;
    match ensure(root.as_fd(), directory, true) {
        // A directory that only the user may enter is for the user to enter.
        Ok(_) | Err(rustix::io::Errno::ACCESS) => Ok(directory.to_owned()),
        Err(_) => Err(refusal()),
    }
}

/// Runs the program, searching `PATH` as a shell does; returns why it could not.
fn execute(process: &ProcessSpec, identity: &Identity) -> Refusal {
    let Some(program) = process.command.first() else {
        return Refusal::CommandNotFound { command: String::new() };
    };
    let not_found = || Refusal::CommandNotFound { command: program.clone() };
    let mut environment = process.environment.clone();
    let value_of = |environment: &[String], name: &str| {
        environment.iter().rev().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
    };
    if value_of(&environment, "HOME").is_none() {
        let home = identity.home.as_deref().filter(|home| !home.is_empty()).unwrap_or("/");
        environment.push(format!("HOME={home}"));
    }
    let path = value_of(&environment, "PATH").unwrap_or_else(|| {
        environment.push(format!("PATH={DEFAULT_PATH}"));
        DEFAULT_PATH.to_owned()
    });
    let strings = |strings: &[String]| -> Result<Vec<CString>, Refusal> {
        strings.iter().map(|string| CString::new(string.as_str()).map_err(|_nul| nul_refusal())).collect()
    };
    let (arguments, environment) = match (strings(&process.command), strings(&environment)) {
        (Ok(arguments), Ok(environment)) => (arguments, environment),
        (Err(refusal), _) | (_, Err(refusal)) => return refusal,
    };
    let candidates: Vec<String> = if program.contains('/') {
        vec![program.clone()]
    } else {
        path.split(':').map(|dir| format!("{}/{program}", if dir.is_empty() { "." } else { dir })).collect()
    };
    let mut refusal = not_found();
    for candidate in candidates.iter().filter(|_| !program.is_empty()) {
        let Ok(candidate) = CString::new(candidate.as_str()) else { return nul_refusal() };
        let error = process::replace(candidate.as_ref() as &CStr, &arguments, &environment);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            Some(libc::EACCES | libc::EPERM | libc::EISDIR) => {
                refusal = Refusal::PermissionDenied { command: program.clone() };
            }
            errno => return Refusal::Failed { stage: format!("execute {program}"), errno: errno.unwrap_or(libc::EIO) },
        }
    }
    refusal
}

fn nul_refusal() -> Refusal {
    Refusal::Failed { stage: "pass a string with a NUL byte".into(), errno: libc::EINVAL }
}
