//! Pipes and terminals as asynchronous readers and writers.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::watch::{BOTH, watch};

/// What a program says: the read side of a pipe, or of a terminal.
#[derive(Debug)]
pub struct Output(AsyncFd<OwnedFd>);

/// What a program hears: the write side of a pipe, or of a terminal. Shutting it down, or dropping it, ends a pipe; a
/// terminal stays.
#[derive(Debug)]
pub struct Input(Option<AsyncFd<OwnedFd>>);

/// A terminal's master, for its size.
#[derive(Debug, Clone)]
pub struct Terminal(Arc<OwnedFd>);

impl Output {
    /// Takes over the read side of a pipe or a terminal's master.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&descriptor, true)?;
        watch(descriptor, BOTH).map(Self)
    }
}

impl Input {
    /// Takes over the write side of a pipe or a terminal's master.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&descriptor, true)?;
        watch(descriptor, BOTH).map(|descriptor| Self(Some(descriptor)))
    }
}

impl Terminal {
    pub(crate) fn new(master: &OwnedFd) -> io::Result<Self> {
        Ok(Self(Arc::new(rustix::io::fcntl_dupfd_cloexec(master, 3)?)))
    }

    /// Sets the size; whoever uses the terminal gets SIGWINCH.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(self.0.as_fd(), size)?)
    }
}

impl AsyncRead for Output {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let space = buffer.initialize_unfilled();
            match rustix::io::read(guard.get_inner(), space) {
                Ok(read) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                // The terminal's last user has closed it.
                Err(Errno::IO) => return Poll::Ready(Ok(())),
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsyncWrite for Input {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let Some(descriptor) = &self.0 else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
            let mut guard = ready!(descriptor.poll_write_ready(context))?;
            match rustix::io::write(guard.get_inner(), bytes) {
                Ok(written) => return Poll::Ready(Ok(written)),
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0 = None;
        Poll::Ready(Ok(()))
    }
}
