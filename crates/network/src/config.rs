//! What the network of one service is told, and the names that follow from it.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::cni::CniConfig;
use crate::error::NetworkError;
use crate::limits::{
    INSTANCE_BYTES_MAX, INTERFACE_ID_BYTES, IPV4_POOL_PREFIX_MAX, IPV4_POOL_PREFIX_MIN, IPV6_POOL_PREFIX_MAX,
    IPV6_POOL_PREFIX_MIN, MTU_MAX, MTU_MIN, SANDBOX_ID_BYTES_MAX,
};
use crate::prefix::Prefix;

/// Ranges to choose the IPv4 pool from: none is the default of docker (172.17 and up), podman (10.88, 10.89),
/// Kubernetes distributions (10.42, 10.43, 10.96, 10.244) or usual home routers.
pub(crate) const IPV4_CANDIDATES: [Prefixed; 5] = [
    Prefixed(Ipv4Addr::new(10, 187, 0, 0), 16),
    Prefixed(Ipv4Addr::new(10, 213, 0, 0), 16),
    Prefixed(Ipv4Addr::new(10, 61, 0, 0), 16),
    Prefixed(Ipv4Addr::new(172, 30, 0, 0), 16),
    Prefixed(Ipv4Addr::new(192, 168, 224, 0), 20),
];

/// A constant [`Prefix`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prefixed(Ipv4Addr, u8);

impl From<Prefixed> for Prefix {
    fn from(Prefixed(address, length): Prefixed) -> Self {
        Prefix::around(address.into(), length)
    }
}

/// How the network of one service is set up.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Names the nf_tables table and prefixes every interface, so that several services live side by side.
    pub instance: String,
    /// Where the choice of pools and the changed kernel settings are written down; made when missing, root only.
    pub state_dir: PathBuf,
    /// Where addresses in use are written down; by default `leases` in `state_dir`. They mean nothing after a reboot,
    /// and on a tmpfs an attachment is a third cheaper.
    pub lease_dir: PathBuf,
    /// Where IPv4 addresses come from; `None` takes the first candidate that no route of the host overlaps, and
    /// stays with it.
    pub ipv4_pool: Option<Prefix>,
    /// Where IPv6 addresses come from; `None` makes up a unique local prefix (RFC 4193) once, and stays with it.
    pub ipv6_pool: Option<Prefix>,
    /// `None` takes that of the interface of the host's default route.
    pub mtu: Option<u32>,
    /// Networks are made by others' programs instead; all of the above but the folders is then of no matter.
    pub cni: Option<CniConfig>,
    /// The host's resolver configuration.
    pub resolv_conf: PathBuf,
    /// The full list of upstream servers that systemd-resolved keeps, for when `resolv_conf` names only its stub.
    pub resolved_upstream: PathBuf,
}

impl NetworkConfig {
    pub fn new(instance: impl Into<String>, state_dir: impl Into<PathBuf>) -> Self {
        let state_dir = state_dir.into();
        Self {
            instance: instance.into(),
            lease_dir: state_dir.join("leases"),
            state_dir,
            ipv4_pool: None,
            ipv6_pool: None,
            mtu: None,
            cni: None,
            resolv_conf: "/etc/resolv.conf".into(),
            resolved_upstream: "/run/systemd/resolve/resolv.conf".into(),
        }
    }

    pub(crate) fn validate(&self) -> Result<(), NetworkError> {
        check_name("instance", &self.instance, INSTANCE_BYTES_MAX)?;
        if let Some(mtu) = self.mtu.filter(|mtu| !(MTU_MIN..=MTU_MAX).contains(mtu)) {
            return Err(NetworkError::InvalidMtu { mtu });
        }
        if let Some(pool) = self.ipv4_pool {
            if !pool.is_ipv4() {
                return Err(NetworkError::PoolInvalid { pool, reason: "it is not IPv4" });
            }
            if !(IPV4_POOL_PREFIX_MIN..=IPV4_POOL_PREFIX_MAX).contains(&pool.length()) {
                return Err(NetworkError::PoolInvalid { pool, reason: "its prefix must have 8 to 28 bits" });
            }
        }
        if let Some(pool) = self.ipv6_pool {
            if pool.is_ipv4() {
                return Err(NetworkError::PoolInvalid { pool, reason: "it is not IPv6" });
            }
            if !(IPV6_POOL_PREFIX_MIN..=IPV6_POOL_PREFIX_MAX).contains(&pool.length()) {
                return Err(NetworkError::PoolInvalid { pool, reason: "its prefix must have 32 to 96 bits" });
            }
        }
        Ok(())
    }
}

