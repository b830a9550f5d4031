//! From what a pod and an image say about a container to what the sandbox is told to start.
//!
//! Pure but for the descriptors that pass through. Sources: OCI image configuration ("Conversion to runtime
//! configuration"), and Kubernetes' rules for `command`, `args` and capabilities.

use std::sync::Arc;

use sampan_image::Image;
use sampan_sandbox::{Capabilities, Resources, UnknownCapability, User};

use crate::volume::VolumeMount;

/// `PATH` of a container whose image sets none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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

/// One container of a pod.
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
    /// Refuse to run as root.
    pub run_as_non_root: bool,
    /// With a terminal.
    pub tty: bool,
    /// With an open standard input.
    pub stdin: bool,
    /// Close standard input when the first client leaves.
    pub stdin_once: bool,
    /// Where volumes appear.
    pub mounts: Vec<VolumeMount>,
    /// Limits.
    pub resources: Resources,
    /// Capabilities added to and dropped from the default ones.
    pub capabilities: CapabilityChange,
    /// `allowPrivilegeEscalation: false`.
    pub no_new_privileges: bool,
    /// `readOnlyRootFilesystem`.
    pub read_only_root: bool,
    /// All capabilities of the pod's user namespace, no seccomp, no masks.
    pub privileged: bool,
    /// `seccompProfile: Unconfined`.
    pub seccomp_unconfined: bool,
}

/// `securityContext.capabilities`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CapabilityChange {
    /// Added, with or without `CAP_`; `ALL` for all.
    pub add: Vec<String>,
    /// Dropped likewise.
    pub drop: Vec<String>,
}

impl CapabilityChange {
    /// The capabilities a container gets.
    pub fn resolve(&self, privileged: bool) -> Result<Capabilities, ContainerConfigError> {
        if privileged {
            return Ok(Capabilities::all());
        }
        Ok(Capabilities::runtime_default().adjusted(&self.add, &self.drop)?)
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

    /// Where it starts.
    #[must_use]
    pub fn effective_working_dir(&self) -> String {
        let from_image = || Some(self.image.config.config.working_dir.clone());
        let chosen = self.working_dir.clone().or_else(from_image).filter(|dir| !dir.is_empty());
        chosen.unwrap_or_else(|| "/".to_owned())
    }
}
