//! What can go wrong with a network, in words for its user.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use sampan_sys::netlink::NetlinkError;

use crate::cni::CniError;
use crate::port::Protocol;
use crate::prefix::Prefix;

/// Who has a host port already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortHolder {
    /// Another sandbox of this service.
    Sandbox(String),
    /// A process of the host.
    Process { pid: u32, name: String },
    /// Someone whom the kernel does not name: another network namespace's process, or one that just ended.
    Unknown,
}

impl fmt::Display for PortHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox(id) => write!(f, "sandbox {id}"),
            Self::Process { pid, name } => write!(f, "process {name:?} (pid {pid})"),
            Self::Unknown => f.write_str("another process of this host"),
        }
    }
}

/// A failed operation on the node's network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("port {port}/{protocol} on {address} is taken by {holder}; publish another port or free this one")]
    PortTaken { address: IpAddr, port: u16, protocol: Protocol, holder: PortHolder },
    #[error("port {port}/{protocol} is published twice by the same instance; give each mapping a host port of its own")]
    PortRepeated { port: u16, protocol: Protocol },
    #[error("port 0 cannot be published; name a port from 1 to 65535")]
    PortZero,
    #[error("{count} ports are published where at most {} can be; publish fewer", crate::limits::PORTS_PER_SANDBOX_MAX)]
    PortsTooMany { count: usize },
    #[error("address {address} does not belong to this host; publish on one of its own addresses or on all")]
    AddressNotLocal { address: IpAddr },
    #[error("port {port}/{protocol} on {address} cannot be held")]
    PortHold {
        address: IpAddr,
        port: u16,
        protocol: Protocol,
        #[source]
        source: io::Error,
    },
    #[error("address pool {pool} overlaps the host's route {route}; configure another pool or remove that route")]
    PoolOverlaps { pool: Prefix, route: String },
    #[error("every candidate address pool overlaps a route of the host (the last: {route}); configure a free pool")]
    PoolsAllTaken { route: String },
    #[error("address pool {pool} cannot be used: {reason}")]
    PoolInvalid { pool: Prefix, reason: &'static str },
    #[error("address pool changed from {old} to {new} while {attached} instances use the old one; remove them first")]
    PoolChanged { old: Prefix, new: Prefix, attached: usize },
    #[error("no address is free in {pool}, {in_use} are in use; remove instances or configure a larger pool")]
    PoolExhausted { pool: Prefix, in_use: usize },
    #[error("interface {name} belongs to {owner:?} already; give this service another instance name")]
    InterfaceTaken { name: String, owner: String },
    #[error("sandbox {sandbox} is attached already")]
    AlreadyAttached { sandbox: String },
    #[error("sandbox {sandbox} is not attached")]
    NotAttached { sandbox: String },
    #[error("{what} {name:?} is not usable as a name; use 1 to {max} lowercase letters, digits and dashes")]
    InvalidName { what: &'static str, name: String, max: usize },
    #[error("MTU {mtu} is not possible; use {} to {}", crate::limits::MTU_MIN, crate::limits::MTU_MAX)]
    InvalidMtu { mtu: u32 },
    /// `operation` completes the sentence "cannot …".
    #[error("cannot {operation}")]
    Kernel {
        operation: String,
        #[source]
        source: NetlinkError,
    },
    #[error("cannot {operation} {}", path.display())]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot {operation}")]
    System {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
    /// Somebody else's program failed, or was asked for what it cannot do.
    #[error(transparent)]
    Cni(#[from] CniError),
    #[error("the network of this service is stopped")]
    Stopped,
}

/// Turns a kernel's refusal into one that says what was attempted.
pub(crate) trait Attempted<T> {
    fn attempted(self, operation: impl FnOnce() -> String) -> Result<T, NetworkError>;
}

impl<T> Attempted<T> for Result<T, NetlinkError> {
    fn attempted(self, operation: impl FnOnce() -> String) -> Result<T, NetworkError> {
        self.map_err(|source| NetworkError::Kernel { operation: operation(), source })
    }
}
