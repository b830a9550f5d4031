//! The user's terminal: raw mode that is always taken back, its size, and standard input as a stream.
//!
//! Invariants: whoever makes a terminal raw holds a [`RawTerminal`], and dropping it restores what was; standard input
//! is read by a thread of its own, because a read of a terminal or a pipe cannot be called off.

pub(crate) mod detach;
pub(crate) mod signals;

use std::io::{IsTerminal as _, Read as _};
use std::thread;

use bytes::Bytes;
use rustix::termios::{OptionalActions, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

use crate::client::channels::Input;
use crate::failure::Failure;
use crate::limits::{STDIN_PIECE_BYTES, STDIN_PIECES_MAX};
use detach::{DetachKeys, Typed};

/// The terminal on stdin in raw mode, until it is dropped.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Makes the terminal on stdin raw: every key goes to the instance.
    pub(crate) fn enter() -> Result<Self, Failure> {
        let attributes = tcgetattr(std::io::stdin());
        let before = attributes.map_err(|error| Failure::explain("stdin", error, "-t needs a terminal"))?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Drain, &raw)
            .map_err(|error| Failure::explain("stdin", error, "-t needs a terminal"))?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.before).ok();
    }
}

/// The size of the terminal on stdout, or else on stdin or stderr.
pub(crate) fn size() -> Option<Winsize> {
    tcgetwinsize(std::io::stdout())
        .or_else(|_| tcgetwinsize(std::io::stdin()))
        .or_else(|_| tcgetwinsize(std::io::stderr()))
        .ok()
        .filter(|size| size.ws_col > 0 && size.ws_row > 0)
}

/// Refuses `-t` with a stdin that is none.
pub(crate) fn require(command: &str) -> Result<(), Failure> {
    if std::io::stdin().is_terminal() {
        return Ok(());
    }
    Err(Failure::explain(
        format_args!("{command} -t"),
        "stdin is not a terminal",
        "leave -t out when input comes from a pipe or a file",
    ))
}

/// Whether stdout and stderr are one and the same file, so that the order between them can be kept.
pub(crate) fn outputs_are_one() -> bool {
    let identity = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino, stat.st_rdev);
    match (rustix::fs::fstat(std::io::stdout()), rustix::fs::fstat(std::io::stderr())) {
        (Ok(stdout), Ok(stderr)) => identity(stdout) == identity(stderr),
        _ => false,
    }
}

/// What standard input brings.
#[derive(Debug)]
pub(crate) enum Stdin {
    /// Bytes for the instance.
    Bytes(Bytes),
    /// Its end.
    End,
    /// The user typed the keys that mean "leave it running".
    Detach,
}

/// Starts to read standard input. `keys`: watch for these, as on a terminal.
pub(crate) fn read_stdin(keys: Option<DetachKeys>) -> mpsc::Receiver<Stdin> {
    let (sender, receiver) = mpsc::channel(STDIN_PIECES_MAX);
    thread::spawn(move || {
        let mut keys = keys;
        let mut piece = vec![0; STDIN_PIECE_BYTES];
        loop {
            let count = match std::io::stdin().lock().read(&mut piece) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            let read = piece.get(..count).unwrap_or_default();
            let (bytes, detach) = match &mut keys {
                Some(keys) => match keys.filter(read) {
                    Typed::Bytes(bytes) => (bytes, false),
                    Typed::Detach(bytes) => (bytes, true),
                },
                None => (read.to_vec(), false),
            };
            if !bytes.is_empty() && sender.blocking_send(Stdin::Bytes(bytes.into())).is_err() {
                return;
            }
            if detach {
                sender.blocking_send(Stdin::Detach).ok();
                return;
            }
        }
        sender.blocking_send(Stdin::End).ok();
    });
    receiver
}

/// Standard input, and the terminal's sizes, as what a conversation sends.
pub(crate) async fn feed(
    stdin: &mut Option<mpsc::Receiver<Stdin>>,
    resized: &mut Option<tokio::signal::unix::Signal>,
    input: mpsc::Sender<Input>,
) -> Fed {
    if resized.is_some() {
        send_size(&input).await;
    }
    loop {
        tokio::select! {
            piece = next(stdin) => match piece {
                Some(Stdin::Bytes(bytes)) => if input.send(Input::Bytes(bytes)).await.is_err() { return Fed::NobodyListens },
                Some(Stdin::Detach) => return Fed::Detached,
                Some(Stdin::End) | None => {
                    *stdin = None;
                    if input.send(Input::End).await.is_err() {
                        return Fed::NobodyListens;
                    }
                }
            },
            Some(()) = change(resized) => send_size(&input).await,
            () = input.closed() => return Fed::NobodyListens,
        }
    }
}

/// Why feeding ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fed {
    /// The conversation is over.
    NobodyListens,
    /// The user typed the detach keys.
    Detached,
}

async fn next(stdin: &mut Option<mpsc::Receiver<Stdin>>) -> Option<Stdin> {
    match stdin {
        Some(stdin) => stdin.recv().await,
        None => std::future::pending().await,
    }
}

async fn change(resized: &mut Option<tokio::signal::unix::Signal>) -> Option<()> {
    match resized {
        Some(resized) => resized.recv().await,
        None => std::future::pending().await,
    }
}

async fn send_size(input: &mpsc::Sender<Input>) {
    if let Some(size) = size() {
        input.send(Input::Resize(size)).await.ok();
    }
}
