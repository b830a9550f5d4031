//! From a Pod object to what the runtime makes of it.
//!
//! What this version cannot do yet is refused by name ([`SpecError::Unsupported`]), never quietly left out: a pod that
//! asks for the host's network must not come up in one of its own.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, HostPathVolumeSource, Pod, PodSpec, ResourceRequirements, Volume,
};
use sampan_image::{Image, PullPolicy};
use sampan_kit::quantity::{Quantity, QuantityError};
use sampan_network::{DnsPolicy, DnsSettings, HostAlias, PortMapping, Protocol};
use sampan_runtime::container::{CapabilityChange, ContainerConfig};
use sampan_runtime::pod::PodConfig;
use sampan_runtime::volume::{HostPathKind, VolumeConfig, VolumeMount, VolumeSource};
use sampan_sandbox::{Resources, User};

use crate::lifecycle::{RestartPolicy, Role, Slot};
use crate::limits::PIDS_MAX;

/// Annotation with a symbolic user, `NAME[:GROUP]`, as `sampan run --user` takes it.
pub const USER_ANNOTATION: &str = "sampan.dev/user";

/// Why a pod cannot run on this node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A field that this version does not serve.
    #[error("{field} is not supported by this version; remove it from the pod")]
    Unsupported {
        /// The field's path.
        field: String,
    },
    /// A field with a value that makes no sense.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field's path.
        field: String,
        /// What is wrong and what to do.
        reason: String,
    },
}

fn unsupported(field: impl Into<String>) -> SpecError {
    SpecError::Unsupported { field: field.into() }
}

fn bad_quantity(field: &'static str) -> impl Fn(QuantityError) -> SpecError {
    move |error| SpecError::Invalid { field: field.to_owned(), reason: error.to_string() }
}

/// The pod's restart policy.
#[must_use]
pub fn restart_policy(spec: &PodSpec) -> RestartPolicy {
    match spec.restart_policy.as_deref() {
        Some("Never") => RestartPolicy::Never,
        Some("OnFailure") => RestartPolicy::OnFailure,
        _ => RestartPolicy::Always,
    }
}

/// All containers in the order in which they start, with their parts.
pub fn containers(spec: &PodSpec) -> impl Iterator<Item = (Role, &Container)> {
    let init = spec.init_containers.iter().flatten().map(|container| {
        let role = if container.restart_policy.as_deref() == Some("Always") { Role::Sidecar } else { Role::Init };
        (role, container)
    });
    init.chain(spec.containers.iter().map(|container| (Role::Main, container)))
}

/// Their slots before anything ran.
#[must_use]
pub fn slots(spec: &PodSpec) -> Vec<Slot> {
    containers(spec).map(|(role, container)| Slot::new(&container.name, role)).collect()
}

/// The pod as a whole.
pub fn pod_config(pod: &Pod) -> Result<PodConfig, SpecError> {
    let spec = pod.spec.as_ref().ok_or_else(|| unsupported("a pod without spec"))?;
    refuse_unsupported(spec)?;
    let name = pod.metadata.name.clone().unwrap_or_default();
    let mut ports = Vec::new();
    for container in &spec.containers {
        for port in container.ports.iter().flatten() {
            ports.extend(port_mapping(port)?);
        }
    }
    let security = spec.security_context.clone().unwrap_or_default();
    let sysctls = security.sysctls.iter().flatten().map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()));
    Ok(PodConfig {
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        hostname: spec.hostname.clone().unwrap_or_else(|| name.chars().take(63).collect()),
        name,
        host_users: spec.host_users == Some(true),
        share_process_namespace: spec.share_process_namespace == Some(true),
        resources: pod_resources(spec)?,
        disk_bytes: disk_bytes(spec)?,
        ports,
        dns: dns(spec)?,
        host_aliases: host_aliases(spec)?,
        sysctls: sysctls.collect(),
        volumes: spec.volumes.iter().flatten().map(volume).collect::<Result<_, _>>()?,
    })
}

