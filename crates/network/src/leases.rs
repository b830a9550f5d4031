//! Who has which address: one file per sandbox, and never the same address twice.
//!
//! A lease is written (to a temporary name, then renamed) before anything is made on the host, and its file is removed
//! after. So whatever the moment of a kill, every address that may be in use has a file. Files carry the boot's id:
//! after a reboot nothing of what they describe exists, and they are dropped. No fsync is needed for the same reason.
//!
//! Invariants: the address of a lease is in no other; offsets are handed out round robin, so that a freed address
//! rests until the rest of the pool has been used.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bandwidth::Bandwidth;
use crate::error::NetworkError;
use crate::limits::CURSOR_STEP;
use crate::port::PortMapping;
use crate::prefix::Prefix;

/// The ranges that addresses come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pools {
    pub(crate) ipv4: Prefix,
    /// `None` where the host has IPv6 switched off.
    pub(crate) ipv6: Option<Prefix>,
}

impl Pools {
    /// The first address of each pool is the host's own.
    pub(crate) fn gateways(&self) -> Vec<IpAddr> {
        [Some(self.ipv4), self.ipv6].into_iter().flatten().filter_map(|pool| pool.nth(1)).collect()
    }

    pub(crate) fn gateway4(&self) -> Option<Ipv4Addr> {
        self.gateways().into_iter().find_map(|address| if let IpAddr::V4(v4) = address { Some(v4) } else { None })
    }

    pub(crate) fn gateway6(&self) -> Option<Ipv6Addr> {
        self.gateways().into_iter().find_map(|address| if let IpAddr::V6(v6) = address { Some(v6) } else { None })
    }

    /// Usable offsets are 2 (behind network and gateway) up to, and not with, this one (the broadcast address).
    fn end(&self) -> u32 {
        u32::MAX.checked_shr(u32::from(self.ipv4.length())).unwrap_or(0)
    }
}

const FIRST_OFFSET: u32 = 2;

/// What one sandbox has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    pub(crate) sandbox: String,
    pub(crate) boot: String,
    pub(crate) ipv4: Ipv4Addr,
    pub(crate) ipv6: Option<Ipv6Addr>,
    pub(crate) ports: Vec<PortMapping>,
    #[serde(default)]
    pub(crate) bandwidth: Bandwidth,
}

impl Lease {
    /// The sandbox's addresses, IPv4 first.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        [Some(IpAddr::V4(self.ipv4)), self.ipv6.map(IpAddr::V6)].into_iter().flatten().collect()
    }
}

/// All leases of one service.
#[derive(Debug)]
pub(crate) struct Leases {
    dir: PathBuf,
    boot: String,
    pools: Pools,
    by_sandbox: BTreeMap<String, Lease>,
    in_use: BTreeSet<u32>,
    next: u32,
    /// Offsets below it may have been handed out; written before they are.
    written_ahead: u32,
}

impl Leases {
    /// Reads the leases of this boot and removes all else from the directory.
    pub(crate) fn open(dir: &Path, boot: &str, pools: Pools) -> Result<Self, NetworkError> {
        make_dir(dir)?;
        let kept = read_leases(dir, boot)?;
        for stale in kept.stale {
            remove(&stale)?;
        }
        let cursor = read_cursor(dir);
        let in_use = kept.leases.values().filter_map(|lease| pools.ipv4.offset_of(lease.ipv4.into())).collect();
        Ok(Self {
            dir: dir.to_owned(),
            boot: boot.to_owned(),
            pools,
            by_sandbox: kept.leases,
            in_use,
            next: cursor,
            written_ahead: cursor,
        })
    }

    pub(crate) fn get(&self, sandbox: &str) -> Option<&Lease> {
        self.by_sandbox.get(sandbox)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.by_sandbox.values()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_sandbox.is_empty()
    }

    pub(crate) fn pools(&self) -> &Pools {
        &self.pools
    }

    /// Gives the sandbox an address and writes it down.
    pub(crate) fn take(
        &mut self,
        sandbox: &str,
        ports: &[PortMapping],
        bandwidth: Bandwidth,
    ) -> Result<Lease, NetworkError> {
        if self.by_sandbox.contains_key(sandbox) {
            return Err(NetworkError::AlreadyAttached { sandbox: sandbox.to_owned() });
        }
        let offset = self.free_offset()?;
        let exhausted = || NetworkError::PoolExhausted { pool: self.pools.ipv4, in_use: self.in_use.len() };
        let Some(IpAddr::V4(ipv4)) = self.pools.ipv4.nth(offset) else { return Err(exhausted()) };
        let ipv6 = match self.pools.ipv6.map(|pool| pool.nth(offset)) {
            None => None,
            Some(Some(IpAddr::V6(ipv6))) => Some(ipv6),
            Some(_) => return Err(exhausted()),
        };
        if offset >= self.written_ahead {
            let ahead = offset.saturating_add(CURSOR_STEP);
            write_whole(&self.dir, "cursor", ahead.to_string().as_bytes())?;
            self.written_ahead = ahead;
        }
        let lease = Lease {
            sandbox: sandbox.to_owned(),
            boot: self.boot.clone(),
            ipv4,
            ipv6,
            ports: ports.to_vec(),
            bandwidth,
        };
        let text = serde_json::to_vec(&lease).map_err(io::Error::from);
        let path = self.dir.join(file_name(sandbox));
        let text = text.map_err(|source| NetworkError::File { operation: "write", path, source })?;
        write_whole(&self.dir, &file_name(sandbox), &text)?;
        self.in_use.insert(offset);
        self.next = offset + 1;
        self.by_sandbox.insert(sandbox.to_owned(), lease.clone());
        Ok(lease)
    }

