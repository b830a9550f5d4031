//! What is streamed: the node's side of one exec or attach.

use std::fmt;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Characters a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// How a remote command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteExit {
    /// With this exit code; for a signal, 128 + its number.
    Code(i32),
    /// It could not be run, or nothing is known of its end; one line that says why.
    Failed(String),
}

/// The node's side of one exec or attach: raw byte pipes, resize requests, and how it ended.
///
/// Whoever serves it copies bytes until `exit` resolves *and* the outputs have ended, dropping `stdin` when the client
/// closes its own. Dropping the whole means that the client has gone away.
pub struct RemoteStreams {
    /// Bytes for the command; None when the client asked for no stdin.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Its output, or a terminal's.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Its error output; None with a terminal.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Where sizes of the client's terminal go; None without a terminal.
    pub resize: Option<mpsc::Sender<TerminalSize>>,
    /// How it ended.
    pub exit: BoxFuture<'static, RemoteExit>,
}

impl fmt::Debug for RemoteStreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteStreams")
            .field("stdin", &self.stdin.is_some())
            .field("stdout", &self.stdout.is_some())
            .field("stderr", &self.stderr.is_some())
            .field("resize", &self.resize.is_some())
            .finish_non_exhaustive()
    }
}
