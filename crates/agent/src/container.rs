//! One container as its agent sees it.
//!
//! ```text
//! launching ──report ends──> running ──init reaped──> draining ──output ended, or time is up──> exit recorded
//! ```
//! A container stays until its output has reached the log, so that whoever hears of its exit finds the log complete.

use std::os::fd::OwnedFd;
use std::time::Instant as Monotonic;

use sampan_wire::agent::{ExitStatus, Instant, ProcessSpec};

use crate::limits::{DRAIN_MAX, READ_BYTES};
use crate::streams::Streams;

/// A container whose init runs, or has ended a moment ago.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) started_at: Instant,
    pub(crate) process: ProcessSpec,
    pub(crate) tty: bool,
    pub(crate) stdin: bool,
    pub(crate) streams: Streams,
    /// The list of its processes, kept where they do not die with its init: in a shared pid namespace.
    pub(crate) members: Option<OwnedFd>,
    pub(crate) ended: Option<Ended>,
}

/// How and when a container's init ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) at: Instant,
    pub(crate) since: Monotonic,
}

impl Container {
    /// Kills what an ended container has left running.
    pub(crate) fn kill_members(&self) {
        let Some(members) = self.members.as_ref().filter(|_| self.ended.is_some()) else { return };
        let mut text = [0; READ_BYTES];
        if rustix::fs::seek(members, rustix::fs::SeekFrom::Start(0)).is_err() {
            return;
        }
        let read = rustix::io::read(members, &mut text).unwrap_or_default();
        let text = String::from_utf8_lossy(text.get(..read).unwrap_or_default()).into_owned();
        for pid in text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 1) {
            // It may just have ended by itself.
            sampan_sys::process::signal_by_pid(pid, libc::SIGKILL).ok();
        }
    }

    /// Whether nothing more is to be expected of an ended container.
    pub(crate) fn is_over(&self) -> bool {
        self.ended.is_some_and(|ended| self.streams.output_ended() || ended.since.elapsed() >= DRAIN_MAX)
    }
}
