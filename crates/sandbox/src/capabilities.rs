//! Capabilities by name, and the default set.

/// Names in the kernel's order (`linux/capability.h`); the place is the number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What containerd and docker grant by default.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// A capability that Linux does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown capability {name}: the names are those of capabilities(7), with or without CAP_")]
pub struct UnknownCapability {
    pub name: String,
}

/// A set of capabilities, each within the sandbox' own user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Capabilities(u64);

impl Capabilities {
    /// The set without anything.
    pub const NONE: Self = Self(0);

    /// Everything that this crate knows.
    #[must_use]
    pub fn all() -> Self {
        Self((1 << NAMES.len()) - 1)
    }

    /// What a container gets that asks for nothing.
    #[must_use]
    pub fn runtime_default() -> Self {
        DEFAULT.iter().filter_map(|name| bit(name)).fold(Self::NONE, |set, bit| Self(set.0 | bit))
    }

    /// The set with some added and then others dropped, `ALL` meaning every one; an addition by name survives `drop: ALL`,
    /// as Kubernetes has it.
    pub fn adjusted(self, add: &[String], drop: &[String]) -> Result<Self, UnknownCapability> {
        let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
        let mut set = self.0;
        if drop.iter().any(is_all) {
            set = 0;
        }
        if add.iter().any(is_all) {
            set = Self::all().0;
        }
        for name in add.iter().filter(|name| !is_all(name)) {
            set |= bit(name).ok_or_else(|| UnknownCapability { name: name.clone() })?;
        }
        for name in drop.iter().filter(|name| !is_all(name)) {
            set &= !bit(name).ok_or_else(|| UnknownCapability { name: name.clone() })?;
        }
        Ok(Self(set))
    }

    /// Whether all of another set are in this one.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Bit n is capability n.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Whether the capability of this name is in the set.
    #[must_use]
    pub fn has(self, name: &str) -> bool {
        bit(name).is_some_and(|bit| self.0 & bit != 0)
    }
}

fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|known| *known == short).map(|place| 1 << place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn default_set_is_dockers() {
        assert_eq!(Capabilities::runtime_default().bits(), 0xa804_25fb);
    }

    #[test]
    fn adjusts_as_kubernetes_does() {
        let base = Capabilities::runtime_default();
        let only_chown = base.adjusted(&names(&["cap_chown"]), &names(&["ALL"]));
        assert_eq!(only_chown, Ok(Capabilities(1)));
        assert!(base.adjusted(&names(&["ALL"]), &names(&["SYS_ADMIN"])).is_ok_and(|set| !set.has("SYS_ADMIN")));
        assert_eq!(base.adjusted(&names(&["FLY"]), &[]), Err(UnknownCapability { name: "FLY".into() }));
    }
}
