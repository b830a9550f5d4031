//! From what a pod and an image say about a container to what the sandbox is told to start.
//!
//! Pure but for the descriptors that pass through. Sources: OCI image configuration ("Conversion to runtime
//! configuration"), and Kubernetes' rules for `command`, `args` and capabilities.

use std::path::PathBuf;
use std::sync::Arc;

use sampan_image::Image;
use sampan_sandbox::{
    Capabilities, Device, GroupsPolicy, Limit, ProcessNamespace, Resources, Seccomp, UnknownCapability, User,
};

use crate::volume::VolumeMount;

/// `PATH` of a container whose image sets none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a container is asked to end by that does not say.
const SIGTERM: i32 = 15;

/// Names of signals (signal(7), numbers of x86 and ARM).
const SIGNALS: [(&str, i32); 34] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// The first real-time signal as C libraries number them (they keep two of the kernel's for themselves), and the last.
const REAL_TIME: (i32, i32) = (34, 64);

/// The number of a signal given by number or name, with or without `SIG`: `9`, `QUIT`, `SIGRTMIN+3`, `RTMAXMINUS1`.
#[must_use]
pub fn signal_number(text: &str) -> Option<i32> {
    let upper = text.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Ok(number) = name.parse::<i32>() {
        return (1..=REAL_TIME.1).contains(&number).then_some(number);
    }
    let offset = |rest: &str, signs: [&str; 2]| match rest {
        "" => Some(0),
        _ => signs.iter().find_map(|sign| rest.strip_prefix(sign))?.parse::<u8>().ok().map(i32::from),
    };
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => Some(REAL_TIME.0 + offset(rest, ["+", "PLUS"])?),
        (_, Some(rest)) => Some(REAL_TIME.1 - offset(rest, ["-", "MINUS"])?),
        _ => None,
    };
    if let Some(number) = real_time {
        return (REAL_TIME.0..=REAL_TIME.1).contains(&number).then_some(number);
    }
    SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// Why a container cannot be started as it is described.
#[derive(Debug, thiserror::Error)]
pub enum ContainerConfigError {
    /// Neither pod nor image names a program.
    #[error("image {image} names no command; add one after the image, or set command in the container's spec")]
    NoCommand {
        /// The image.
        image: String,
    },
    /// A capability that does not exist.
    #[error(transparent)]
    Capability(#[from] UnknownCapability),
    /// A user that must not be root is, or cannot be known.
    #[error(
        "container {container:?} has runAsNonRoot, but would run as {user}; set runAsUser to another user's number"
    )]
    MustNotBeRoot {
        /// The container.
        container: String,
        /// Its user.
        user: String,
    },
}

