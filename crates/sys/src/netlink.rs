//! Raw netlink sockets: requests built attribute by attribute, their answers, the kernel's verdict.
//!
//! Two families are spoken: `NETLINK_ROUTE` (links, addresses, routes, neighbours; rtnetlink(7)) and
//! `NETLINK_NETFILTER` (nf_tables; linux/netfilter/nfnetlink.h). Several requests travel in one `sendmsg`: the kernel
//! works them off in order *before* `sendmsg` returns, so a batch costs one system call and a few reads.
//!
//! Invariants: a socket belongs to the network namespace of the thread that opened it, for good; a reply is matched
//! by its sequence number; what the kernel sends is still parsed with bounds checks; every read has a deadline.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

/// `struct nlmsghdr`: length, type, flags, sequence, port; all in host byte order.
const HEADER_BYTES: usize = 16;
/// The kernel answers a request before `sendmsg` returns and a dump within a scheduling quantum or two; what takes
/// longer than this is a kernel in trouble, and the caller must not hang with it.
const REPLY_DEADLINE: Duration = Duration::from_secs(10);
/// The largest reply datagram: dumps are cut to 32 KiB by the kernel, acknowledgements are far smaller.
const RECEIVE_BYTES: usize = 64 << 10;
/// Room for the largest transaction (a table with tens of thousands of elements); the kernel copies it whole.
const SEND_BUFFER_BYTES: i32 = 16 << 20;
/// A batch's acknowledgements wait here until we read them.
const RECEIVE_BUFFER_BYTES: i32 = 4 << 20;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// `nfnetlink.h`: the messages that open and close a transaction, and the subsystem they name.
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;

/// Flags of a request beside `NLM_F_REQUEST` and `NLM_F_ACK`, which the socket sets itself.
pub mod flags {
    /// All objects instead of one (`NLM_F_ROOT | NLM_F_MATCH`).
    pub const DUMP: u16 = 0x300;
    /// Replace what exists.
    pub const REPLACE: u16 = 0x100;
    /// Fail when it exists.
    pub const EXCL: u16 = 0x200;
    /// Make it when it does not exist.
    pub const CREATE: u16 = 0x400;
    /// Put it at the end of its list.
    pub const APPEND: u16 = 0x800;
}

/// A request that the kernel refuses.
#[derive(Debug, thiserror::Error)]
#[error("netlink request {index} is refused{}", detail.as_ref().map(|text| format!(" ({text})")).unwrap_or_default())]
pub struct NetlinkError {
    /// Which request of the batch, counted from 0.
    pub index: usize,
    /// The kernel's own words (extended acknowledgement), where it had any.
    pub detail: Option<String>,
    #[source]
    pub source: io::Error,
}

impl NetlinkError {
    /// Whether the kernel answered with this error number.
    pub fn is(&self, errno: rustix::io::Errno) -> bool {
        self.source.raw_os_error() == Some(errno.raw_os_error())
    }
}

impl From<io::Error> for NetlinkError {
    fn from(source: io::Error) -> Self {
        Self { index: 0, detail: None, source }
    }
}

impl From<rustix::io::Errno> for NetlinkError {
    fn from(errno: rustix::io::Errno) -> Self {
        io::Error::from(errno).into()
    }
}

/// One request under construction: the netlink header, the family's fixed header, attributes.
///
/// An attribute that does not fit its 16-bit length does not panic; the message is then refused when it is sent.
#[derive(Clone, Debug)]
pub struct Message {
    buffer: Vec<u8>,
    oversized: bool,
}

