//! From a Pod object to what the runtime makes of it.
//!
//! What this version cannot do yet is refused by name ([`SpecError::Unsupported`]), never quietly left out: a pod that
//! asks for the host's network must not come up in one of its own.

mod mounts;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, Pod, PodSpec, Probe, ResourceRequirements, SecurityContext,
};
use sampan_image::{Image, PullPolicy};
use sampan_kit::quantity::{Quantity, QuantityError};
use sampan_network::{Bandwidth, DnsPolicy, DnsSettings, HostAlias, PortMapping, Protocol};
use sampan_runtime::container::{CapabilityChange, ContainerConfig};
use sampan_runtime::pod::PodConfig;
use sampan_sandbox::{GroupsPolicy, HugePages, ProcessNamespace, Resources, Seccomp, User};

use crate::lifecycle::{Hooks, RestartPolicy, Role, Slot};
use crate::limits::PIDS_MAX;
use crate::probe::{Probing, Timing};
pub use mounts::{image_volumes, is_projected};

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

/// All containers in the order in which they start, with their parts; but not the ephemeral ones, which are of another type.
pub fn containers(spec: &PodSpec) -> impl Iterator<Item = (Role, &Container)> {
    let init = spec.init_containers.iter().flatten().map(|container| {
        let role = if container.restart_policy.as_deref() == Some("Always") { Role::Sidecar } else { Role::Init };
        (role, container)
    });
    init.chain(spec.containers.iter().map(|container| (Role::Main, container)))
}

/// The containers that were put into the pod later, as containers.
#[must_use]
pub fn ephemeral_containers(spec: &PodSpec) -> Vec<Container> {
    let convert = |one| serde_json::to_value(one).and_then(serde_json::from_value::<Container>).ok();
    spec.ephemeral_containers.iter().flatten().filter_map(convert).collect()
}

/// One container by its name, whatever its part.
#[must_use]
pub fn find(spec: &PodSpec, name: &str) -> Option<Container> {
    let found = containers(spec).map(|(_, container)| container).find(|container| container.name == name).cloned();
    found.or_else(|| ephemeral_containers(spec).into_iter().find(|container| container.name == name))
}

/// Their slots before anything ran.
#[must_use]
pub fn slots(spec: &PodSpec) -> Vec<Slot> {
    let slots = containers(spec).map(|(role, container)| {
        let hooks = container.lifecycle.as_ref().map_or_else(Hooks::default, |hooks| Hooks {
            post_start: hooks.post_start.is_some(),
            pre_stop: hooks.pre_stop.is_some(),
        });
        Slot::new(&container.name, role).watched(probing(container), hooks)
    });
    slots.chain(ephemeral_slots(spec)).collect()
}

/// The slots of ephemeral containers.
pub fn ephemeral_slots(spec: &PodSpec) -> impl Iterator<Item = Slot> {
    spec.ephemeral_containers.iter().flatten().map(|container| Slot::new(&container.name, Role::Ephemeral))
}

fn probing(container: &Container) -> Probing {
    let timing = |probe: &Probe| {
        let seconds = |value: Option<i32>, least: u64, default: u64| {
            let seconds = value.filter(|value| *value != 0).and_then(|value| u64::try_from(value).ok());
            Duration::from_secs(seconds.unwrap_or(default).max(least))
        };
        let threshold = |value: Option<i32>, default: u32| {
            value.and_then(|value| u32::try_from(value).ok()).unwrap_or(default).max(1)
        };
        Timing {
            initial_delay: seconds(probe.initial_delay_seconds, 0, 0),
            period: seconds(probe.period_seconds, 1, 10),
            success_threshold: threshold(probe.success_threshold, 1),
            failure_threshold: threshold(probe.failure_threshold, 3),
        }
    };
    let timing = |probe: &Option<Probe>| probe.as_ref().map(timing);
    Probing::new(
        timing(&container.startup_probe),
        timing(&container.liveness_probe),
        timing(&container.readiness_probe),
    )
}

