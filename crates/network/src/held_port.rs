//! Host ports held by a socket for as long as they are published.
//!
//! The kernel translates packets for a published port before they reach any socket, so a process that took the port
//! would wait in vain, and nobody could tell it why. The bound socket makes its `bind` fail instead, and makes ours
//! fail when it was there first. The few connections that translation cannot serve, those to `[::1]` and to
//! link-local addresses, do arrive here, and are carried over in user space (TCP only).

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, sockopt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use crate::error::NetworkError;
use crate::holder;
use crate::limits::{FORWARD_CONNECT_DEADLINE, FORWARDED_CONNECTIONS_MAX, HELD_PORT_BACKLOG};
use crate::port::{PortMapping, Protocol};

/// How long the forwarder waits after the system refused it a connection (no descriptors, no memory).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A host port that nobody else can bind. Dropping it frees the port soon; [`HeldPort::release`] says when.
#[derive(Debug)]
pub(crate) enum HeldPort {
    Tcp {
        forwarder: JoinHandle<()>,
        socket: OwnedFd,
    },
    /// Nothing is read from it: what comes is dropped by the kernel when the buffer is full.
    Udp(#[expect(dead_code, reason = "held open, not used")] OwnedFd),
}

impl HeldPort {
    /// Binds every address of the mapping and adds the sockets to `held`.
    ///
    /// `targets` are the sandbox's addresses. Where the host has no IPv6, a mapping for every address is IPv4 alone.
    pub(crate) fn hold(
        port: &PortMapping,
        targets: &[IpAddr],
        runtime: &Handle,
        held: &mut Vec<Self>,
    ) -> Result<(), NetworkError> {
        for address in port.host_addresses() {
            let socket = match bind(SocketAddr::new(address, port.host_port), port.protocol) {
                Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) if port.host_ip.is_none() && address.is_ipv6() => {
                    continue;
                }
                other => other.map_err(|errno| refused(errno, address, port))?,
            };
            held.push(match port.protocol {
                Protocol::Udp => Self::Udp(socket),
                Protocol::Tcp => {
                    // The same family first: what listens on one of them only is found in the second attempt.
                    let mut targets: Vec<_> =
                        targets.iter().map(|target| SocketAddr::new(*target, port.container_port)).collect();
                    targets.sort_by_key(|target| target.is_ipv4() != address.is_ipv4());
                    let listener = TcpListener::from(socket.try_clone().map_err(|source| NetworkError::PortHold {
                        address,
                        port: port.host_port,
                        protocol: port.protocol,
                        source,
                    })?);
                    Self::Tcp { forwarder: runtime.spawn(forward(listener, targets)), socket }
                }
            });
        }
        Ok(())
    }

    /// Frees the port; it can be bound again when this returns.
    pub(crate) async fn release(mut self) {
        if let Self::Tcp { forwarder, socket } = &mut self {
            // A program that is being started elsewhere in this process has a copy of the socket for a moment.
            if let Err(error) = rustix::net::shutdown(&*socket, Shutdown::Both) {
                tracing::debug!(%error, "a held port was not listening");
            }
            forwarder.abort();
            if let Err(error) = forwarder.await
                && error.is_panic()
            {
                tracing::error!(%error, "a port forwarder failed");
            }
        }
    }
}

impl Drop for HeldPort {
    fn drop(&mut self) {
        if let Self::Tcp { forwarder, .. } = self {
            forwarder.abort();
        }
    }
}

fn bind(address: SocketAddr, protocol: Protocol) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if protocol == Protocol::Tcp {
        // Connections of an earlier listener that are still winding down do not count as its being there.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    if protocol == Protocol::Tcp {
        rustix::net::listen(&socket, HELD_PORT_BACKLOG)?;
    }
    Ok(socket)
}

fn refused(errno: Errno, address: IpAddr, mapping: &PortMapping) -> NetworkError {
    let (port, protocol) = (mapping.host_port, mapping.protocol);
    match errno {
        Errno::ADDRINUSE => {
            NetworkError::PortTaken { address, port, protocol, holder: holder::of_port(port, protocol) }
        }
        Errno::ADDRNOTAVAIL => NetworkError::AddressNotLocal { address },
        other => NetworkError::PortHold { address, port, protocol, source: other.into() },
    }
}

/// Carries connections over until it is aborted, which ends all of them.
async fn forward(listener: TcpListener, targets: Vec<SocketAddr>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "a published port cannot be served on [::1]");
            return;
        }
    };
    let targets: Arc<[SocketAddr]> = targets.into();
    let slots = Arc::new(Semaphore::new(FORWARDED_CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _from)) => {
                    if let Ok(slot) = Arc::clone(&slots).try_acquire_owned() {
                        let targets = Arc::clone(&targets);
                        connections.spawn(async move {
                            let _slot = slot;
                            carry(client, &targets).await
                        });
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "a published port accepts nothing for a moment");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => {
                if let Ok(Err(error)) = ended {
                    tracing::debug!(%error, "a forwarded connection broke");
                }
            }
        }
    }
}

async fn carry(mut client: TcpStream, targets: &[SocketAddr]) -> io::Result<()> {
    let mut last_error = io::Error::from(io::ErrorKind::NotFound);
    for target in targets {
        match tokio::time::timeout(FORWARD_CONNECT_DEADLINE, TcpStream::connect(target)).await {
            Ok(Ok(mut server)) => {
                return tokio::io::copy_bidirectional(&mut client, &mut server).await.map(|_bytes| ());
            }
            Ok(Err(error)) => last_error = error,
            Err(elapsed) => last_error = elapsed.into(),
        }
    }
    Err(last_error)
}
