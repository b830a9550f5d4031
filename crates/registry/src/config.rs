//! What an operator may set: insecure registries, mirrors, proxies, where credentials and CAs lie, and the pace of transfers.

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;
use std::time::Duration;

use crate::limits;

/// Everything that a [`crate::RegistryClient`] is told once.
#[derive(Debug, Clone)]
pub struct RegistryConfig {
    /// Registries (`host` or `host:port`, as references name them) that may use plain HTTP or a certificate that nobody
    /// vouches for. Loopback hosts always may.
    pub insecure: Vec<String>,
    /// Per registry, other hosts that are asked first; the registry itself is asked last.
    pub mirrors: BTreeMap<String, Vec<String>>,
    pub proxies: Proxies,
    /// Files with logins, in the order in which they are searched.
    pub auth_files: Vec<PathBuf>,
    /// Directories with one subdirectory per registry, whose `*.crt` files are trusted for it.
    pub certificate_directories: Vec<PathBuf>,
    pub transfer: TransferConfig,
}

/// Proxies by the scheme of the request, as the usual environment variables give them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    pub http: Option<String>,
    pub https: Option<String>,
    /// Comma-separated hosts, domains, addresses and networks that are reached directly. Loopback always is.
    pub exceptions: Option<String>,
}

/// Pace and patience of transfers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferConfig {
    pub part_bytes: u64,
    pub parts_in_flight: usize,
    pub connect_timeout: Duration,
    /// Longest silence of a server, before its headers or within a body.
    pub idle_timeout: Duration,
    /// Longest time for a manifest or a configuration, every attempt included.
    pub document_timeout: Duration,
    /// Attempts for one request, or for one transfer without progress in between.
    pub attempts: u32,
    pub pause_first: Duration,
    pub pause_longest: Duration,
}

impl Default for TransferConfig {
    fn default() -> Self {
        Self {
            part_bytes: limits::PART_BYTES,
            parts_in_flight: limits::PARTS_IN_FLIGHT,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            document_timeout: Duration::from_secs(120),
            attempts: 5,
            pause_first: Duration::from_millis(200),
            pause_longest: Duration::from_secs(10),
        }
    }
}

impl Default for RegistryConfig {
    /// No proxies and no credentials: what tests want. Services use [`RegistryConfig::from_environment`].
    fn default() -> Self {
        Self {
            insecure: Vec::new(),
            mirrors: BTreeMap::new(),
            proxies: Proxies::default(),
            auth_files: Vec::new(),
            certificate_directories: Vec::new(),
            transfer: TransferConfig::default(),
        }
    }
}

impl RegistryConfig {
    /// The usual places: proxy variables, docker's and containers' auth files, and `certs.d` directories.
    pub fn from_environment() -> Self {
        Self {
            proxies: Proxies::from_environment(),
            auth_files: auth_files(|name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)),
            certificate_directories: vec!["/etc/containers/certs.d".into(), "/etc/docker/certs.d".into()],
            ..Self::default()
        }
    }
}

impl Proxies {
    fn from_environment() -> Self {
        let get = |upper: &str| {
            let lower = upper.to_ascii_lowercase();
            [lower.as_str(), upper].iter().find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()))
        };
        let all = get("ALL_PROXY");
        Self {
            http: get("HTTP_PROXY").or_else(|| all.clone()),
            https: get("HTTPS_PROXY").or(all),
            exceptions: get("NO_PROXY"),
        }
    }
}

/// `$REGISTRY_AUTH_FILE` alone when set; else the containers tools' files before docker's, as they themselves search.
fn auth_files(variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    if let Some(file) = variable("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let home = variable("HOME").unwrap_or_else(|| "/root".into());
    let runtime = variable("XDG_RUNTIME_DIR").map(|directory| directory.join("containers/auth.json"));
    let config = variable("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
    let docker = variable("DOCKER_CONFIG").unwrap_or_else(|| home.join(".docker"));
    // Podman run as root without a session keeps its logins here.
    let system = PathBuf::from("/run/containers/0/auth.json");
    let files = [runtime, Some(system), Some(config.join("containers/auth.json")), Some(docker.join("config.json"))];
    files.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_auth_files_are_searched_in_the_usual_order() {
        let files = |set: &[(&str, &str)]| {
            let find = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| PathBuf::from(value));
            auth_files(find).into_iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(files(&[("REGISTRY_AUTH_FILE", "/a.json"), ("HOME", "/home/u")]), ["/a.json"]);
        assert_eq!(
            files(&[("HOME", "/home/u"), ("XDG_RUNTIME_DIR", "/run/user/5")]),
            [
                "/run/user/5/containers/auth.json",
                "/run/containers/0/auth.json",
                "/home/u/.config/containers/auth.json",
                "/home/u/.docker/config.json",
            ]
        );
        assert_eq!(files(&[("DOCKER_CONFIG", "/d")]).last().map(String::as_str), Some("/d/config.json"));
    }
}
