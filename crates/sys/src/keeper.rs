//! Descriptors that outlive the process that uses them.
//!
//! A child that may be killed at any moment gives copies of descriptors to its parent, under a name, and the parent hands
//! them to the child's successor. The two speak over a pair of packet sockets ([`crate::socket::pair`]):
//!
//! ```text
//! parent ── K name + descriptors … E ──▶ child      once, at the child's start: what its predecessor left
//! parent ◀── K name + descriptors ────── child      keep these in the place of what you hold under that name
//! parent ◀── D name ──────────────────── child      close what you hold under that name
//! ```
//!
//! - **Consistency.** One message carries all descriptors of a name: they are kept together or not at all. No message is
//!   answered: once it is sent it lies in the parent's socket, where it survives the death of the sender. Therefore the parent
//!   must [`drain`](KeptDescriptors::drain) the socket of a dead child before it hands down what it holds.
//! - **Limits.** [`NAMES_MAX`] names of [`NAME_BYTES_MAX`] bytes, [`DESCRIPTORS_MAX`] descriptors each.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::socket::{self, DESCRIPTORS_MAX};

/// Names that one parent keeps.
pub const NAMES_MAX: usize = 16;
/// Bytes of a name: lower-case letters, digits, `-`.
pub const NAME_BYTES_MAX: usize = 64;
/// How long a child waits for what its parent hands down; the parent sends it before the child starts.
const HAND_DOWN_MAX: Duration = Duration::from_secs(10);

const KEEP: u8 = b'K';
const DROP: u8 = b'D';
const END: u8 = b'E';

/// The child's side. Cheap to clone; all clones are the same connection.
#[derive(Debug, Clone)]
pub struct DescriptorKeeper {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    socket: OwnedFd,
    held: Mutex<BTreeMap<String, Vec<OwnedFd>>>,
}

impl DescriptorKeeper {
    /// Takes over what the parent hands down. `socket` is the child's end of the pair.
    ///
    /// # Errors
    /// `InvalidData` when the other end does not speak as above; the socket's own error when it is silent or closed.
    pub fn open(socket: OwnedFd) -> io::Result<Self> {
        let held = Mutex::new(receive_all(socket.as_fd())?);
        Ok(Self { inner: Arc::new(Inner { socket, held }) })
    }

    /// What the predecessor left under this name, in the order in which it was kept; empty the second time. The parent goes
    /// on keeping its copies.
    #[must_use]
    pub fn take(&self, name: &str) -> Vec<OwnedFd> {
        let mut held = self.inner.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(name).unwrap_or_default()
    }

    /// Has the parent keep copies of these descriptors, in the place of what it held under that name.
    pub fn keep(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        send(self.inner.socket.as_fd(), KEEP, name, descriptors)
    }

    /// Has the parent close what it holds under that name.
    pub fn release(&self, name: &str) -> io::Result<()> {
        send(self.inner.socket.as_fd(), DROP, name, &[])
    }
}

/// The parent's side: what it holds.
#[derive(Debug, Default)]
pub struct KeptDescriptors {
    kept: BTreeMap<String, Vec<OwnedFd>>,
}

impl KeptDescriptors {
    /// Goes on where another parent has stopped, which has handed everything down into the other end of `socket`.
    pub fn take_over(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { kept: receive_all(socket.as_fd())? })
    }

    /// Sends everything to a new child, whose end of the pair is not read yet. `socket` is the parent's end.
    pub fn hand_down(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        for (name, descriptors) in &self.kept {
            let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
            send(socket, KEEP, name, &borrowed)?;
        }
        send(socket, END, "", &[])
    }

    /// Obeys every message that waits; never blocks. `false` when the child has closed its end.
    ///
    /// # Errors
    /// `InvalidData` for a message that makes no sense or asks for too much, which changes nothing; go on draining.
    pub fn drain(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        while waits(socket)? {
            match receive(socket)? {
                Some(Message::Keep(name, descriptors)) => self.insert(name, descriptors)?,
                Some(Message::Drop(name)) => drop(self.kept.remove(&name)),
                Some(Message::End) => return Err(invalid("only a parent hands down")),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    fn insert(&mut self, name: String, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        if self.kept.len() >= NAMES_MAX && !self.kept.contains_key(&name) {
            return Err(invalid("more names than are kept"));
        }
        self.kept.insert(name, descriptors);
        Ok(())
    }
}

/// What is handed down, to its end.
fn receive_all(socket: BorrowedFd<'_>) -> io::Result<BTreeMap<String, Vec<OwnedFd>>> {
    set_socket_timeout(socket, Timeout::Recv, Some(HAND_DOWN_MAX))?;
    let mut held = BTreeMap::new();
    loop {
        match receive(socket)? {
            Some(Message::Keep(name, descriptors)) => drop(held.insert(name, descriptors)),
            Some(Message::End) => return Ok(held),
            Some(Message::Drop(_)) => return Err(invalid("a parent drops nothing")),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

enum Message {
    Keep(String, Vec<OwnedFd>),
    Drop(String),
    End,
}

fn waits(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut [PollFd::from_borrowed_fd(socket, PollFlags::IN)], Some(&now)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn send(socket: BorrowedFd<'_>, kind: u8, name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if descriptors.len() > DESCRIPTORS_MAX || name.len() > NAME_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "more descriptors, or a longer name, than are kept"));
    }
    socket::send(socket, &[&[kind], name.as_bytes()].concat(), descriptors).map(drop)
}

/// The next message; `None` when the other end is closed.
fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Message>> {
    let mut buffer = [0; 1 + NAME_BYTES_MAX];
    let mut descriptors = Vec::new();
    let read = socket::receive(socket, &mut buffer, &mut descriptors)?;
    let Some((kind, name)) = buffer.get(..read).and_then(<[u8]>::split_first) else { return Ok(None) };
    let plain = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    let name = std::str::from_utf8(name).ok().filter(|name| name.as_bytes().iter().all(plain));
    let name = name.ok_or_else(|| invalid("a name of other letters"))?.to_owned();
    match *kind {
        KEEP if !name.is_empty() && !descriptors.is_empty() => Ok(Some(Message::Keep(name, descriptors))),
        DROP if !name.is_empty() && descriptors.is_empty() => Ok(Some(Message::Drop(name))),
        END if name.is_empty() && descriptors.is_empty() => Ok(Some(Message::End)),
        _ => Err(invalid("a message of another kind")),
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests;
