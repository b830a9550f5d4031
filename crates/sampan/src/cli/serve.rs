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

Stopping the service leaves running instances alone; the next start finds them again.
Remove everything: sampan rm -f $(sampan ps -aq), stop the service, delete the data directory.";

/// The service's options.
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
    /// A registry, HOST or HOST:PORT, that may be reached by plain HTTP or with a certificate nobody vouches for.
    #[arg(long, value_name = "HOST")]
    pub(crate) insecure_registry: Vec<String>,
    /// The most that one layer of an image may unpack to, as a quantity such as 20Gi.
    #[arg(long, value_name = "QUANTITY", value_parser = values::size)]
    pub(crate) image_size_max: Option<String>,
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
        let optional = [
            ("--pod-cidr4", &self.pod_cidr4),
            ("--pod-cidr6", &self.pod_cidr6),
            ("--image-size-max", &self.image_size_max),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                option(name, value.into());
            }
        }
        for host in &self.insecure_registry {
            option("--insecure-registry", host.into());
        }
        words
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

/// A process of the service: the supervisor starts these, nobody else.
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

/// The processes of the service beside its supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Clones the agents of pods; single-threaded.
    Zygote,
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
        let line = "sampan internal daemon --data-dir /d --run-dir /r --instance t1 --listen none --pod-cidr4 10.9.0.0/24 \
                    --insecure-registry a:5000 --insecure-registry b --image-size-max 3Gi --descriptor api=7";
        let Command::Internal(first) = Cli::try_parse_from(line.split_whitespace()).unwrap().command else { panic!() };
        let mut words: Vec<OsString> = ["sampan", "internal", "daemon"].map(OsString::from).to_vec();
        words.extend(first.serve.to_words());
        let Command::Internal(second) = Cli::try_parse_from(words).unwrap().command else { panic!() };
        assert_eq!(format!("{:?}", first.serve), format!("{:?}", second.serve));
        assert_eq!((first.role, first.descriptor), (Role::Daemon, vec!["api=7".to_owned()]));
    }
}