fn refuse_unsupported(spec: &PodSpec) -> Result<(), SpecError> {
    for (field, is_set) in [
        ("spec.hostNetwork", spec.host_network == Some(true)),
        ("spec.hostPID", spec.host_pid == Some(true)),
        ("spec.hostIPC", spec.host_ipc == Some(true)),
        ("spec.runtimeClassName", spec.runtime_class_name.is_some()),
        ("spec.imagePullSecrets", spec.image_pull_secrets.as_ref().is_some_and(|list| !list.is_empty())),
        ("spec.ephemeralContainers", spec.ephemeral_containers.as_ref().is_some_and(|list| !list.is_empty())),
        ("spec.resourceClaims", spec.resource_claims.as_ref().is_some_and(|list| !list.is_empty())),
    ] {
        if is_set {
            return Err(unsupported(field));
        }
    }
    for (_, container) in containers(spec) {
        let path = |field: &str| format!("container {:?}: {field}", container.name);
        for (field, is_set) in [
            (
                "lifecycle",
                container
                    .lifecycle
                    .as_ref()
                    .is_some_and(|hooks| hooks.post_start.is_some() || hooks.pre_stop.is_some()),
            ),
            ("livenessProbe", container.liveness_probe.is_some()),
            ("readinessProbe", container.readiness_probe.is_some()),
            ("startupProbe", container.startup_probe.is_some()),
            ("volumeDevices", container.volume_devices.as_ref().is_some_and(|list| !list.is_empty())),
        ] {
            if is_set {
                return Err(unsupported(path(field)));
            }
        }
    }
    Ok(())
}

/// The pod's cap: what its containers may take together; unlimited as soon as one of them is.
fn pod_resources(spec: &PodSpec) -> Result<Resources, SpecError> {
    if let Some(own) = &spec.resources {
        return resources(own);
    }
    let mut sum = Resources::default();
    let mut unlimited = (false, false);
    for (role, container) in containers(spec) {
        let one = container.resources.as_ref().map_or(Ok(Resources::default()), resources)?;
        unlimited.0 |= one.cpu_limit_millis.is_none();
        unlimited.1 |= one.memory_limit_bytes.is_none();
        let join = |sum: Option<u64>, one: Option<u64>| match (sum, one) {
            (Some(sum), Some(one)) if role == Role::Init => Some(sum.max(one)),
            (Some(sum), Some(one)) => Some(sum.saturating_add(one)),
            (sum, one) => sum.or(one),
        };
        sum.cpu_request_millis = join(sum.cpu_request_millis, one.cpu_request_millis);
        sum.cpu_limit_millis = join(sum.cpu_limit_millis, one.cpu_limit_millis);
        sum.memory_limit_bytes = join(sum.memory_limit_bytes, one.memory_limit_bytes);
    }
    if unlimited.0 {
        sum.cpu_limit_millis = None;
    }
    if unlimited.1 {
        sum.memory_limit_bytes = None;
    }
    Ok(sum)
}

fn amount(of: Option<&ResourceRequirements>, name: &'static str, limit: bool) -> Result<Option<Quantity>, SpecError> {
    let map = of.and_then(|resources| if limit { resources.limits.as_ref() } else { resources.requests.as_ref() });
    let text = map.and_then(|map| map.get(name));
    text.map(|text| Quantity::parse(&text.0).map_err(bad_quantity(name))).transpose()
}

/// CPU and memory of one container.
pub fn resources(of: &ResourceRequirements) -> Result<Resources, SpecError> {
    let millis = |quantity: Quantity| u64::try_from(quantity.millis()).ok().filter(|millis| *millis > 0);
    let bytes = |quantity: Quantity| u64::try_from(quantity.units()).ok().filter(|bytes| *bytes > 0);
    let cpu_limit = amount(Some(of), "cpu", true)?.and_then(millis);
    Ok(Resources {
        cpu_request_millis: amount(Some(of), "cpu", false)?.and_then(millis).or(cpu_limit),
        cpu_limit_millis: cpu_limit,
        memory_limit_bytes: amount(Some(of), "memory", true)?.and_then(bytes),
        pids_max: None,
    })
}

