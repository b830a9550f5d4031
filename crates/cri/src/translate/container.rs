//! Containers.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use sampan_image::Image;
use sampan_runtime::container::{CapabilityChange, ContainerConfig, DeviceConfig, signal_number};
use sampan_runtime::volume::{MountOrigin, Ownership, Propagation, VolumeMount};
use sampan_sandbox::{GroupsPolicy, ProcessNamespace, Seccomp, User};

use super::{id_maps, resources};
use crate::error::CallError;
use crate::limits::SECCOMP_PROFILE_BYTES_MAX;
use crate::proto::v1::security_profile::ProfileType;
use crate::proto::v1::{
    self, LinuxContainerResources, LinuxContainerSecurityContext, MountPropagation, NamespaceMode,
    SupplementalGroupsPolicy,
};
use crate::records::ContainerRecord;

/// What a container is made from.
pub(crate) struct Sources<'a> {
    /// Its id.
    pub(crate) id: &'a str,
    pub(crate) config: &'a v1::ContainerConfig,
    pub(crate) pod: &'a v1::PodSandboxConfig,
    /// As they are now.
    pub(crate) resources: &'a LinuxContainerResources,
    pub(crate) image: Arc<Image>,
    /// The images of its image volumes, by what the request calls them.
    pub(crate) volumes: &'a HashMap<String, Arc<Image>>,
}

/// A container as the runtime starts it.
pub(crate) fn container_config(sources: &Sources<'_>) -> Result<ContainerConfig, CallError> {
    let config = sources.config;
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.clone().unwrap_or_default();
    let mut made = ContainerConfig::new(ContainerRecord::run_name(sources.id), Arc::clone(&sources.image));
    made.command.clone_from(&config.command);
    made.args.clone_from(&config.args);
    made.env = config.envs.iter().map(|one| (one.key.clone(), one.value.clone())).collect();
    made.working_dir = Some(config.working_dir.clone()).filter(|directory| !directory.is_empty());
    made.user = user(&security)?;
    made.supplemental_groups =
        security.supplemental_groups.iter().map(|group| id("supplemental_groups", *group)).collect::<Result<_, _>>()?;
    made.groups_policy = match security.supplemental_groups_policy() {
        SupplementalGroupsPolicy::Merge => GroupsPolicy::Merge,
        SupplementalGroupsPolicy::Strict => GroupsPolicy::Strict,
    };
    (made.tty, made.stdin, made.stdin_once) = (config.tty, config.stdin, config.stdin_once);
    made.mounts = config.mounts.iter().map(|mount| volume_mount(mount, sources)).collect::<Result<_, _>>()?;
    made.resources = resources(sources.resources)?;
    let capabilities = security.capabilities.clone().unwrap_or_default();
    made.capabilities = CapabilityChange {
        add: capabilities.add_capabilities,
        drop: capabilities.drop_capabilities,
        add_ambient: capabilities.add_ambient_capabilities,
    };
    made.no_new_privileges = security.no_new_privs;
    made.read_only_root = security.readonly_rootfs;
    made.privileged = security.privileged;
    made.seccomp = seccomp(&security)?;
    made.apparmor_profile = apparmor(&security);
    made.process_namespace = process_namespace(&security)?;
    made.devices = config.devices.iter().map(device).collect();
    (made.masked_paths, made.read_only_paths) = covered_paths(&security, has_own_users(sources.pod));
    made.oom_score_adj =
        i32::try_from(sources.resources.oom_score_adj).ok().map(|adjustment| adjustment.clamp(-1000, 1000));
    made.stop_signal = stop_signal(config)?;
    made.log_path = log_path(sources);
    Ok(made)
}

/// Where it logs; nowhere that anybody else reads when the request does not say.
fn log_path(sources: &Sources<'_>) -> Option<PathBuf> {
    let is_told = !sources.config.log_path.is_empty() && !sources.pod.log_directory.is_empty();
    is_told.then(|| PathBuf::from(&sources.pod.log_directory).join(&sources.config.log_path))
}

fn stop_signal(config: &v1::ContainerConfig) -> Result<Option<String>, CallError> {
    if config.stop_signal() == v1::Signal::RuntimeDefault {
        return Ok(None);
    }
    let name = config.stop_signal().as_str_name();
    let number = signal_number(name).ok_or_else(|| CallError::Invalid(format!("stop_signal: {name} is not known")))?;
    Ok(Some(number.to_string()))
}

fn id(field: &str, value: i64) -> Result<u32, CallError> {
    u32::try_from(value).map_err(|_out_of_range| CallError::Invalid(format!("{field}: {value} is no id")))
}

