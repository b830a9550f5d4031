//! A link of a chosen length and width in front of a registry: it adds round-trip time, shares bandwidth between all of its
//! connections, and counts what passes.
//!
//! ```text
//!  client ── up:   read ─▶ [due = now + half a round trip] ─▶ write ──▶ server
//!  client ◀─ down: write ◀─ [due = slot on the line + half a round trip] ◀─ read ── server
//! ```
//!
//! A connection costs a round trip before its first byte moves, as TCP's handshake does. Bandwidth is that of the way
//! down; requests are small. Slow start and losses are not imitated, so everybody meets the same, friendly network. Threads, not
//! tokio: half of a round trip of 5 ms is too short for its millisecond clock.
//!
//! Invariants: bytes count just before they are handed to the receiver, so [`Link::counts`] never knows less than he does; nothing
//! is reordered or lost; dropping the link ends every connection.

mod counts;
mod lane;
mod shape;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};

pub use counts::Counts;
pub use shape::Shape;

use counts::{Counters, HeadCounter};
use lane::{Lane, Line};

/// A running link; its way to the registry is [`Link::address`].
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    road: Arc<Road>,
    acceptor: Option<JoinHandle<()>>,
}

/// What all connections share.
#[derive(Debug)]
struct Road {
    server: SocketAddr,
    shape: Shape,
    line: Option<Line>,
    counters: Counters,
    /// Both ends of what is open, so that it can be ended from outside.
    open: Mutex<HashMap<u64, [TcpStream; 2]>>,
    opened: AtomicU64,
    closed: AtomicBool,
}

impl Link {
    /// A link to `server` (host and port) on a free port of loopback.
    pub fn to(server: &str, shape: Shape) -> Result<Self> {
        let server = server.to_socket_addrs().with_context(|| format!("find {server}"))?.next();
        let server = server.context("a server without an address")?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on loopback")?;
        let address = listener.local_addr()?;
        let road = Arc::new(Road {
            server,
            shape,
            line: shape.bits_per_second.map(Line::new),
            counters: Counters::default(),
            open: Mutex::default(),
            opened: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        });
        let shared = Arc::clone(&road);
        let acceptor = std::thread::Builder::new().name("link".to_owned()).spawn(move || accept(&listener, &shared))?;
        Ok(Self { address, road, acceptor: Some(acceptor) })
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    pub fn shape(&self) -> Shape {
        self.road.shape
    }

    /// What has passed since the link was made. A difference of two is what passed between them.
    pub fn counts(&self) -> Counts {
        self.road.counters.now()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.road.closed.store(true, Ordering::Relaxed);
        // The acceptor waits for a connection: this is one.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            drop(acceptor.join());
        }
        for ends in self.road.open().values() {
            hang_up(ends);
        }
    }
}

impl Road {
    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<u64, [TcpStream; 2]>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One connection, from its first byte to the end of both directions.
    fn carry(&self, client: TcpStream) -> io::Result<()> {
        std::thread::sleep(self.shape.round_trip);
        let server = TcpStream::connect(self.server)?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        self.open().insert(number, [client.try_clone()?, server.try_clone()?]);
        if self.closed.load(Ordering::Relaxed) {
            hang_up(&[client.try_clone()?, server.try_clone()?]);
        }
        let delay = self.shape.round_trip / 2;
        let mut heads = HeadCounter::default();
        let up = Lane { from: &client, to: &server, delay, line: None, shape: self.shape };
        let down = Lane { from: &server, to: &client, delay, line: self.line.as_ref(), shape: self.shape };
        std::thread::scope(|scope| {
            scope.spawn(|| up.run(|bytes| self.counters.up(bytes, &mut heads)));
            down.run(|bytes| self.counters.down(bytes));
        });
        self.open().remove(&number);
        Ok(())
    }
}

fn accept(listener: &TcpListener, road: &Arc<Road>) {
    for client in listener.incoming() {
        if road.closed.load(Ordering::Relaxed) {
            return;
        }
        let Ok(client) = client else { continue };
        road.counters.connection();
        let road = Arc::clone(road);
        // A connection that cannot be carried is closed, which tells its client all there is to say.
        std::thread::spawn(move || drop(road.carry(client)));
    }
}

fn hang_up(ends: &[TcpStream; 2]) {
    for end in ends {
        // It may be gone already.
        drop(end.shutdown(Shutdown::Both));
    }
}