    /// Takes the address back; `None` when the sandbox has none.
    pub(crate) fn release(&mut self, sandbox: &str) -> Result<Option<Lease>, NetworkError> {
        let Some(lease) = self.by_sandbox.get(sandbox) else { return Ok(None) };
        remove(&self.dir.join(file_name(sandbox)))?;
        if let Some(offset) = self.pools.ipv4.offset_of(lease.ipv4.into()) {
            self.in_use.remove(&offset);
        }
        Ok(self.by_sandbox.remove(sandbox))
    }

    fn free_offset(&mut self) -> Result<u32, NetworkError> {
        let end = self.pools.end();
        if self.next >= end || self.next < FIRST_OFFSET {
            // The round begins anew, and with it the cursor that is written ahead.
            self.next = FIRST_OFFSET;
            self.written_ahead = 0;
        }
        (self.next..end)
            .chain(FIRST_OFFSET..self.next)
            .find(|offset| !self.in_use.contains(offset))
            .inspect(|offset| {
                if *offset < self.next {
                    self.written_ahead = 0;
                }
            })
            .ok_or(NetworkError::PoolExhausted { pool: self.pools.ipv4, in_use: self.in_use.len() })
    }
}

/// How many leases of this boot there are, without opening them for use.
pub(crate) fn count(dir: &Path, boot: &str) -> Result<usize, NetworkError> {
    if !dir.exists() {
        return Ok(0);
    }
    Ok(read_leases(dir, boot)?.leases.len())
}

/// The pools that this service used last.
pub(crate) fn read_pools(state_dir: &Path) -> Option<Pools> {
    serde_json::from_slice(&fs::read(state_dir.join("pools.json")).ok()?).ok()
}

pub(crate) fn write_pools(state_dir: &Path, pools: &Pools) -> Result<(), NetworkError> {
    make_dir(state_dir)?;
    let text = serde_json::to_vec(pools).map_err(io::Error::from);
    let path = state_dir.join("pools.json");
    write_whole(
        state_dir,
        "pools.json",
        &text.map_err(|source| NetworkError::File { operation: "write", path, source })?,
    )
}

struct Found {
    leases: BTreeMap<String, Lease>,
    /// Torn, foreign, of another boot, or naming an address that another lease has.
    stale: Vec<PathBuf>,
}

fn read_leases(dir: &Path, boot: &str) -> Result<Found, NetworkError> {
    let failed = |source| NetworkError::File { operation: "read", path: dir.to_owned(), source };
    let mut found = Found { leases: BTreeMap::new(), stale: Vec::new() };
    let mut addresses = BTreeSet::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.file_name().is_some_and(|name| name == "cursor") {
            continue;
        }
        let lease = fs::read(&path).ok().and_then(|bytes| parse_lease(&bytes));
        match lease {
            Some(lease)
                if lease.boot == boot
                    && path.file_name().is_some_and(|name| *name == *file_name(&lease.sandbox))
                    && addresses.insert(lease.ipv4) =>
            {
                found.leases.insert(lease.sandbox.clone(), lease);
            }
            Some(_) => found.stale.push(path),
            None => {
                tracing::warn!(path = %path.display(), "dropping a lease file that cannot be read");
                found.stale.push(path);
            }
        }
    }
    Ok(found)
}

/// A lease as it stands in its file.
fn parse_lease(bytes: &[u8]) -> Option<Lease> {
    let lease: Lease = serde_json::from_slice(bytes).ok()?;
    crate::config::check_sandbox(&lease.sandbox).ok()?;
    Some(lease)
}

fn read_cursor(dir: &Path) -> u32 {
    fs::read_to_string(dir.join("cursor")).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(FIRST_OFFSET)
}

fn file_name(sandbox: &str) -> String {
    format!("{sandbox}.json")
}

pub(crate) fn make_dir(dir: &Path) -> Result<(), NetworkError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| NetworkError::File {
        operation: "make",
        path: dir.to_owned(),
        source,
    })
}

