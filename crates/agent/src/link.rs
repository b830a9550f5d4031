//! One connection of the framed protocol over a nonblocking Unix socket, for both ends.
//!
//! [`Link`] never blocks: what cannot be sent waits in a queue until [`Link::flush`], what has not arrived whole waits
//! in the decoder. The owner polls the socket, the agent with poll(2), the daemon with its runtime.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use sampan_sys::socket;
use sampan_wire::Slot;
use sampan_wire::frame::{self, Frame, FrameDecoder, FrameError};
use sampan_wire::limits::DESCRIPTORS_MAX;
use serde::Serialize;

/// Bytes taken from the socket at a time; a packet of the zygote's fits. They lie on the stack, which an agent keeps for as
/// long as its pod lives.
const RECEIVE_BYTES: usize = 8 * 1024;

/// Why a connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("the connection fails")]
    Io(#[from] io::Error),
    #[error("the other end breaks the protocol")]
    Frame(#[from] FrameError),
    #[error("a frame lacks the descriptors that it announces")]
    DescriptorsMissing,
    #[error("more descriptors arrive than frames announce")]
    DescriptorsFlood,
    #[error("a message names a descriptor that did not come with it")]
    BadSlot,
}

/// The descriptors of one frame, to be taken once each.
#[derive(Debug, Default)]
pub struct Descriptors(Vec<Option<OwnedFd>>);

impl Descriptors {
    /// Takes the descriptor that a message names.
    pub fn take(&mut self, slot: Slot) -> Result<OwnedFd, LinkError> {
        self.0.get_mut(usize::from(slot.0)).and_then(Option::take).ok_or(LinkError::BadSlot)
    }
}

/// Collects the descriptors that go out with a frame and hands out their slots.
#[derive(Debug, Default)]
pub struct Outgoing(Vec<OwnedFd>);

impl Outgoing {
    /// Adds a descriptor. Beyond what a `Slot` can name the frame is refused by [`Link::send`] anyway.
    pub fn add(&mut self, descriptor: OwnedFd) -> Slot {
        self.0.push(descriptor);
        Slot(u16::try_from(self.0.len().saturating_sub(1)).unwrap_or(u16::MAX))
    }
}

/// A frame on its way out.
#[derive(Debug)]
struct Pending {
    bytes: Vec<u8>,
    sent: usize,
    descriptors: Vec<OwnedFd>,
}

/// What came in.
#[derive(Debug)]
pub enum Received {
    /// Nothing whole yet.
    Nothing,
    Frame(Frame, Descriptors),
    /// The other end has closed.
    Closed,
}

/// One connection.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    decoder: FrameDecoder,
    arrived: VecDeque<OwnedFd>,
    outgoing: VecDeque<Pending>,
    closed: bool,
}

impl Link {
    /// Takes over a connected, nonblocking socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            decoder: FrameDecoder::default(),
            arrived: VecDeque::new(),
            outgoing: VecDeque::new(),
            closed: false,
        }
    }

    /// Queues a message with its descriptors; nothing is sent before [`Link::flush`].
    pub fn send<M: Serialize>(&mut self, message: &M, descriptors: Outgoing) -> Result<(), LinkError> {
        let bytes = frame::encode(message, descriptors.0.len())?;
        self.outgoing.push_back(Pending { bytes, sent: 0, descriptors: descriptors.0 });
        Ok(())
    }

    /// Whether something waits to be sent.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Sends what the socket takes.
    pub fn flush(&mut self) -> Result<(), LinkError> {
        while let Some(pending) = self.outgoing.front_mut() {
            let borrowed: Vec<BorrowedFd<'_>> = pending.descriptors.iter().map(AsFd::as_fd).collect();
            let rest = pending.bytes.get(pending.sent..).unwrap_or_default();
            match socket::send(self.socket.as_fd(), rest, &borrowed) {
                Ok(sent) => {
                    pending.descriptors.clear();
                    pending.sent = pending.sent.saturating_add(sent);
                    if pending.sent >= pending.bytes.len() {
                        self.outgoing.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Takes the next whole frame, reading from the socket as needed.
    pub fn receive(&mut self) -> Result<Received, LinkError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                let descriptors = self.claim(frame.descriptors)?;
                return Ok(Received::Frame(frame, descriptors));
            }
            if self.closed {
                return Ok(Received::Closed);
            }
            let (mut buffer, mut descriptors) = ([0_u8; RECEIVE_BYTES], Vec::new());
            match socket::receive(self.socket.as_fd(), &mut buffer, &mut descriptors) {
                Ok(0) => self.closed = true,
                Ok(read) => {
                    self.arrived.extend(descriptors);
                    if self.arrived.len() > DESCRIPTORS_MAX {
                        return Err(LinkError::DescriptorsFlood);
                    }
                    self.decoder.feed(buffer.get(..read).unwrap_or_default());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Received::Nothing),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => self.closed = true,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn claim(&mut self, count: usize) -> Result<Descriptors, LinkError> {
        if self.arrived.len() < count {
            return Err(LinkError::DescriptorsMissing);
        }
        Ok(Descriptors(self.arrived.drain(..count).map(Some).collect()))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl std::os::fd::AsRawFd for Link {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}