/// The writable layer: the sum of what the containers are limited to; 0 when none says.
fn disk_bytes(spec: &PodSpec) -> Result<u64, SpecError> {
    let mut sum = 0_u64;
    for (_, container) in containers(spec) {
        let limit = amount(container.resources.as_ref(), "ephemeral-storage", true)?;
        sum = sum.saturating_add(limit.and_then(|limit| u64::try_from(limit.units()).ok()).unwrap_or(0));
    }
    Ok(sum)
}

fn port_mapping(port: &ContainerPort) -> Result<Option<PortMapping>, SpecError> {
    let Some(host_port) = port.host_port.filter(|port| *port != 0) else { return Ok(None) };
    let invalid = |field: &str, reason: &str| SpecError::Invalid { field: field.into(), reason: reason.into() };
    let number = |field: &str, port: i32| {
        u16::try_from(port).ok().filter(|port| *port > 0).ok_or_else(|| invalid(field, "is not a port from 1 to 65535"))
    };
    let protocol = match port.protocol.as_deref() {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some(_) => return Err(unsupported("ports.protocol other than TCP and UDP")),
    };
    let host_ip = match port.host_ip.as_deref().filter(|ip| !ip.is_empty()) {
        Some(ip) => Some(address("ports.hostIP", ip)?),
        None => None,
    };
    let (host_port, container_port) =
        (number("ports.hostPort", host_port)?, number("ports.containerPort", port.container_port)?);
    Ok(Some(PortMapping { host_ip, host_port, container_port, protocol }))
}

fn dns(spec: &PodSpec) -> Result<DnsSettings, SpecError> {
    let config = spec.dns_config.clone().unwrap_or_default();
    let options = config.options.into_iter().flatten().filter_map(|option| Some((option.name?, option.value)));
    let nameservers = config.nameservers.into_iter().flatten();
    Ok(DnsSettings {
        policy: if spec.dns_policy.as_deref() == Some("None") { DnsPolicy::None } else { DnsPolicy::Host },
        nameservers: nameservers
            .map(|server| address("spec.dnsConfig.nameservers", &server))
            .collect::<Result<_, _>>()?,
        searches: config.searches.unwrap_or_default(),
        options: options.collect(),
    })
}

fn address(field: &str, text: &str) -> Result<IpAddr, SpecError> {
    let invalid = || SpecError::Invalid { field: field.into(), reason: format!("{text:?} is not an IP address") };
    text.parse().map_err(|_bad| invalid())
}

fn host_aliases(spec: &PodSpec) -> Result<Vec<HostAlias>, SpecError> {
    let parse = |alias: &k8s_openapi::api::core::v1::HostAlias| {
        let ip = address("spec.hostAliases.ip", &alias.ip)?;
        Ok(HostAlias { ip, hostnames: alias.hostnames.clone().unwrap_or_default() })
    };
    spec.host_aliases.iter().flatten().map(parse).collect()
}

fn volume(volume: &Volume) -> Result<VolumeConfig, SpecError> {
    let source = match (&volume.empty_dir, &volume.host_path) {
        (Some(empty_dir), _) => {
            let limit = empty_dir.size_limit.as_ref();
            let limit = limit.map(|text| Quantity::parse(&text.0).map_err(bad_quantity("emptyDir.sizeLimit")));
            VolumeSource::EmptyDir {
                memory: empty_dir.medium.as_deref() == Some("Memory"),
                size_bytes: limit.transpose()?.and_then(|limit| u64::try_from(limit.units()).ok()),
            }
        }
        (None, Some(host_path)) => host_path_source(host_path)?,
        (None, None) => {
            return Err(unsupported(format!("volume {:?}: a source other than emptyDir and hostPath", volume.name)));
        }
    };
    Ok(VolumeConfig { name: volume.name.clone(), source })
}

fn host_path_source(host_path: &HostPathVolumeSource) -> Result<VolumeSource, SpecError> {
    let kind = match host_path.type_.as_deref().unwrap_or_default() {
        "" => HostPathKind::Unchecked,
        "DirectoryOrCreate" => HostPathKind::DirectoryOrCreate,
        "Directory" => HostPathKind::Directory,
        "FileOrCreate" => HostPathKind::FileOrCreate,
        "File" => HostPathKind::File,
        "Socket" => HostPathKind::Socket,
        other => return Err(unsupported(format!("hostPath.type {other}"))),
    };
    Ok(VolumeSource::HostPath { path: PathBuf::from(&host_path.path), kind })
}