/// A number alone is looked up in the image like a name: its user's groups count there.
fn user(security: &LinuxContainerSecurityContext) -> Result<Option<User>, CallError> {
    let name = match (&security.run_as_user, security.run_as_username.as_str()) {
        (Some(number), _) => id("run_as_user", number.value)?.to_string(),
        (None, "") if security.run_as_group.is_some() => {
            return Err(CallError::Invalid("run_as_group: is set without a user; set run_as_user too".to_owned()));
        }
        (None, "") => return Ok(None),
        (None, name) => name.to_owned(),
    };
    Ok(Some(User::Named(match &security.run_as_group {
        Some(group) => format!("{name}:{}", id("run_as_group", group.value)?),
        None => name,
    })))
}

fn has_own_users(pod: &v1::PodSandboxConfig) -> bool {
    let options = pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let users = options.and_then(|security| security.namespace_options.as_ref()?.userns_options.as_ref());
    users.is_some_and(|users| users.mode() == NamespaceMode::Pod)
}

fn volume_mount(mount: &v1::Mount, sources: &Sources<'_>) -> Result<VolumeMount, CallError> {
    let invalid = |why: &str| CallError::Invalid(format!("mount {}: {why}", mount.container_path));
    if !mount.container_path.starts_with('/') {
        return Err(invalid("container_path is not absolute"));
    }
    let propagation = match mount.propagation() {
        MountPropagation::PropagationPrivate => Propagation::Private,
        MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    };
    if mount.recursive_read_only && (!mount.readonly || propagation != Propagation::Private) {
        return Err(invalid("recursive_read_only goes only with readonly and private propagation"));
    }
    let origin = match mount.image.as_ref().filter(|image| !image.image.is_empty()) {
        Some(image) => {
            let found = sources.volumes.get(&image.image);
            MountOrigin::Image(Arc::clone(found.ok_or_else(|| invalid("its image is not on this machine"))?))
        }
        None if mount.host_path.is_empty() => return Err(invalid("host_path is empty")),
        None => MountOrigin::Host { path: PathBuf::from(&mount.host_path), create: true },
    };
    let uids = id_maps("uidMappings", &mount.uid_mappings)?;
    let gids = id_maps("gidMappings", &mount.gid_mappings)?;
    let ownership = match (uids, gids) {
        (Some(uids), Some(gids)) => Ownership::Mapped { uids, gids },
        (None, None) if matches!(origin, MountOrigin::Image(_)) => Ownership::PodWherePossible,
        (None, None) => Ownership::Host,
        _ => return Err(invalid("users and groups have to be mapped both, or neither")),
    };
    Ok(VolumeMount {
        sub_path: Some(mount.image_sub_path.clone()).filter(|path| !path.is_empty()),
        read_only: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        propagation,
        ownership,
        ..VolumeMount::new(origin, mount.container_path.clone())
    })
}

fn device(device: &v1::Device) -> DeviceConfig {
    let or = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
    DeviceConfig {
        host_path: PathBuf::from(&device.host_path),
        container_path: or(&device.container_path, &device.host_path),
        permissions: or(&device.permissions, "rwm"),
    }
}

/// No profile means none, as the kubelet's callers expect.
fn seccomp(security: &LinuxContainerSecurityContext) -> Result<Seccomp, CallError> {
    let old = deprecated(security);
    let (kind, reference) = match &security.seccomp {
        Some(profile) => (profile.profile_type(), profile.localhost_ref.clone()),
        None => match old {
            "" | "unconfined" => (ProfileType::Unconfined, String::new()),
            "runtime/default" | "docker/default" => (ProfileType::RuntimeDefault, String::new()),
            path => match path.strip_prefix("localhost/") {
                Some(file) => (ProfileType::Localhost, file.to_owned()),
                None => {
                    return Err(CallError::Invalid(format!("seccomp_profile_path: {path:?} is no profile's name")));
                }
            },
        },
    };
    match kind {
        ProfileType::RuntimeDefault => Ok(Seccomp::RuntimeDefault),
        ProfileType::Unconfined => Ok(Seccomp::Unconfined),
        ProfileType::Localhost if security.privileged => Ok(Seccomp::Unconfined),
        ProfileType::Localhost => read_profile(&reference).map(Seccomp::Localhost),
    }
}

#[allow(deprecated, reason = "older kubelets still say it here")]
fn deprecated(security: &LinuxContainerSecurityContext) -> &str {
    &security.seccomp_profile_path
}

