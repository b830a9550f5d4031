//! Pods.

use std::net::IpAddr;

use sampan_network::{Bandwidth, DnsPolicy, DnsSettings, PortMapping, Protocol};
use sampan_runtime::journal::CRI_UID_PREFIX;
use sampan_runtime::pod::PodConfig;
use sampan_sandbox::Resources;

use super::{id_maps, resources};
use crate::error::CallError;
use crate::proto::v1::{self, DnsConfig, LinuxSandboxSecurityContext, NamespaceMode, PodSandboxConfig};

/// How the runtime's journal names a pod sandbox.
pub(crate) fn pod_uid(id: &str) -> String {
    format!("{CRI_UID_PREFIX}{id}")
}

/// A pod as the runtime makes it.
pub(crate) fn pod_config(id: &str, config: &PodSandboxConfig) -> Result<PodConfig, CallError> {
    let metadata = config.metadata.clone().unwrap_or_default();
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.clone().unwrap_or_default();
    let namespaces = security.namespace_options.clone().unwrap_or_default();
    let shares = |mode: i32| mode == i32::from(NamespaceMode::Node);
    let users = users(&security)?;
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let mut made = PodConfig {
        uid: pod_uid(id),
        namespace: metadata.namespace,
        name: metadata.name,
        hostname: if config.hostname.is_empty() { host_name() } else { config.hostname.clone() },
        host_users: users.host,
        host_network: shares(namespaces.network),
        host_pid: shares(namespaces.pid),
        host_ipc: shares(namespaces.ipc),
        uid_mappings: users.uids,
        gid_mappings: users.gids,
        cgroup_parent: text(&linux.cgroup_parent),
        log_directory: text(&config.log_directory).map(Into::into),
        // Asked for by name only; a request that says nothing of namespaces has not thought of it.
        share_process_namespace: security
            .namespace_options
            .as_ref()
            .is_some_and(|options| options.pid() == NamespaceMode::Pod),
        ports: ports(&config.port_mappings)?,
        bandwidth: Bandwidth::from_annotations(|name| config.annotations.get(name).map(String::as_str))
            .map_err(|error| CallError::Invalid(error.to_string()))?,
        dns: dns(config.dns_config.as_ref())?,
        sysctls: linux.sysctls.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        ..PodConfig::default()
    };
    made.sysctls.sort();
    made.resources = apply_sandbox_resources(config)?;
    Ok(made)
}

/// The cap of a pod. Who names a parent group has made that group and limits it; we limit where nobody does.
pub(crate) fn apply_sandbox_resources(config: &PodSandboxConfig) -> Result<Resources, CallError> {
    let linux = config.linux.clone().unwrap_or_default();
    match &linux.resources {
        Some(wanted) if linux.cgroup_parent.is_empty() => resources(wanted),
        _ => Ok(Resources::default()),
    }
}

struct Users {
    host: bool,
    uids: Option<Vec<sampan_sandbox::IdMap>>,
    gids: Option<Vec<sampan_sandbox::IdMap>>,
}

/// Whose users a pod's users are: the host's unless it is asked otherwise, as the interface has it.
fn users(security: &LinuxSandboxSecurityContext) -> Result<Users, CallError> {
    let options = security.namespace_options.as_ref().and_then(|options| options.userns_options.as_ref());
    let Some(options) = options else { return Ok(Users { host: true, uids: None, gids: None }) };
    let uids = id_maps("userns_options.uids", &options.uids)?;
    let gids = id_maps("userns_options.gids", &options.gids)?;
    match options.mode() {
        NamespaceMode::Node => Ok(Users { host: true, uids: None, gids: None }),
        NamespaceMode::Pod if uids.is_some() != gids.is_some() => {
            Err(CallError::Invalid("userns_options: users and groups have to be mapped both, or neither".to_owned()))
        }
        NamespaceMode::Pod => Ok(Users { host: false, uids, gids }),
        mode => Err(CallError::Invalid(format!(
            "userns_options.mode: {} is not possible for users; choose POD or NODE",
            mode.as_str_name()
        ))),
    }
}