/// One container of a pod. [`ContainerConfig::new`] gives the defaults.
#[derive(Debug, Clone)]
pub struct ContainerConfig {
    /// Name in the pod.
    pub name: String,
    /// How often it was started before.
    pub attempt: u32,
    /// Its image.
    pub image: Arc<Image>,
    /// Replaces the image's entrypoint (and drops its command) when not empty.
    pub command: Vec<String>,
    /// Replaces the image's command when not empty.
    pub args: Vec<String>,
    /// Added to the image's, later ones winning.
    pub env: Vec<(String, String)>,
    /// Replaces the image's.
    pub working_dir: Option<String>,
    /// Replaces the image's.
    pub user: Option<User>,
    /// Further groups.
    pub supplemental_groups: Vec<u32>,
    /// What becomes of those that the image gives its user.
    pub groups_policy: GroupsPolicy,
    /// Refuse to run as root.
    pub run_as_non_root: bool,
    /// With a terminal.
    pub tty: bool,
    /// With an open standard input.
    pub stdin: bool,
    /// Close standard input when the first client leaves.
    pub stdin_once: bool,
    /// Where volumes, host paths and images appear.
    pub mounts: Vec<VolumeMount>,
    /// Limits.
    pub resources: Resources,
    /// Limits of each process (`ulimit`).
    pub rlimits: Vec<Limit>,
    /// Capabilities added to and dropped from the default ones.
    pub capabilities: CapabilityChange,
    /// `allowPrivilegeEscalation: false`.
    pub no_new_privileges: bool,
    /// `readOnlyRootFilesystem`.
    pub read_only_root: bool,
    /// All capabilities and devices, no seccomp, no masks.
    pub privileged: bool,
    /// Which system calls it may make. A privileged container may make all.
    pub seccomp: Seccomp,
    /// Name of a profile loaded into the host's kernel; `None` and `runtime/default` and `unconfined` for none.
    pub apparmor_profile: Option<String>,
    /// Whose processes it sees.
    pub process_namespace: ProcessNamespace,
    /// Devices of the host.
    pub devices: Vec<DeviceConfig>,
    /// Replaces the list of paths that are hidden.
    pub masked_paths: Option<Vec<String>>,
    /// Replaces the list of paths that cannot be written.
    pub read_only_paths: Option<Vec<String>>,
    /// How soon it is killed when memory runs out, from -1000 (never) to 1000 (first); lowering is best effort.
    pub oom_score_adj: Option<i32>,
    /// Replaces the image's; a number or a name such as `SIGQUIT`.
    pub stop_signal: Option<String>,
    /// Where it logs, below [`crate::pod::PodConfig::log_directory`] unless absolute; a file of the runtime's own choice
    /// when absent.
    pub log_path: Option<PathBuf>,
    /// Where in the container a file is that keeps its last words ([`crate::pod::Pod::termination_message`]).
    pub termination_message: Option<String>,
}

/// A device of the host that a container may use.
pub type DeviceConfig = Device;

impl ContainerConfig {
    /// A container that runs what its image says, with the default restrictions.
    #[must_use]
    pub fn new(name: impl Into<String>, image: Arc<Image>) -> Self {
        Self {
            name: name.into(),
            attempt: 0,
            image,
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            working_dir: None,
            user: None,
            supplemental_groups: Vec::new(),
            groups_policy: GroupsPolicy::default(),
            run_as_non_root: false,
            tty: false,
            stdin: false,
            stdin_once: false,
            mounts: Vec::new(),
            resources: Resources::default(),
            rlimits: Vec::new(),
            capabilities: CapabilityChange::default(),
            no_new_privileges: false,
            read_only_root: false,
            privileged: false,
            seccomp: Seccomp::default(),
            apparmor_profile: None,
            process_namespace: ProcessNamespace::default(),
            devices: Vec::new(),
            masked_paths: None,
            read_only_paths: None,
            oom_score_adj: None,
            stop_signal: None,
            log_path: None,
            termination_message: None,
        }
    }
}

/// `securityContext.capabilities`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CapabilityChange {
    /// Added, with or without `CAP_`; `ALL` for all.
    pub add: Vec<String>,
    /// Dropped likewise.
    pub drop: Vec<String>,
    /// Added likewise, and kept by programs that are not root's.
    pub add_ambient: Vec<String>,
}

impl CapabilityChange {
    /// The capabilities a container gets.
    pub fn resolve(&self, privileged: bool) -> Result<Capabilities, ContainerConfigError> {
        if privileged {
            return Ok(Capabilities::all());
        }
        let add = [self.add.as_slice(), &self.add_ambient].concat();
        Ok(Capabilities::runtime_default().adjusted(&add, &self.drop)?)
    }

    /// Those of them that programs keep that are not root's.
    pub fn resolve_ambient(&self) -> Result<Capabilities, ContainerConfigError> {
        Ok(Capabilities::NONE.adjusted(&self.add_ambient, &[])?)
    }
}

impl ContainerConfig {
    /// The command line: Kubernetes' `command` and `args` over the image's entrypoint and command.
    pub fn command_line(&self) -> Result<Vec<String>, ContainerConfigError> {
        let image = &self.image.config.config;
        let entrypoint = image.entrypoint.clone();
        let default_args = image.cmd.clone();
        let line = match (self.command.is_empty(), self.args.is_empty()) {
            (false, _) => [self.command.clone(), self.args.clone()].concat(),
            (true, false) => [entrypoint, self.args.clone()].concat(),
            (true, true) => [entrypoint, default_args].concat(),
        };
        if line.first().is_none_or(String::is_empty) {
            return Err(ContainerConfigError::NoCommand { image: self.image.reference.clone() });
        }
        Ok(line)
    }