/// The pod as a whole.
pub fn pod_config(pod: &Pod) -> Result<PodConfig, SpecError> {
    let spec = pod.spec.as_ref().ok_or_else(|| unsupported("a pod without spec"))?;
    refuse_unsupported(spec)?;
    let name = pod.metadata.name.clone().unwrap_or_default();
    let mut ports = Vec::new();
    let host_network = spec.host_network == Some(true);
    // A pod in the host's network has its ports already.
    for container in spec.containers.iter().filter(|_| !host_network) {
        for port in container.ports.iter().flatten() {
            ports.extend(port_mapping(port)?);
        }
    }
    let security = spec.security_context.clone().unwrap_or_default();
    let sysctls = security.sysctls.iter().flatten().map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()));
    Ok(PodConfig {
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        hostname: match &spec.hostname {
            _ if host_network => String::new(),
            Some(hostname) => hostname.clone(),
            None => name.chars().take(63).collect(),
        },
        name,
        host_users: spec.host_users == Some(true),
        host_network,
        host_pid: spec.host_pid == Some(true),
        host_ipc: spec.host_ipc == Some(true),
        share_process_namespace: spec.share_process_namespace == Some(true),
        resources: pod_resources(spec)?,
        disk_bytes: disk_bytes(spec)?,
        ports,
        bandwidth: bandwidth(pod)?,
        dns: dns(spec)?,
        host_aliases: host_aliases(spec)?,
        sysctls: sysctls.collect(),
        volumes: mounts::volumes(spec)?,
        ..PodConfig::default()
    })
}

/// What the pod's annotations say of its network's speed.
fn bandwidth(pod: &Pod) -> Result<Bandwidth, SpecError> {
    let annotations = pod.metadata.annotations.as_ref();
    let read = Bandwidth::from_annotations(|name| Some(annotations?.get(name)?.as_str()));
    read.map_err(|error| SpecError::Invalid {
        field: format!("metadata.annotations[{}]", error.annotation),
        reason: error.to_string(),
    })
}

fn refuse_unsupported(spec: &PodSpec) -> Result<(), SpecError> {
    for (field, is_set) in [
        ("spec.runtimeClassName", spec.runtime_class_name.is_some()),
        ("spec.resourceClaims", spec.resource_claims.as_ref().is_some_and(|list| !list.is_empty())),
    ] {
        if is_set {
            return Err(unsupported(field));
        }
    }
    for (role, container) in containers(spec) {
        let path = |field: &str| format!("container {:?}: {field}", container.name);
        if container.restart_policy.is_some() && role != Role::Sidecar {
            return Err(unsupported(path("restartPolicy")));
        }
        let from_file = |variable: &k8s_openapi::api::core::v1::EnvVar| {
            variable.value_from.as_ref().is_some_and(|source| source.file_key_ref.is_some())
        };
        if container.env.iter().flatten().any(from_file) {
            return Err(unsupported(path("env.valueFrom.fileKeyRef")));
        }
    }
    Ok(())
}