impl Message {
    /// `kind` is `nlmsg_type`, `flags` as in [`flags`], `header` the family's fixed header (`struct ifinfomsg`, …).
    pub fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut buffer = Vec::with_capacity(256);
        buffer.extend_from_slice(&[0; 4]);
        buffer.extend_from_slice(&kind.to_ne_bytes());
        buffer.extend_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        buffer.extend_from_slice(&[0; 8]);
        buffer.extend_from_slice(header);
        let mut message = Self { buffer, oversized: false };
        message.pad();
        message
    }

    /// An attribute of raw bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.open_close(kind, |message| message.buffer.extend_from_slice(value))
    }

    pub fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.bytes(kind, &[value])
    }

    /// A 32-bit number in host byte order, as rtnetlink wants it.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A 32-bit number in network byte order, as nf_tables wants it.
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A text with its closing zero.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.open_close(kind, |message| {
            message.buffer.extend_from_slice(value.as_bytes());
            message.buffer.push(0);
        })
    }

    /// An attribute made of attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.open_close(kind | NLA_F_NESTED, fill)
    }

    /// Bytes without an attribute header: the fixed header that some nested attributes begin with.
    pub fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.buffer.extend_from_slice(value);
        self.pad();
        self
    }

    /// Bytes so far, the netlink header included.
    pub fn size_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The message as the kernel would read it back: what a test checks against.
    pub fn to_reply(&self) -> Reply {
        let kind = u16::from_ne_bytes([self.buffer[4], self.buffer[5]]);
        Reply { kind, body: self.buffer[HEADER_BYTES..].to_vec() }
    }

    fn open_close(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; 2]);
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        fill(self);
        match u16::try_from(self.buffer.len() - start) {
            Ok(length) => self.buffer[start..start + 2].copy_from_slice(&length.to_ne_bytes()),
            Err(_too_long) => self.oversized = true,
        }
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.buffer.resize(self.buffer.len().next_multiple_of(4), 0);
    }

    fn seal(&mut self, sequence: u32, acknowledge: bool) -> io::Result<()> {
        let length = u32::try_from(self.buffer.len()).map_err(|_too_long| too_big())?;
        if self.oversized {
            return Err(too_big());
        }
        let flags = u16::from_ne_bytes([self.buffer[6], self.buffer[7]]) | if acknowledge { NLM_F_ACK } else { 0 };
        self.buffer[0..4].copy_from_slice(&length.to_ne_bytes());
        self.buffer[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.buffer[8..12].copy_from_slice(&sequence.to_ne_bytes());
        Ok(())
    }
}

fn too_big() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "a netlink attribute is longer than 65535 bytes")
}

/// One object that the kernel answered with.
#[derive(Clone, Debug)]
pub struct Reply {
    /// `nlmsg_type`.
    pub kind: u16,
    body: Vec<u8>,
}

impl Reply {
    /// The first `N` bytes of the family's fixed header; zeros where the reply is shorter.
    pub fn header<const N: usize>(&self) -> [u8; N] {
        let mut header = [0; N];
        let length = N.min(self.body.len());
        header[..length].copy_from_slice(&self.body[..length]);
        header
    }

    /// The attributes behind a fixed header of `header_bytes`.
    pub fn attributes(&self, header_bytes: usize) -> Attributes<'_> {
        Attributes { rest: self.body.get(header_bytes.next_multiple_of(4)..).unwrap_or_default() }
    }

    /// The first attribute of this kind.
    pub fn attribute(&self, header_bytes: usize, kind: u16) -> Option<&[u8]> {
        self.attributes(header_bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
    }
}

/// The attributes of a reply, or of an attribute made of attributes; ends at the first malformed one.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    pub fn of(value: &'a [u8]) -> Self {
        Self { rest: value }
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.rest.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.rest.get(2..4)?.try_into().ok()?) & NLA_TYPE_MASK;
        let value = self.rest.get(4..length)?;
        self.rest = self.rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// Which part of the kernel a socket speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `NETLINK_ROUTE`
    Route,
    /// `NETLINK_NETFILTER`
    Netfilter,
}

/// A netlink socket of the calling thread's network namespace.
#[derive(Debug)]
pub struct NetlinkSocket {
    socket: OwnedFd,
    sequence: AtomicU32,
}