fn ports(wanted: &[v1::PortMapping]) -> Result<Vec<PortMapping>, CallError> {
    let published = wanted.iter().filter(|mapping| mapping.host_port > 0);
    published
        .map(|mapping| {
            let invalid = |what: &str| CallError::Invalid(format!("port mapping {mapping:?}: {what}"));
            let number = |port: i32| u16::try_from(port).ok().filter(|port| *port > 0);
            let host_ip = match mapping.host_ip.as_str() {
                "" => None,
                text => Some(text.parse::<IpAddr>().map_err(|_error| invalid("host_ip is not an address"))?),
            };
            Ok(PortMapping {
                host_ip: host_ip.filter(|address| !address.is_unspecified()),
                host_port: number(mapping.host_port).ok_or_else(|| invalid("host_port is not a port"))?,
                container_port: number(mapping.container_port)
                    .ok_or_else(|| invalid("container_port is not a port"))?,
                protocol: match mapping.protocol() {
                    v1::Protocol::Tcp => Protocol::Tcp,
                    v1::Protocol::Udp => Protocol::Udp,
                    v1::Protocol::Sctp => return Err(invalid("SCTP cannot be published on the host")),
                },
            })
        })
        .collect()
}

/// The kubelet says everything; a request that says nothing gets the host's.
fn dns(config: Option<&DnsConfig>) -> Result<DnsSettings, CallError> {
    let Some(config) = config else { return Ok(DnsSettings::default()) };
    if config.servers.is_empty() && config.searches.is_empty() && config.options.is_empty() {
        return Ok(DnsSettings::default());
    }
    let server = |text: &String| {
        text.parse().map_err(|_error| CallError::Invalid(format!("dns_config.servers: {text:?} is not an address")))
    };
    let option = |text: &String| match text.split_once(':') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (text.clone(), None),
    };
    Ok(DnsSettings {
        policy: DnsPolicy::None,
        nameservers: config.servers.iter().map(server).collect::<Result<_, _>>()?,
        searches: config.searches.clone(),
        options: config.options.iter().map(option).collect(),
    })
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::{IdMapping, LinuxPodSandboxConfig, NamespaceOption, PodSandboxMetadata, UserNamespace};

    fn with(options: NamespaceOption) -> PodSandboxConfig {
        let security = LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata { name: "web".to_owned(), ..Default::default() }),
            linux: Some(LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() }),
            ..Default::default()
        }
    }

    fn mapped(uids: &[(u32, u32, u32)], mode: NamespaceMode) -> Result<PodConfig, CallError> {
        let maps: Vec<IdMapping> = uids
            .iter()
            .map(|(container_id, host_id, length)| IdMapping {
                container_id: *container_id,
                host_id: *host_id,
                length: *length,
            })
            .collect();
        let users = UserNamespace { mode: mode.into(), uids: maps.clone(), gids: maps };
        pod_config("1", &with(NamespaceOption { userns_options: Some(users), ..Default::default() }))
    }

    #[test]
    fn users_are_the_hosts_unless_mapped_whole() {
        assert!(pod_config("1", &with(NamespaceOption::default())).unwrap().host_users);
        let made = mapped(&[(0, 1000, 65536)], NamespaceMode::Pod).unwrap();
        assert!(!made.host_users && made.uid_mappings.is_some());
        assert!(!mapped(&[], NamespaceMode::Pod).unwrap().host_users);
        assert!(mapped(&[(0, 1000, 10), (10, 5000, 10)], NamespaceMode::Pod).is_err());
        assert!(mapped(&[(1, 1000, 10)], NamespaceMode::Pod).is_err());
        assert!(mapped(&[(0, 1000, 10)], NamespaceMode::Container).is_err());
        assert!(mapped(&[(0, 1000, 10)], NamespaceMode::Target).is_err());
    }

    #[test]
    fn processes_are_shared_only_when_asked() {
        assert!(!pod_config("1", &PodSandboxConfig::default()).unwrap().share_process_namespace);
        let shared = pod_config("1", &with(NamespaceOption::default())).unwrap();
        assert!(shared.share_process_namespace && !shared.host_pid);
        let own = NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() };
        assert!(!pod_config("1", &with(own)).unwrap().share_process_namespace);
        let host = NamespaceOption { pid: NamespaceMode::Node.into(), ..Default::default() };
        assert!(pod_config("1", &with(host)).unwrap().host_pid);
    }

    #[test]
    fn ports_without_a_host_port_are_not_published() {
        let mut config = PodSandboxConfig::default();
        config.port_mappings.push(v1::PortMapping { container_port: 80, ..Default::default() });
        assert_eq!(pod_config("1", &config).unwrap().ports, []);
        config.port_mappings.push(v1::PortMapping { container_port: 80, host_port: 70_000, ..Default::default() });
        assert!(pod_config("1", &config).is_err());
    }
}
