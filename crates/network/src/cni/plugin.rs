//! One call of a plugin: a program that reads JSON and prints JSON, with a deadline and bounds.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sampan_sys::namespace;
use serde_json::Value;

use super::{CniError, result};
use crate::limits::{CNI_OUTPUT_BYTES_MAX, CNI_PLUGIN_DEADLINE};

/// What a plugin is called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Add,
    Del,
    Check,
}

impl Operation {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
        }
    }
}

/// A call about one sandbox.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    /// The host's network namespace: plugins run there.
    pub(crate) home: BorrowedFd<'a>,
    pub(crate) bin_dir: &'a Path,
    pub(crate) sandbox: &'a str,
    /// A path to the sandbox's network namespace.
    pub(crate) namespace: &'a str,
    pub(crate) arguments: &'a str,
}

/// What the sandbox calls its interface.
pub(crate) const GUEST_INTERFACE: &str = "eth0";

impl Call<'_> {
    /// Runs a plugin; gives what it printed, if it had to print anything.
    pub(crate) fn run(&self, program: &str, operation: Operation, input: File) -> Result<Option<Value>, CniError> {
        let failed =
            |reason: String| CniError::Plugin { plugin: program.to_owned(), operation: operation.word(), reason };
        let spawned = namespace::in_network(self.home, || self.command(program, operation, input).spawn());
        let mut child = spawned.and_then(|child| child).map_err(|error| failed(error.to_string()))?;
        let read = drain(&mut child);
        if read.is_err() {
            // Whoever does not end in time is ended; the caller undoes what it has done.
            child.kill().ok();
        }
        let status = child.wait().map_err(|error| failed(error.to_string()))?;
        let (output, errors) = read.map_err(|error| failed(error.to_string()))?;
        if !status.success() {
            let complaint = result::complaint(&output, &errors);
            return Err(failed(if complaint.is_empty() { status.to_string() } else { complaint }));
        }
        if operation != Operation::Add {
            return Ok(None);
        }
        serde_json::from_slice(&output).map(Some).map_err(|error| failed(format!("it prints no JSON ({error})")))
    }

    fn command(&self, program: &str, operation: Operation, input: File) -> Command {
        let mut command = Command::new(self.bin_dir.join(program));
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", operation.word())
            .env("CNI_CONTAINERID", self.sandbox)
            .env("CNI_NETNS", self.namespace)
            .env("CNI_IFNAME", GUEST_INTERFACE)
            .env("CNI_ARGS", self.arguments)
            .env("CNI_PATH", self.bin_dir)
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

/// Both outputs to their ends, within bounds and time.
fn drain(child: &mut Child) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let (Some(mut output), Some(mut errors)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io::Error::other("it has no output"));
    };
    let deadline = Instant::now() + CNI_PLUGIN_DEADLINE;
    let (mut printed, mut complained) = (Vec::new(), Vec::new());
    let (mut output_open, mut errors_open) = (true, true);
    while output_open || errors_open {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it takes too long"));
        }
        let flags = |open: bool| if open { PollFlags::IN } else { PollFlags::empty() };
        let mut wanted = Vec::with_capacity(2);
        if output_open {
            wanted.push(PollFd::from_borrowed_fd(output.as_fd(), flags(true)));
        }
        if errors_open {
            wanted.push(PollFd::from_borrowed_fd(errors.as_fd(), flags(true)));
        }
        match poll(&mut wanted, Some(&timespec(left))) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let mut ready = wanted.iter().map(|one| !one.revents().is_empty()).collect::<Vec<_>>().into_iter();
        let output_ready = output_open && ready.next().unwrap_or_default();
        let errors_ready = errors_open && ready.next().unwrap_or_default();
        if output_ready {
            output_open = take(&mut output, &mut printed)?;
        }
        if errors_ready {
            errors_open = take(&mut errors, &mut complained)?;
        }
    }
    Ok((printed, complained))
}

fn timespec(left: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(left.subsec_nanos()) }
}

/// One read; `false` at the end.
fn take(from: &mut impl Read, into: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 8 << 10];
    let length = from.read(&mut buffer)?;
    into.extend_from_slice(buffer.get(..length).unwrap_or_default());
    if into.len() > CNI_OUTPUT_BYTES_MAX {
        return Err(io::Error::other("it prints more than a plugin may"));
    }
    Ok(length > 0)
}
