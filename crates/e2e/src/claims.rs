//! What of the machine belongs to this test program until it ends: ports and addresses.
//!
//! A claim is an abstract socket, which the kernel takes away with the program that bound it; other test programs see the name
//! taken. What others than tests use, or a killed test has left behind, is looked for too.

use std::io::{Error, ErrorKind};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};

/// Below the ports that the kernel gives to connections (`ip_local_port_range` begins at 32768): none of those takes one of
/// these while its owner is being started again.
const PORTS: std::ops::Range<u16> = 20_000..30_000;
/// What pools of addresses begin with: `10.x.`.
const POOLS: std::ops::Range<u8> = 100..250;
const WIDE_POOLS: std::ops::Range<u8> = 250..255;

static CLAIMS: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

/// A port that nobody listens on, for this program alone.
pub fn port() -> Result<u16> {
    // Programs begin at different places, so that they do not try each other's one after the other.
    let count = u32::from(PORTS.end - PORTS.start);
    let first = std::process::id().wrapping_mul(61) % count;
    for step in 0..count {
        let port = PORTS.start + u16::try_from((first + step) % count)?;
        let free = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
            && UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
        if free && claim(&format!("port-{port}"))? {
            return Ok(port);
        }
    }
    anyhow::bail!("every port from {} to {} is taken", PORTS.start, PORTS.end - 1)
}

/// The second and third number of 250 addresses, `10.x.y.0/24`, that are nobody's.
pub fn pool() -> Result<(u8, u8)> {
    let first = std::process::id().wrapping_mul(7);
    let (highs, lows) = (u32::from(POOLS.end - POOLS.start), 250);
    for step in 0..highs * lows {
        let number = first.wrapping_add(step);
        let (high, low) = (POOLS.start + u8::try_from(number / lows % highs)?, u8::try_from(number % lows)?);
        if is_nobodys(high, low) && claim(&format!("pool-{high}.{low}"))? {
            return Ok((high, low));
        }
    }
    anyhow::bail!("every pool of addresses is taken")
}

/// The second number of 65,000 addresses, `10.x.0.0/16`, that are nobody's.
pub fn wide_pool() -> Result<u8> {
    for high in WIDE_POOLS {
        if is_nobodys(high, 0) && claim(&format!("pool-{high}"))? {
            return Ok(high);
        }
    }
    anyhow::bail!("every wide pool of addresses is taken; are there interfaces of killed tests (`ip link`)?")
}

/// Whether no interface has the first address of a pool, which a service gives to its own.
fn is_nobodys(high: u8, low: u8) -> bool {
    let bound = UdpSocket::bind((Ipv4Addr::new(10, high, low, 1), 0));
    bound.is_err_and(|error| error.kind() == ErrorKind::AddrNotAvailable)
}

fn claim(what: &str) -> Result<bool> {
    let claimed = SocketAddr::from_abstract_name(format!("sampan-e2e-{what}"))
        .and_then(|name| UnixListener::bind_addr(&name))
        .map(|claim| CLAIMS.lock().unwrap_or_else(PoisonError::into_inner).push(claim));
    match claimed {
        Ok(()) => Ok(true),
        Err(error) if Error::kind(&error) == ErrorKind::AddrInUse => Ok(false),
        Err(error) => Err(error).context("claim a part of the machine"),
    }
}
