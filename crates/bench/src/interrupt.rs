//! Ctrl-C and SIGTERM: the first ends what is being waited for and lets everything be taken away, the second ends at once.
//!
//! A thread of its own waits for the signals. Whoever waits for something else waits for [`descriptor`] too ([`crate::command`]
//! does) and ends with [`Interrupted`]; engines, folders, mounts and cgroups are then removed by whoever owns them, as at any other
//! end. Services are started in process groups of their own, so that a terminal's Ctrl-C does not reach them before that.

use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The exit code of whoever ends by Ctrl-C.
pub(crate) const EXIT_CODE: u8 = 130;

static CAUGHT: AtomicBool = AtomicBool::new(false);
/// Readable from the first signal on.
static READABLE: OnceLock<OwnedFd> = OnceLock::new();

/// Why something that was waited for did not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Begins to watch. Before that, signals do what they always do.
pub(crate) fn watch() -> Result<()> {
    let (readable, writable) = pipe_with(PipeFlags::CLOEXEC).context("make a pipe")?;
    if READABLE.set(readable).is_err() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().context("watch for signals")?;
    let mut signals = {
        let _inside = runtime.enter();
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
            .into_iter()
            .map(signal)
            .collect::<io::Result<Vec<_>>>()
            .context("watch for signals")?
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(any(&mut signals));
        CAUGHT.store(true, Ordering::Relaxed);
        // Closing it would do as well, and needs no room for a byte.
        drop(writable);
        drop(writeln!(io::stderr().lock(), "bench: interrupted; taking everything away (once more to end at once)"));
        runtime.block_on(any(&mut signals));
        std::process::exit(i32::from(EXIT_CODE));
    })?;
    Ok(())
}

/// The next of some signals.
async fn any(signals: &mut [Signal]) {
    std::future::poll_fn(|context| {
        let ready = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
        if ready { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// Fails after a signal: to be asked between steps.
pub(crate) fn check() -> Result<(), Interrupted> {
    if CAUGHT.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
}

/// Becomes readable (it hangs up) with the first signal.
pub(crate) fn descriptor() -> Option<BorrowedFd<'static>> {
    READABLE.get().map(AsFd::as_fd)
}

/// Whether an error is the way out after a signal.
pub(crate) fn is_cause_of(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<Interrupted>())
}
