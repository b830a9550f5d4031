//! A command in the background: what it says is collected as it comes, and can be waited for.

use std::io::Read;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdin, Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use super::call::Finished;
use super::wait::DEADLINE;

/// What a stream has said so far.
#[derive(Debug, Default)]
struct Said {
    bytes: Vec<u8>,
    ended: bool,
}

/// Collects a stream on a thread of its own.
#[derive(Debug)]
pub struct Collector {
    said: Arc<(Mutex<Said>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    /// Collects `stream` until it ends.
    pub fn of(mut stream: impl Read + Send + 'static) -> Self {
        let said = Arc::new((Mutex::new(Said::default()), Condvar::new()));
        let shared = Arc::clone(&said);
        let thread = std::thread::spawn(move || {
            let mut piece = [0; 16 << 10];
            loop {
                // A terminal whose last program is gone answers EIO: an end like any other.
                let count = stream.read(&mut piece).unwrap_or(0);
                let mut said = shared.0.lock().unwrap_or_else(PoisonError::into_inner);
                said.bytes.extend_from_slice(piece.get(..count).unwrap_or_default());
                said.ended = count == 0;
                shared.1.notify_all();
                if said.ended {
                    return;
                }
            }
        });
        Self { said, thread: Some(thread) }
    }

    /// What it has said so far.
    pub fn so_far(&self) -> Vec<u8> {
        self.said.0.lock().unwrap_or_else(PoisonError::into_inner).bytes.clone()
    }

    /// Waits until `enough` of what was said is true.
    pub fn wait_until(&self, what: &str, enough: impl Fn(&[u8]) -> bool) -> Result<()> {
        let begin = Instant::now();
        let (said, changed) = &*self.said;
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if enough(&said.bytes) {
                return Ok(());
            }
            let left = DEADLINE.saturating_sub(begin.elapsed());
            if said.ended || left.is_zero() {
                let end = if said.ended { "it ended" } else { "time is up" };
                bail!("{what} never came ({end}); what came: {:?}", String::from_utf8_lossy(&said.bytes));
            }
            said = changed.wait_timeout(said, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for a text.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        self.wait_until(&format!("{text:?}"), |bytes| String::from_utf8_lossy(bytes).contains(text))
    }

    /// Everything, after its end.
    pub fn finish(&mut self) -> Vec<u8> {
        if let Some(thread) = self.thread.take() {
            // It cannot panic, and if it did, what it collected is still right.
            drop(thread.join());
        }
        self.so_far()
    }
}

/// A command in the background; killed when dropped.
#[derive(Debug)]
pub struct Running {
    words: String,
    child: Child,
    /// Its standard output.
    pub output: Collector,
    /// Its standard error.
    pub errors: Collector,
}

impl Running {
    /// Starts `command`, all of whose streams are pipes.
    pub(super) fn spawn(mut command: Command) -> Result<Self> {
        let words = words(&command);
        let mut child = command.spawn().with_context(|| format!("start `{words}`"))?;
        let output = Collector::of(child.stdout.take().context("no pipe for standard output")?);
        let errors = Collector::of(child.stderr.take().context("no pipe for standard error")?);
        Ok(Self { words, child, output, errors })
    }

    /// Its number.
    pub fn pid(&self) -> Result<Pid> {
        Pid::from_raw(i32::try_from(self.child.id())?).context("a process without a number")
    }

    /// The pipe to its standard input; dropping it ends the input.
    pub fn take_input(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid()?, signal).with_context(|| format!("signal `{}`", self.words))
    }

    /// Waits for its end.
    pub fn finish(mut self, deadline: Duration) -> Result<Finished> {
        let status = wait(&mut self.child, deadline);
        let (output, errors) = (&mut self.output, &mut self.errors);
        let Ok(status) = status else {
            bail!(
                "`{}` does not end\n  stdout: {}\n  stderr: {}",
                self.words,
                String::from_utf8_lossy(&output.so_far()),
                String::from_utf8_lossy(&errors.so_far())
            );
        };
        Ok(Finished { words: self.words.clone(), code: code(status), output: output.finish(), errors: errors.finish() })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Waits for a child's end until the deadline.
pub(crate) fn wait(child: &mut Child, deadline: Duration) -> Result<ExitStatus> {
    let pid = Pid::from_raw(i32::try_from(child.id())?).context("a process without a number")?;
    let handle = pidfd_open(pid, PidfdFlags::empty()).context("open the process")?;
    let timeout = Timespec { tv_sec: i64::try_from(deadline.as_secs())?, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout)).context("wait for the process")?;
    if ended == 0 {
        bail!("process {} does not end", child.id());
    }
    child.wait().context("wait for the process")
}

/// A shell's view of an end.
pub(crate) fn code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

/// A command line as a person would write it, for messages.
pub(crate) fn words(command: &Command) -> String {
    let name = command.get_program().to_string_lossy();
    let name = name.rsplit('/').next().unwrap_or_default().to_owned();
    command.get_args().fold(name, |line, word| line + " " + &word.to_string_lossy())
}
