//! One container as its agent sees it.
//!
//! ```text
//! launching ──report ends──> running ──init reaped──> draining ──output ended, or time is up──> exit recorded
//! ```
//! A container stays until its output has reached the log, so that whoever hears of its exit finds the log complete.

use std::os::fd::OwnedFd;
use std::time::Instant as Monotonic;

use sampan_wire::agent::{ExitStatus, Instant, ProcessSpec};

use crate::limits::DRAIN_MAX;
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
    /// Whether nothing more is to be expected of an ended container.
    pub(crate) fn is_over(&self) -> bool {
        self.ended.is_some_and(|ended| self.streams.output_ended() || ended.since.elapsed() >= DRAIN_MAX)
    }
}