/// When to ask the registry: what the container says, else `Always` for `:latest` as Kubernetes has it.
#[must_use]
pub fn pull_policy(container: &Container) -> PullPolicy {
    match container.image_pull_policy.as_deref() {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        _ => PullPolicy::IfNotPresent,
    }
}

/// One container with its image and environment.
pub fn container_config(
    pod: &Pod,
    container: &Container,
    attempt: u32,
    image: Arc<Image>,
    env: Vec<(String, String)>,
) -> Result<ContainerConfig, SpecError> {
    let pod_security = pod.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let expand = |list: &Option<Vec<String>>| {
        list.iter().flatten().map(|text| crate::environment::expand(text, &env)).collect::<Vec<_>>()
    };
    let capabilities = own.capabilities.clone().unwrap_or_default();
    let seccomp = own.seccomp_profile.as_ref().or(pod_security.seccomp_profile.as_ref());
    let seccomp_type = seccomp.map(|profile| profile.type_.as_str());
    if seccomp_type == Some("Localhost") {
        return Err(unsupported("seccompProfile.type Localhost"));
    }
    Ok(ContainerConfig {
        name: container.name.clone(),
        attempt,
        image,
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone(),
        user: user(pod, own.run_as_user.or(pod_security.run_as_user), own.run_as_group.or(pod_security.run_as_group))?,
        supplemental_groups: supplemental_groups(&pod_security)?,
        run_as_non_root: own.run_as_non_root.or(pod_security.run_as_non_root) == Some(true),
        tty: container.tty == Some(true),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        mounts: container.volume_mounts.iter().flatten().map(volume_mount).collect::<Result<_, _>>()?,
        resources: Resources {
            pids_max: Some(PIDS_MAX),
            ..container.resources.as_ref().map_or(Ok(Resources::default()), resources)?
        },
        capabilities: CapabilityChange {
            add: capabilities.add.unwrap_or_default(),
            drop: capabilities.drop.unwrap_or_default(),
        },
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        read_only_root: own.read_only_root_filesystem == Some(true),
        privileged: own.privileged == Some(true),
        seccomp_unconfined: seccomp_type == Some("Unconfined"),
        env,
    })
}

fn volume_mount(mount: &k8s_openapi::api::core::v1::VolumeMount) -> Result<VolumeMount, SpecError> {
    if mount.sub_path_expr.is_some() {
        return Err(unsupported("volumeMounts.subPathExpr"));
    }
    if mount.mount_propagation.as_deref().is_some_and(|propagation| propagation != "None") {
        return Err(unsupported("volumeMounts.mountPropagation"));
    }
    Ok(VolumeMount {
        volume: mount.name.clone(),
        path: mount.mount_path.clone(),
        sub_path: mount.sub_path.clone(),
        read_only: mount.read_only == Some(true),
    })
}

fn id(field: &str, value: i64) -> Result<u32, SpecError> {
    let invalid =
        || SpecError::Invalid { field: field.into(), reason: "is not an id from 0 to 65535 of the pod's range".into() };
    u32::try_from(value).map_err(|_bad| invalid())
}

fn user(pod: &Pod, uid: Option<i64>, gid: Option<i64>) -> Result<Option<User>, SpecError> {
    let named = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(USER_ANNOTATION));
    match (uid, named) {
        (Some(uid), _) => {
            let gid = gid.map(|gid| id("runAsGroup", gid)).transpose()?;
            Ok(Some(User::Ids { uid: id("runAsUser", uid)?, gid: gid.unwrap_or(0), groups: Vec::new() }))
        }
        (None, Some(name)) => Ok(Some(User::Named(name.clone()))),
        (None, None) => Ok(None),
    }
}

fn supplemental_groups(security: &k8s_openapi::api::core::v1::PodSecurityContext) -> Result<Vec<u32>, SpecError> {
    let groups = security.supplemental_groups.iter().flatten().chain(security.fs_group.as_ref());
    groups.map(|group| id("supplementalGroups", *group)).collect()
}