/// The pod's cap: what its containers may take together; unlimited as soon as one of them is.
pub fn pod_resources(spec: &PodSpec) -> Result<Resources, SpecError> {
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
    let huge = of.limits.iter().flatten().filter_map(|(name, amount)| Some((name.strip_prefix("hugepages-")?, amount)));
    let huge = huge.map(|(size, amount)| {
        let bytes = Quantity::parse(&amount.0).map_err(bad_quantity("hugepages"))?;
        // The kernel's files say MB and mean Mi.
        Ok(HugePages { page_size: size.replace('i', "B"), bytes: u64::try_from(bytes.units()).unwrap_or(0) })
    });
    Ok(Resources {
        cpu_request_millis: amount(Some(of), "cpu", false)?.and_then(millis).or(cpu_limit),
        cpu_limit_millis: cpu_limit,
        memory_limit_bytes: amount(Some(of), "memory", true)?.and_then(bytes),
        huge_pages: huge.collect::<Result<_, SpecError>>()?,
        ..Resources::default()
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

/// When to ask the registry: what the container says, else `Always` for `:latest` as Kubernetes has it.
#[must_use]
pub fn pull_policy(container: &Container) -> PullPolicy {
    match container.image_pull_policy.as_deref() {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        _ => PullPolicy::IfNotPresent,
    }
}

/// What a container is made of beside its spec.
#[derive(Debug, Clone)]
pub struct Materials<'dir> {
    /// Its image.
    pub image: Arc<Image>,
    /// Its environment.
    pub env: Vec<(String, String)>,
    /// Where the pod's projected volumes are written.
    pub projected: &'dir Path,
    /// The images of its image volumes, by volume.
    pub images: BTreeMap<String, Arc<Image>>,
    /// Its seccomp profile, where it names one of the node's.
    pub seccomp: Option<Vec<u8>>,
}

/// One container with its image and environment.
pub fn container_config(
    pod: &Pod,
    container: &Container,
    attempt: u32,
    materials: Materials<'_>,
) -> Result<ContainerConfig, SpecError> {
    let spec = pod.spec.clone().unwrap_or_default();
    let pod_security = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let env = &materials.env;
    let expand = |list: &Option<Vec<String>>| {
        list.iter().flatten().map(|text| crate::environment::expand(text, env)).collect::<Vec<_>>()
    };
    let capabilities = own.capabilities.clone().unwrap_or_default();
    let is_unmasked = own.proc_mount.as_deref() == Some("Unmasked");
    Ok(ContainerConfig {
        attempt,
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone(),
        user: user(pod, own.run_as_user.or(pod_security.run_as_user), own.run_as_group.or(pod_security.run_as_group))?,
        supplemental_groups: supplemental_groups(&pod_security)?,
        groups_policy: match pod_security.supplemental_groups_policy.as_deref() {
            Some("Strict") => GroupsPolicy::Strict,
            _ => GroupsPolicy::Merge,
        },
        run_as_non_root: own.run_as_non_root.or(pod_security.run_as_non_root) == Some(true),
        tty: container.tty == Some(true),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        mounts: mounts::container_mounts(&spec, container, &materials)?,
        devices: mounts::devices(&spec, container)?,
        resources: Resources {
            pids_max: Some(PIDS_MAX),
            ..container.resources.as_ref().map_or(Ok(Resources::default()), resources)?
        },
        capabilities: CapabilityChange {
            add: capabilities.add.unwrap_or_default(),
            drop: capabilities.drop.unwrap_or_default(),
            ..CapabilityChange::default()
        },
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        read_only_root: own.read_only_root_filesystem == Some(true),
        privileged: own.privileged == Some(true),
        seccomp: seccomp(pod, container, materials.seccomp)?,
        apparmor_profile: apparmor(&own, &pod_security),
        process_namespace: process_namespace(&spec, &container.name),
        masked_paths: is_unmasked.then(Vec::new),
        read_only_paths: is_unmasked.then(Vec::new),
        termination_message: container.termination_message_path.clone().filter(|path| path.starts_with('/')),
        stop_signal: container.lifecycle.as_ref().and_then(|hooks| hooks.stop_signal.clone()),
        env: materials.env,
        ..ContainerConfig::new(&container.name, materials.image)
    })
}

/// The file of a container's seccomp profile below the node's folder of them, where it names one.
pub fn seccomp_profile<'pod>(pod: &'pod Pod, container: &'pod Container) -> Result<Option<&'pod str>, SpecError> {
    let own = container.security_context.as_ref().and_then(|security| security.seccomp_profile.as_ref());
    let pods = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()?.seccomp_profile.as_ref());
    let Some(profile) = own.or(pods).filter(|profile| profile.type_ == "Localhost") else { return Ok(None) };
    let path = profile.localhost_profile.as_deref().unwrap_or_default();
    let is_below = !path.is_empty() && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    let refuse = || SpecError::Invalid {
        field: "seccompProfile.localhostProfile".to_owned(),
        reason: format!("{path:?} is no path below the node's folder of profiles; name one without .."),
    };
    if is_below { Ok(Some(path)) } else { Err(refuse()) }
}

fn seccomp(pod: &Pod, container: &Container, profile: Option<Vec<u8>>) -> Result<Seccomp, SpecError> {
    if seccomp_profile(pod, container)?.is_some() {
        return Ok(Seccomp::Localhost(profile.unwrap_or_default()));
    }
    let own = container.security_context.as_ref().and_then(|security| security.seccomp_profile.as_ref());
    let pods = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()?.seccomp_profile.as_ref());
    let is_unconfined = own.or(pods).is_some_and(|profile| profile.type_ == "Unconfined");
    Ok(if is_unconfined { Seccomp::Unconfined } else { Seccomp::RuntimeDefault })
}

fn apparmor(own: &SecurityContext, pods: &k8s_openapi::api::core::v1::PodSecurityContext) -> Option<String> {
    let profile = own.app_armor_profile.as_ref().or(pods.app_armor_profile.as_ref())?;
    match profile.type_.as_str() {
        "Localhost" => profile.localhost_profile.clone(),
        "Unconfined" => Some("unconfined".to_owned()),
        _ => None,
    }
}

fn process_namespace(spec: &PodSpec, container: &str) -> ProcessNamespace {
    let ephemeral = spec.ephemeral_containers.iter().flatten().find(|one| one.name == container);
    match ephemeral.and_then(|one| one.target_container_name.clone()).filter(|name| !name.is_empty()) {
        _ if spec.host_pid == Some(true) => ProcessNamespace::Node,
        _ if spec.share_process_namespace == Some(true) => ProcessNamespace::Pod,
        Some(target) => ProcessNamespace::Target(target),
        None => ProcessNamespace::Own,
    }
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
