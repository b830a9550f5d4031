//! The options of the service, and of the processes that it starts out of the same binary.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::values;

const EXAMPLES: &str = "\
Examples:
  sampan serve                                    the service with its defaults, until Ctrl-C
  sampan serve --listen none                      only the Unix socket, nothing on TCP
  sampan serve --insecure-registry localhost:5000 allow plain HTTP with this registry
  sampan serve --registry-mirror docker.io=mirror.example:5000   ask a mirror first

Stopping the service leaves running instances alone; the next start finds them again.
Remove everything: sampan rm -f $(sampan ps -aq), stop the service, delete the data directory.";

// The service's options.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ServeArgs {
    /// Where images, logs, disks and objects are kept.
    #[arg(long, default_value = "/var/lib/sampan", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Where sockets and other things that end with the machine are kept.
    #[arg(long, default_value = "/run/sampan", value_name = "DIR")]
    pub(crate) run_dir: PathBuf,
    /// The name that this service's cgroups, interfaces and rules begin with, so that several can share a machine.
    #[arg(long, default_value = "sampan", value_name = "NAME", value_parser = values::label)]
    pub(crate) instance: String,
    /// Where to serve the API over TLS for kubectl, besides the Unix socket; `none` for nowhere.
    #[arg(long, default_value = "127.0.0.1:7443", value_name = "ADDRESS")]
    pub(crate) listen: Listen,
    /// The IPv4 addresses for instances (default: the first of 10.187.0.0/16 and some others that no route uses).
    #[arg(long, value_name = "CIDR", value_parser = values::cidr4)]
    pub(crate) pod_cidr4: Option<String>,
    /// The IPv6 addresses for instances (default: a unique local prefix).
    #[arg(long, value_name = "CIDR", value_parser = values::cidr6)]
    pub(crate) pod_cidr6: Option<String>,
    /// Have networks made by the chain of CNI plugins that is configured in this folder, in place of the built-in network.
    #[arg(long, value_name = "DIR")]
    pub(crate) cni_config_dir: Option<PathBuf>,
    /// Where the plugins' programs are.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub(crate) cni_bin_dir: PathBuf,
    /// A registry, HOST or HOST:PORT, that may be reached by plain HTTP or with a certificate nobody vouches for.
    #[arg(long, value_name = "HOST")]
    pub(crate) insecure_registry: Vec<String>,
    /// Another host to ask first for images of a registry, which itself is asked last; may be said several times.
    #[arg(long, value_name = "REGISTRY=HOST", value_parser = values::mirror)]
    pub(crate) registry_mirror: Vec<String>,
    /// The most that one layer of an image may unpack to, as a quantity such as 20Gi.
    #[arg(long, value_name = "QUANTITY", value_parser = values::size)]
    pub(crate) image_size_max: Option<String>,
    /// What all images may take of the disk, as a quantity; those that nobody uses go when it is more (default: no limit).
    #[arg(long, value_name = "QUANTITY", value_parser = values::size)]
    pub(crate) image_cache_max: Option<String>,
    /// Bytes a second, as a quantity, for the parts of images that nobody waits for (default: no limit).
    #[arg(long, value_name = "QUANTITY", value_parser = values::size)]
    pub(crate) image_bandwidth: Option<String>,
    /// A folder, or the address of a web server that serves one, where published indexes of images lie.
    #[arg(long, value_name = "DIR|URL", value_parser = values::index_cache)]
    pub(crate) index_cache: Option<String>,
    /// What to serve.
    #[arg(id = "serve-role", long = "role", default_value = "all", value_name = "ROLE")]
    pub(crate) role: ServeRole,
    /// Where to serve the Kubernetes Container Runtime Interface, a Unix socket for a kubelet or crictl (default: cri.sock
    /// in the run directory); `none` for nowhere.
    #[arg(long, value_name = "PATH")]
    pub(crate) cri_listen: Option<PathBuf>,
    /// How a kubelet is told to name control groups.
    #[arg(long, default_value = "cgroupfs", value_name = "DRIVER")]
    pub(crate) cgroup_driver: GroupDriver,
    /// An image that a kubelet is told to leave on this machine.
    #[arg(long, value_name = "IMAGE")]
    pub(crate) pin_image: Vec<String>,
    /// How many sandboxes are kept ready for instances to come; 0 for none.
    #[arg(long, default_value_t = sampan_runtime::limits::POOL_DEFAULT, value_name = "N")]
    pub(crate) sandbox_pool: usize,
}