fn read_profile(path: &str) -> Result<Vec<u8>, CallError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(SECCOMP_PROFILE_BYTES_MAX).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(bytes),
        Err(error) => Err(CallError::Invalid(format!("the seccomp profile {path:?} cannot be read: {error}"))),
    }
}

/// A named profile; the default and none are left to the runtime.
#[allow(deprecated, reason = "older kubelets still say it here")]
fn apparmor(security: &LinuxContainerSecurityContext) -> Option<String> {
    let named = |name: &str| Some(name.strip_prefix("localhost/").unwrap_or(name).to_owned());
    match security.apparmor.as_ref().map(|profile| (profile.profile_type(), &profile.localhost_ref)) {
        Some((ProfileType::RuntimeDefault, _)) => None,
        Some((ProfileType::Unconfined, _)) => named("unconfined"),
        Some((ProfileType::Localhost, name)) => named(name),
        None => match security.apparmor_profile.as_str() {
            "" | "runtime/default" => None,
            name => named(name),
        },
    }
}

fn process_namespace(security: &LinuxContainerSecurityContext) -> Result<ProcessNamespace, CallError> {
    let Some(options) = &security.namespace_options else { return Ok(ProcessNamespace::Own) };
    match options.pid() {
        NamespaceMode::Pod => Ok(ProcessNamespace::Pod),
        NamespaceMode::Container => Ok(ProcessNamespace::Own),
        NamespaceMode::Node => Ok(ProcessNamespace::Node),
        NamespaceMode::Target if options.target_id.is_empty() => {
            Err(CallError::Invalid("namespace_options.target_id: is empty; name a running container".to_owned()))
        }
        NamespaceMode::Target => Ok(ProcessNamespace::Target(ContainerRecord::run_name(&options.target_id).to_owned())),
    }
}

/// Two lists of paths, where they replace the default ones.
type CoveredPaths = (Option<Vec<String>>, Option<Vec<String>>);

/// An empty list is the same on the wire as none. Only pods with users of their own may have nothing covered
/// (`procMount: Unmasked`), and there nothing needs to be.
fn covered_paths(security: &LinuxContainerSecurityContext, own_users: bool) -> CoveredPaths {
    let (masked, read_only) = (&security.masked_paths, &security.readonly_paths);
    if masked.is_empty() && read_only.is_empty() {
        return if own_users { (Some(Vec::new()), Some(Vec::new())) } else { (None, None) };
    }
    let told = |list: &Vec<String>| Some(list.clone()).filter(|list| !list.is_empty());
    (told(masked), told(read_only))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::{Int64Value, SecurityProfile};

    fn named(user: Option<User>) -> String {
        match user {
            Some(User::Named(name)) => name,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_group_needs_a_user() {
        let value = |value| Some(Int64Value { value });
        let security = |user, name: &str, group| LinuxContainerSecurityContext {
            run_as_user: user,
            run_as_username: name.to_owned(),
            run_as_group: group,
            ..Default::default()
        };
        assert_eq!(named(user(&security(value(7), "", value(9))).unwrap()), "7:9");
        assert_eq!(named(user(&security(None, "www", value(9))).unwrap()), "www:9");
        assert_eq!(named(user(&security(value(7), "", None)).unwrap()), "7");
        assert_eq!(user(&security(None, "", None)).unwrap(), None);
        assert!(user(&security(None, "", value(9))).is_err());
        assert!(user(&security(value(-1), "", None)).is_err());
    }

    #[test]
    fn no_profile_is_unconfined_and_an_unknown_one_is_refused() {
        let check = |profile: Option<SecurityProfile>| {
            seccomp(&LinuxContainerSecurityContext { seccomp: profile, ..Default::default() })
        };
        assert_eq!(check(None).unwrap(), Seccomp::Unconfined);
        assert_eq!(check(Some(SecurityProfile::default())).unwrap(), Seccomp::RuntimeDefault);
        let missing = SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: "/nonexistent/profile.json".to_owned(),
        };
        assert!(check(Some(missing)).is_err());
    }

    #[test]
    fn paths_stay_covered_unless_they_are_named() {
        let none = LinuxContainerSecurityContext::default();
        assert_eq!(covered_paths(&none, false), (None, None));
        assert_eq!(covered_paths(&none, true), (Some(vec![]), Some(vec![])));
        let masked = LinuxContainerSecurityContext { masked_paths: vec!["/bin".to_owned()], ..Default::default() };
        assert_eq!(covered_paths(&masked, true), (Some(vec!["/bin".to_owned()]), None));
    }
}