impl NetlinkSocket {
    pub fn open(family: Family) -> io::Result<Self> {
        let protocol = match family {
            // NETLINK_ROUTE is protocol 0, which `Protocol` spells as absent.
            Family::Route => None,
            Family::Netfilter => Some(netlink::NETFILTER),
        };
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, Some(REPLY_DEADLINE))?;
        set_option(&socket, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1)?;
        set_option(&socket, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1)?;
        if family == Family::Netfilter {
            set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER_BYTES)?;
            set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)?;
        } else {
            // Dumps honour the filter in their header; kernels before 4.20 do not know it and filter nothing.
            drop(set_option(&socket, libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, 1));
        }
        Ok(Self { socket, sequence: AtomicU32::new(1) })
    }

    /// One request, acknowledged.
    pub fn call(&self, message: Message) -> Result<(), NetlinkError> {
        self.pipeline(vec![message]).map(|_replies| ())
    }

    /// Requests in one system call; the objects that they answered with, in order.
    ///
    /// The kernel goes on after a refused request: all have been tried when this returns the *first* refusal.
    pub fn pipeline(&self, messages: Vec<Message>) -> Result<Vec<Reply>, NetlinkError> {
        let Some(last) = messages.len().checked_sub(1) else { return Ok(Vec::new()) };
        let first = self.send(messages, last)?;
        self.collect(first, last, None)
    }

    /// nf_tables requests that take effect together or not at all.
    pub fn transaction(&self, messages: Vec<Message>) -> Result<(), NetlinkError> {
        if messages.is_empty() {
            return Ok(());
        }
        // `struct nfgenmsg`: family, version, and the subsystem in network byte order.
        let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
        let last = messages.len();
        let mut batch = Vec::with_capacity(messages.len() + 2);
        batch.push(Message::new(NFNL_MSG_BATCH_BEGIN, 0, &[0, 0, high, low]));
        batch.extend(messages);
        batch.push(Message::new(NFNL_MSG_BATCH_END, 0, &[0, 0, high, low]));
        let first = self.send(batch, last)?;
        // A refusal of the whole batch is addressed to its first message, and then nothing else comes.
        self.collect(first, last, Some(0))
            .map(|_replies| ())
            .map_err(|error| NetlinkError { index: error.index.saturating_sub(1), ..error })
    }

    /// Every object that the request matches, one by one.
    pub fn dump(&self, mut message: Message, mut each: impl FnMut(&Reply)) -> Result<(), NetlinkError> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let flags = u16::from_ne_bytes([message.buffer[6], message.buffer[7]]) | flags::DUMP;
        message.buffer[6..8].copy_from_slice(&flags.to_ne_bytes());
        message.seal(sequence, false)?;
        self.transmit(&message.buffer)?;
        loop {
            for incoming in self.receive()? {
                if incoming.sequence != sequence {
                    continue;
                }
                match incoming.reply.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return incoming.verdict(0),
                    _ => each(&incoming.reply),
                }
            }
        }
    }

    /// Sends messages with consecutive sequence numbers, the one at `last` (and only it) to be acknowledged.
    fn send(&self, mut messages: Vec<Message>, last: usize) -> Result<u32, NetlinkError> {
        let count = u32::try_from(messages.len()).map_err(|_too_many| too_big())?;
        let first = self.sequence.fetch_add(count, Ordering::Relaxed);
        let mut bytes = Vec::with_capacity(messages.iter().map(Message::size_bytes).sum());
        for (index, message) in messages.iter_mut().enumerate() {
            let sequence = first.wrapping_add(u32::try_from(index).unwrap_or_default());
            message.seal(sequence, index == last).map_err(|source| NetlinkError { index, detail: None, source })?;
            bytes.extend_from_slice(&message.buffer);
        }
        self.transmit(&bytes)?;
        Ok(first)
    }

    fn transmit(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = rustix::io::retry_on_intr(|| rustix::net::send(&self.socket, bytes, SendFlags::empty()))?;
        if sent != bytes.len() {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "the kernel took only a part of a netlink request"));
        }
        Ok(())
    }

    fn collect(&self, first: u32, last: usize, fatal: Option<usize>) -> Result<Vec<Reply>, NetlinkError> {
        let mut replies = Vec::new();
        let mut refusal: Option<NetlinkError> = None;
        loop {
            for incoming in self.receive()? {
                let index = incoming.sequence.wrapping_sub(first) as usize;
                if index > last {
                    continue;
                }
                if incoming.reply.kind != NLMSG_ERROR {
                    replies.push(incoming.reply);
                    continue;
                }
                if let Err(error) = incoming.verdict(index) {
                    refusal.get_or_insert(error);
                }
                if index == last || (refusal.is_some() && fatal == Some(index)) {
                    return refusal.map_or(Ok(replies), Err);
                }
            }
        }
    }

    fn receive(&self) -> io::Result<Vec<Incoming>> {
        let mut buffer = Vec::with_capacity(RECEIVE_BYTES);
        rustix::io::retry_on_intr(|| {
            buffer.clear();
            rustix::net::recv(&self.socket, spare_capacity(&mut buffer), RecvFlags::empty())
        })?;
        Ok(Incoming::split(&buffer))
    }
}