impl ServeArgs {
    /// The same options as words of a command line, for a process started out of this binary.
    pub(crate) fn to_words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        let mut option = |name: &str, value: OsString| words.extend([name.into(), value]);
        option("--data-dir", self.data_dir.clone().into());
        option("--run-dir", self.run_dir.clone().into());
        option("--instance", self.instance.clone().into());
        option("--listen", self.listen.to_string().into());
        option("--sandbox-pool", self.sandbox_pool.to_string().into());
        option("--role", word(self.role));
        option("--cgroup-driver", word(self.cgroup_driver));
        option("--cni-bin-dir", self.cni_bin_dir.clone().into());
        if let Some(path) = &self.cni_config_dir {
            option("--cni-config-dir", path.into());
        }
        if let Some(path) = &self.cri_listen {
            option("--cri-listen", path.into());
        }
        let optional = [
            ("--pod-cidr4", &self.pod_cidr4),
            ("--pod-cidr6", &self.pod_cidr6),
            ("--image-size-max", &self.image_size_max),
            ("--image-cache-max", &self.image_cache_max),
            ("--image-bandwidth", &self.image_bandwidth),
            ("--index-cache", &self.index_cache),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                option(name, value.into());
            }
        }
        for host in &self.insecure_registry {
            option("--insecure-registry", host.into());
        }
        for image in &self.pin_image {
            option("--pin-image", image.into());
        }
        for mirror in &self.registry_mirror {
            option("--registry-mirror", mirror.into());
        }
        words
    }
}

/// How a value is written on the command line.
fn word(value: impl ValueEnum) -> OsString {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default().into()
}

/// Which parts of the service run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ServeRole {
    /// The API with everything behind it, and the container runtime interface.
    All,
    /// Only the container runtime interface, below a kubelet.
    Cri,
}

/// How control groups are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GroupDriver {
    /// As paths.
    Cgroupfs,
    /// As slices of systemd.
    Systemd,
}

impl ServeArgs {
    /// Where the container runtime interface is served, if anywhere.
    pub(crate) fn cri_socket(&self) -> Option<PathBuf> {
        match &self.cri_listen {
            Some(path) if path.as_os_str() == "none" => None,
            Some(path) => Some(path.clone()),
            None => Some(self.run_dir.join("cri.sock")),
        }
    }
}

/// Where the API is served over TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listen {
    /// At this address.
    At(SocketAddr),
    /// Nowhere.
    Nowhere,
}

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::Nowhere);
        }
        text.parse().map(Self::At).map_err(|_error: std::net::AddrParseError| {
            "write an address and a port like 127.0.0.1:7443, or none".to_owned()
        })
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::At(address) => write!(formatter, "{address}"),
            Self::Nowhere => formatter.write_str("none"),
        }
    }
}

// A process of the service: the supervisor starts these, nobody else.
#[derive(Debug, Clone, Args)]
pub(crate) struct InternalArgs {
    /// Which process to be.
    pub(crate) role: Role,
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
    /// A descriptor that the supervisor hands down, as NAME=NUMBER.
    #[arg(long, value_name = "NAME=NUMBER")]
    pub(crate) descriptor: Vec<String>,
}

/// The processes of the service beside its supervisor and the zygote, which reads its line by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Everything else.
    Daemon,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser as _;

    #[test]
    fn options_survive_the_way_to_a_child_process() {
        let line = "sampan internal daemon --data-dir /d --run-dir /r --instance t1 --listen none --pod-cidr4 10.9.0.0/24 --cni-config-dir /n --cni-bin-dir /b \
                    --insecure-registry a:5000 --insecure-registry b --registry-mirror docker.io=m:5000 --image-size-max 3Gi --image-cache-max 9Gi --image-bandwidth 1Mi --sandbox-pool 7 --role cri --cri-listen /c.sock --cgroup-driver systemd --pin-image p:1 --descriptor api=7";
        let Command::Internal(first) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else { panic!() };
        let mut words: Vec<OsString> = ["sampan", "internal", "daemon"].map(OsString::from).to_vec();
        words.extend(first.serve.to_words());
        let Command::Internal(second) = Cli::try_parse_from(words).unwrap().command else { panic!() };
        assert_eq!(format!("{:?}", first.serve), format!("{:?}", second.serve));
        assert_eq!((first.role, first.descriptor), (Role::Daemon, vec!["api=7".to_owned()]));
    }
}