    /// The environment: a `PATH`, `HOME` left to the agent, the host name, the image's, then the pod's.
    #[must_use]
    pub fn environment(&self, hostname: &str) -> Vec<(String, String)> {
        let mut merged: Vec<(String, String)> =
            vec![("PATH".into(), DEFAULT_PATH.into()), ("HOSTNAME".into(), hostname.into())];
        if self.tty {
            merged.push(("TERM".into(), "xterm".into()));
        }
        let pairs = self.image.config.config.env.iter().map(|entry| match entry.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => (entry.clone(), String::new()),
        });
        for (key, value) in pairs.chain(self.env.iter().cloned()) {
            match merged.iter_mut().find(|(known, _)| *known == key) {
                Some(entry) => entry.1 = value,
                None => merged.push((key, value)),
            }
        }
        merged
    }

    /// Who runs it: the pod's choice, else the image's, else root.
    pub fn effective_user(&self) -> Result<User, ContainerConfigError> {
        let user = match (&self.user, self.image.config.config.user.as_str()) {
            (Some(user), _) => user.clone(),
            (None, "") => User::Ids { uid: 0, gid: 0, groups: Vec::new() },
            (None, text) => User::Named(text.to_owned()),
        };
        let refuse = |shown: &str| {
            Err(ContainerConfigError::MustNotBeRoot { container: self.name.clone(), user: shown.to_owned() })
        };
        match &user {
            User::Ids { uid: 0, .. } if self.run_as_non_root => refuse("root"),
            User::Named(name) if self.run_as_non_root => {
                refuse(&format!("{name:?}, whose number only the image knows"))
            }
            _ => Ok(user),
        }
    }

    /// By what it is asked to end: the pod's choice, else the image's, else SIGTERM.
    #[must_use]
    pub fn effective_stop_signal(&self) -> i32 {
        let image = || signal_number(&self.image.config.config.stop_signal);
        self.stop_signal.as_deref().and_then(signal_number).or_else(image).unwrap_or(SIGTERM)
    }

    /// The AppArmor profile that the kernel is asked for. We load none ourselves, so that the default is none.
    #[must_use]
    pub fn effective_apparmor(&self) -> Option<String> {
        let profile = self.apparmor_profile.as_deref()?;
        let profile = profile.strip_prefix("localhost/").unwrap_or(profile);
        let none = matches!(profile, "" | "runtime/default" | "unconfined") || self.privileged;
        (!none).then(|| profile.to_owned())
    }

    /// Where it starts.
    #[must_use]
    pub fn effective_working_dir(&self) -> String {
        let from_image = || Some(self.image.config.config.working_dir.clone());
        let chosen = self.working_dir.clone().or_else(from_image).filter(|dir| !dir.is_empty());
        chosen.unwrap_or_else(|| "/".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::signal_number;

    #[test]
    fn signals_have_many_names() {
        let check = |names: &[&str], expected: Option<i32>| {
            for name in names {
                assert_eq!(signal_number(name), expected, "{name}");
            }
        };
        check(&["9", "KILL", "SIGKILL", "sigkill", " 9 "], Some(9));
        check(&["6", "ABRT", "SIGIOT"], Some(6));
        check(&["CHLD", "CLD"], Some(17));
        check(&["IO", "SIGPOLL"], Some(29));
        check(&["RTMIN", "SIGRTMIN+0", "RTMAX-30"], Some(34));
        check(&["SIGRTMIN+3", "RTMINPLUS3"], Some(37));
        check(&["RTMAX-1", "SIGRTMAXMINUS1"], Some(63));
        check(
            &["", "0", "65", "-1", "SIGFLY", "RTMIN+99", "RTMIN-1", "RTMAX+1", "RTMIN+-1", "RTMIN+", "RTMINPLUS"],
            None,
        );
    }
}