/// The names that one service uses on the host.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) instance: String,
    /// The nf_tables table, of family `inet`.
    pub(crate) table: String,
    /// The table of those whose sending is limited.
    pub(crate) policers: String,
    /// What every host interface of this service begins with; four characters, the last a dash.
    pub(crate) prefix: String,
    /// The interface that holds the gateway addresses and the pools' routes.
    pub(crate) anchor: String,
}

impl Names {
    pub(crate) fn of(instance: &str) -> Self {
        let table = if instance.starts_with("sampan") { instance.to_owned() } else { format!("sampan-{instance}") };
        let prefix = if instance == "sampan" {
            "spn-".to_owned()
        } else {
            const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
            let hash = stable_hash(instance);
            let letter = |shift: u32| char::from(LETTERS[(hash >> shift) as usize % LETTERS.len()]);
            format!("{}{}{}-", letter(0), letter(5), letter(10))
        };
        Self {
            instance: instance.to_owned(),
            policers: format!("{table}-rates"),
            anchor: format!("{prefix}host"),
            table,
            prefix,
        }
    }

    /// The host's end of a sandbox's cable.
    pub(crate) fn host_interface(&self, sandbox: &str) -> String {
        format!("{}{}", self.prefix, sandbox.get(..INTERFACE_ID_BYTES).unwrap_or(sandbox))
    }

    /// What the interface says about itself in `ip link`.
    pub(crate) fn alias(&self, sandbox: &str) -> String {
        format!("{}/{sandbox}", self.instance)
    }

    /// The sandbox that an alias of this service names.
    pub(crate) fn sandbox_of_alias<'a>(&self, alias: &'a str) -> Option<&'a str> {
        alias.strip_prefix(self.instance.as_str())?.strip_prefix('/')
    }
}

/// FNV-1a: the same on every machine and in every version, unlike the standard library's hashers.
pub(crate) fn stable_hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Names become file, interface and table names: nothing but `[a-z0-9-]` passes.
pub(crate) fn check_name(what: &'static str, name: &str, max: usize) -> Result<(), NetworkError> {
    let usable = !name.is_empty()
        && name.len() <= max
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.starts_with('-');
    if usable { Ok(()) } else { Err(NetworkError::InvalidName { what, name: name.to_owned(), max }) }
}

pub(crate) fn check_sandbox(sandbox: &str) -> Result<(), NetworkError> {
    check_name("sandbox", sandbox, SANDBOX_ID_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_tell_services_apart() {
        let ours = Names::of("sampan");
        let test = Names::of("sampan-test");
        assert_eq!(ours.prefix, "spn-");
        assert_eq!(ours.table, "sampan");
        assert_ne!(ours.prefix, test.prefix);
        assert_eq!(Names::of("firewalld").table, "sampan-firewalld");
        assert_eq!(ours.host_interface("0123456789abcdef"), "spn-0123456789a");
        assert_eq!(ours.sandbox_of_alias(&ours.alias("0123456789abcdef")), Some("0123456789abcdef"));
        assert_eq!(ours.sandbox_of_alias(&test.alias("0123456789abcdef")), None);
    }

    #[test]
    fn hostile_names_are_refused() {
        for name in ["", "../x", "a/b", "A", "a b", "-a", "é", "x\0"] {
            assert!(check_sandbox(name).is_err(), "{name:?}");
        }
        assert!(check_sandbox(&"a".repeat(65)).is_err());
        assert!(check_sandbox("0123456789abcdef").is_ok());
    }
}