impl AsFd for NetlinkSocket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One message as it came in.
struct Incoming {
    flags: u16,
    sequence: u32,
    reply: Reply,
}

impl Incoming {
    fn split(mut bytes: &[u8]) -> Vec<Self> {
        let word = |bytes: &[u8], at: usize| -> Option<u32> {
            Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
        };
        let mut messages = Vec::new();
        while let (Some(length), Some(kind_and_flags), Some(sequence)) =
            (word(bytes, 0), word(bytes, 4), word(bytes, 8))
        {
            let length = length as usize;
            let Some(body) = bytes.get(HEADER_BYTES..length) else { break };
            let [kind_low, kind_high, flags_low, flags_high] = kind_and_flags.to_ne_bytes();
            messages.push(Self {
                flags: u16::from_ne_bytes([flags_low, flags_high]),
                sequence,
                reply: Reply { kind: u16::from_ne_bytes([kind_low, kind_high]), body: body.to_vec() },
            });
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        messages
    }

    /// Reads `struct nlmsgerr` and what the kernel explains behind it.
    fn verdict(&self, index: usize) -> Result<(), NetlinkError> {
        let errno = i32::from_ne_bytes(self.reply.header::<4>());
        if errno == 0 {
            return Ok(());
        }
        // Behind the error number stands the request's header, and unless capped its whole body.
        let echoed = if self.flags & NLM_F_CAPPED != 0 {
            HEADER_BYTES
        } else {
            let head: [u8; 8] = self.reply.header();
            u32::from_ne_bytes([head[4], head[5], head[6], head[7]]) as usize
        };
        let detail = (self.flags & NLM_F_ACK_TLVS != 0)
            .then(|| self.reply.attribute(echoed.saturating_add(4), NLMSGERR_ATTR_MSG))
            .flatten()
            .map(|text| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
        Err(NetlinkError { index, detail, source: io::Error::from_raw_os_error(errno.saturating_neg()) })
    }
}

#[allow(unsafe_code, reason = "rustix has no netlink socket options")]
fn set_option(socket: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the pointer and the length describe one live `i32`, which is what every option used here takes.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(&value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were_put() {
        let mut message = Message::new(16, 0, &[1, 2, 3, 4]);
        message.text(3, "eth0").u32(4, 1500).nest(18, |inner| {
            inner.text(1, "veth").nest(2, |data| {
                data.u8(1, 7);
            });
        });
        let reply = message.to_reply();
        assert_eq!(reply.attribute(4, 3), Some(b"eth0\0".as_slice()));
        assert_eq!(reply.attribute(4, 4), Some(1500u32.to_ne_bytes().as_slice()));
        let info: Vec<_> = Attributes::of(reply.attribute(4, 18).expect("nested")).collect();
        assert_eq!(info[0], (1, b"veth\0".as_slice()));
        assert_eq!(Attributes::of(info[1].1).next(), Some((1, [7].as_slice())));
    }

    #[test]
    fn an_attribute_beyond_its_length_field_is_refused_not_sent() {
        let mut message = Message::new(16, 0, &[]);
        message.bytes(1, &[0; 70_000]);
        assert_eq!(message.seal(1, true).expect_err("oversized").kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn the_loopback_interface_is_found_and_a_missing_one_is_refused() {
        let socket = NetlinkSocket::open(Family::Route).expect("socket");
        let link = |name: &str| {
            let mut message = Message::new(18, 0, &[0; 16]);
            message.text(3, name);
            message
        };
        let found = socket.pipeline(vec![link("lo"), link("lo")]).expect("lo exists");
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].attribute(16, 3), Some(b"lo\0".as_slice()));
        let error = socket.pipeline(vec![link("lo"), link("nonesuch")]).expect_err("no such interface");
        assert!(error.is(rustix::io::Errno::NODEV), "{error:?}");
        assert_eq!(error.index, 1);
        let mut names = Vec::new();
        socket
            .dump(Message::new(18, 0, &[0; 16]), |reply| names.push(reply.attribute(16, 3).map(<[u8]>::to_vec)))
            .expect("dump");
        assert!(names.contains(&Some(b"lo\0".to_vec())));
    }
}
