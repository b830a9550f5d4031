//! Which address ranges a service uses: configured, remembered or found free.
//!
//! A range that a route of the host leads into already is never taken: packets would go astray on one side or the
//! other. What was chosen is remembered, so that addresses stay in their range over restarts.

use std::net::IpAddr;

use crate::config::{IPV4_CANDIDATES, Names, NetworkConfig};
use crate::error::NetworkError;
use crate::leases::{self, Pools};
use crate::prefix::Prefix;
use crate::rtnetlink::{Link, Route};
use crate::sysctl;

/// The configured pools, those of the last run, or free ones, in this order.
pub(crate) fn choose(
    config: &NetworkConfig,
    names: &Names,
    boot: &str,
    links: &[Link],
    routes: &[Route],
) -> Result<Pools, NetworkError> {
    let remembered = leases::read_pools(&config.state_dir);
    let attached = leases::count(&config.lease_dir, boot)?;
    let overlap = |pool: Prefix| overlapping_route(pool, names, links, routes);
    if let (Some(old), true) = (remembered, attached > 0) {
        // Instances run with these addresses: what overlaps now came later, and is not for us to refuse.
        for (old, new) in [(Some(old.ipv4), config.ipv4_pool), (old.ipv6, config.ipv6_pool)] {
            if let (Some(old), Some(new)) = (old, new)
                && old != new
            {
                return Err(NetworkError::PoolChanged { old, new, attached });
            }
        }
        for (pool, route) in
            [Some(old.ipv4), old.ipv6].into_iter().flatten().filter_map(|pool| Some((pool, overlap(pool)?)))
        {
            tracing::warn!(%pool, %route, "a route of the host overlaps the pool in use");
        }
        return Ok(old);
    }
    let ipv4 = match config.ipv4_pool {
        Some(pool) => overlap(pool).map_or(Ok(pool), |route| Err(NetworkError::PoolOverlaps { pool, route }))?,
        None => free_ipv4_pool(remembered.map(|pools| pools.ipv4), overlap)?,
    };
    let ipv6 = if sysctl::ipv6_is_on() {
        let pool = match config.ipv6_pool.or(remembered.and_then(|pools| pools.ipv6)) {
            Some(pool) => pool,
            None => unique_local_pool()?,
        };
        Some(overlap(pool).map_or(Ok(pool), |route| Err(NetworkError::PoolOverlaps { pool, route }))?)
    } else {
        tracing::info!("IPv6 is off on this host; sandboxes get IPv4 addresses only");
        None
    };
    Ok(Pools { ipv4, ipv6 })
}

fn free_ipv4_pool(
    remembered: Option<Prefix>,
    overlap: impl Fn(Prefix) -> Option<String>,
) -> Result<Prefix, NetworkError> {
    let mut last_route = String::new();
    for pool in remembered.into_iter().chain(IPV4_CANDIDATES.map(Prefix::from)) {
        match overlap(pool) {
            None => return Ok(pool),
            Some(route) => last_route = route,
        }
    }
    Err(NetworkError::PoolsAllTaken { route: last_route })
}

/// Forty random bits behind `fd`, as RFC 4193 asks, so that two machines' pools can be joined one day.
fn unique_local_pool() -> Result<Prefix, NetworkError> {
    let mut address = [0; 16];
    let (random, _rest) = address.split_at_mut(6);
    rustix::rand::getrandom(&mut *random, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| NetworkError::System { operation: "draw a random IPv6 prefix", source: errno.into() })?;
    address[0] = 0xfd;
    Ok(Prefix::around(IpAddr::from(address), 64))
}

/// A route of somebody else's into the pool, in words.
fn overlapping_route(pool: Prefix, names: &Names, links: &[Link], routes: &[Route]) -> Option<String> {
    let name = |index: u32| links.iter().find(|link| link.index == index).map(|link| link.name.as_str());
    routes
        .iter()
        .filter(|route| route.destination.length() > 0 && route.destination.overlaps(&pool))
        .filter(|route| !name(route.interface).is_some_and(|name| name.starts_with(&names.prefix)))
        .map(|route| match name(route.interface) {
            Some(name) => format!("{} on {name}", route.destination),
            None => route.destination.to_string(),
        })
        .next()
}