pub(crate) fn write_whole(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), NetworkError> {
    let path = dir.join(name);
    let temporary = dir.join(format!(".{name}.new"));
    fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, &path)).map_err(|source| NetworkError::File {
        operation: "write",
        path,
        source,
    })
}

fn remove(path: &Path) -> Result<(), NetworkError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(NetworkError::File { operation: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pools(ipv4: &str) -> Pools {
        Pools { ipv4: ipv4.parse().expect("pool"), ipv6: Some("fd00:1::/64".parse().expect("pool")) }
    }

    #[test]
    fn a_freed_address_rests_until_the_pool_has_been_round() {
        let dir = tempfile::tempdir().expect("dir");
        let mut leases = Leases::open(dir.path(), "boot", pools("10.9.0.0/28")).expect("open");
        let first = leases.take("a", &[], Bandwidth::default()).expect("first");
        assert_eq!(first.ipv4, Ipv4Addr::new(10, 9, 0, 2));
        assert_eq!(first.ipv6, Some("fd00:1::2".parse().expect("address")));
        leases.release("a").expect("release");
        for step in 3..=14 {
            assert_eq!(leases.take("b", &[], Bandwidth::default()).expect("next").ipv4, Ipv4Addr::new(10, 9, 0, step));
            leases.release("b").expect("release");
        }
        assert_eq!(leases.take("b", &[], Bandwidth::default()).expect("round").ipv4, Ipv4Addr::new(10, 9, 0, 2));
    }

    #[test]
    fn an_exhausted_pool_says_so() {
        let dir = tempfile::tempdir().expect("dir");
        let mut leases = Leases::open(dir.path(), "boot", pools("10.9.0.0/28")).expect("open");
        for index in 0..13 {
            leases.take(&format!("s{index}"), &[], Bandwidth::default()).expect("free");
        }
        let error = leases.take("more", &[], Bandwidth::default()).expect_err("14 addresses less the gateway");
        assert_eq!(
            error.to_string(),
            "no address is free in 10.9.0.0/28, 13 are in use; remove instances or configure a larger pool"
        );
        leases.release("s5").expect("release");
        assert_eq!(leases.take("more", &[], Bandwidth::default()).expect("freed").ipv4, Ipv4Addr::new(10, 9, 0, 7));
    }

    #[test]
    fn leases_outlive_the_process_but_not_the_boot_and_torn_files_are_dropped() {
        let dir = tempfile::tempdir().expect("dir");
        let taken = {
            let mut leases = Leases::open(dir.path(), "boot", pools("10.9.0.0/24")).expect("open");
            leases.take("a", &[], Bandwidth::default()).expect("take")
        };
        fs::write(dir.path().join("torn.json"), b"{\"sandbox\":").expect("write");
        fs::write(dir.path().join(".a.json.new"), b"").expect("write");
        let mut again = Leases::open(dir.path(), "boot", pools("10.9.0.0/24")).expect("open");
        assert_eq!(again.get("a"), Some(&taken));
        assert!(!dir.path().join("torn.json").exists());
        let next = again.take("b", &[], Bandwidth::default()).expect("take");
        assert!(next.ipv4.octets()[3] >= 2 + CURSOR_STEP as u8, "{next:?} follows what may have been handed out");
        let reboot = Leases::open(dir.path(), "another boot", pools("10.9.0.0/24")).expect("open");
        assert!(reboot.is_empty());
        assert!(!dir.path().join("a.json").exists());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Whatever is taken, released and reopened: no two leases share an address, and all stay in the pool.
        #[test]
        fn no_address_is_given_twice(steps in prop::collection::vec((0u8..40, 0u8..4), 1..80)) {
            let dir = tempfile::tempdir().expect("dir");
            let pools = pools("10.9.0.0/27");
            let mut leases = Leases::open(dir.path(), "boot", pools).expect("open");
            for (who, what) in steps {
                let sandbox = format!("s{who}");
                match what {
                    0 | 1 => match leases.take(&sandbox, &[], Bandwidth::default()) {
                        Ok(_) | Err(NetworkError::AlreadyAttached { .. }) => {}
                        Err(NetworkError::PoolExhausted { in_use, .. }) => prop_assert_eq!(in_use, 29),
                        Err(other) => return Err(TestCaseError::fail(other.to_string())),
                    },
                    2 => drop(leases.release(&sandbox).expect("release")),
                    _ => leases = Leases::open(dir.path(), "boot", pools).expect("reopen"),
                }
                let addresses: BTreeSet<_> = leases.iter().map(|lease| lease.ipv4).collect();
                prop_assert_eq!(addresses.len(), leases.iter().count());
                prop_assert!(addresses.iter().all(|address| pools.ipv4.contains((*address).into())
                    && address.octets()[3] >= 2 && address.octets()[3] < 31));
            }
        }

        #[test]
        fn any_lease_file_is_read_or_refused(bytes: Vec<u8>) {
            drop(parse_lease(&bytes));
        }
    }
}
