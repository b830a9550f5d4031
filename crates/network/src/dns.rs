//! What sandboxes read to find names: `/etc/resolv.conf` and `/etc/hosts`.
//!
//! A host whose resolver is a local daemon (systemd-resolved's 127.0.0.53, dnsmasq) names loopback servers, which a
//! sandbox cannot reach. systemd-resolved keeps the true list in a second file; where there is none, no server is
//! made up: whom a machine asks for names is its owner's decision. The file then says so in a comment.

use std::fs::File;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::Path;

use crate::limits::{NAMESERVERS_MAX, RESOLV_CONF_BYTES_MAX};

/// Whether the host's settings are the base of a sandbox's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsPolicy {
    /// Kubernetes' `Default`, and `ClusterFirst` where there is no cluster DNS.
    #[default]
    Host,
    /// Kubernetes' `None`: only what the pod says.
    None,
}

/// A pod's `dnsPolicy` and `dnsConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsSettings {
    pub policy: DnsPolicy,
    pub nameservers: Vec<IpAddr>,
    pub searches: Vec<String>,
    /// Name and, where it has one, value: `ndots` and `5`.
    pub options: Vec<(String, Option<String>)>,
}

/// One of a pod's `hostAliases`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAlias {
    pub ip: IpAddr,
    pub hostnames: Vec<String>,
}

/// What a resolver configuration says (resolv.conf(5)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Resolver {
    /// As written: an IPv6 address may carry a zone.
    nameservers: Vec<String>,
    searches: Vec<String>,
    options: Vec<(String, Option<String>)>,
}

impl Resolver {
    /// Reads what it knows, and like the C library passes over the rest.
    fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => resolver.nameservers.extend(words.next().map(str::to_owned)),
                // The last of these lines counts alone.
                Some("search" | "domain") => resolver.searches = words.map(str::to_owned).collect(),
                Some("options") => resolver.options.extend(words.map(|word| match word.split_once(':') {
                    Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                    None => (word.to_owned(), None),
                })),
                _ => {}
            }
        }
        resolver
    }

    fn read(path: &Path) -> Option<Self> {
        let mut bytes = Vec::new();
        File::open(path).ok()?.take(RESOLV_CONF_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        Some(Self::parse(&String::from_utf8_lossy(&bytes)))
    }

    /// Leaves the servers that a sandbox can reach too; addresses with a zone mean an interface that it does not have.
    fn keep_reachable(&mut self) {
        self.nameservers.retain(|server| {
            server.parse::<IpAddr>().is_ok_and(|address| {
                let address = address.to_canonical();
                let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
                !address.is_loopback() && !address.is_unspecified() && !link_local
            })
        });
    }
}

/// The text of a sandbox's `/etc/resolv.conf`.
pub(crate) fn resolv_conf(host: &Path, upstream: &Path, dns: &DnsSettings) -> String {
    let mut note = None;
    let mut base = Resolver::default();
    if dns.policy == DnsPolicy::Host {
        base = Resolver::read(host).unwrap_or_default();
        base.keep_reachable();
        if base.nameservers.is_empty()
            && let Some(mut true_list) = Resolver::read(upstream)
        {
            true_list.keep_reachable();
            base.nameservers = true_list.nameservers;
        }
        if base.nameservers.is_empty() && dns.nameservers.is_empty() {
            note = Some(format!(
                "# {} names no server that can be reached from here; set the pod's dnsConfig.nameservers",
                host.display()
            ));
        }
    }
    merge(&mut base, dns);
    write(&base, note)
}

fn merge(base: &mut Resolver, dns: &DnsSettings) {
    for server in &dns.nameservers {
        let server = server.to_string();
        if !base.nameservers.contains(&server) {
            base.nameservers.push(server);
        }
    }
    for search in &dns.searches {
        if !base.searches.contains(search) {
            base.searches.push(search.clone());
        }
    }
    for (name, value) in &dns.options {
        base.options.retain(|(known, _)| known != name);
        base.options.push((name.clone(), value.clone()));
    }
}

fn write(resolver: &Resolver, note: Option<String>) -> String {
    let mut lines: Vec<String> = note.into_iter().collect();
    lines.extend(resolver.nameservers.iter().take(NAMESERVERS_MAX).map(|server| format!("nameserver {server}")));
    if !resolver.searches.is_empty() {
        lines.push(format!("search {}", resolver.searches.join(" ")));
    }
    if !resolver.options.is_empty() {
        let options = resolver.options.iter().map(|(name, value)| match value {
            Some(value) => format!("{name}:{value}"),
            None => name.clone(),
        });
        lines.push(format!("options {}", options.collect::<Vec<_>>().join(" ")));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// The text of a sandbox's `/etc/hosts`, in the kubelet's order: well-known names, its own, the pod's aliases.
pub(crate) fn hosts_file(hostname: &str, addresses: &[IpAddr], aliases: &[HostAlias]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    let own = addresses.iter().map(|address| (address, hostname.to_owned()));
    let others = aliases.iter().map(|alias| (&alias.ip, alias.hostnames.join(" ")));
    for (address, names) in own.chain(others).filter(|(_, names)| !names.is_empty()) {
        text.push_str(&format!("{address}\t{names}\n"));
    }
    text
}

/// Entry for fuzzing: any bytes as a host's resolver configuration.
pub fn fuzz_resolv_conf(bytes: &[u8]) -> String {
    let mut resolver = Resolver::parse(&String::from_utf8_lossy(bytes));
    resolver.keep_reachable();
    write(&resolver, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    fn check(host: &str, upstream: Option<&str>, dns: &DnsSettings, expected: Expect) {
        let dir = tempfile::tempdir().expect("dir");
        let (host_path, upstream_path) = (dir.path().join("host"), dir.path().join("upstream"));
        std::fs::write(&host_path, host).expect("write");
        if let Some(upstream) = upstream {
            std::fs::write(&upstream_path, upstream).expect("write");
        }
        let text = resolv_conf(&host_path, &upstream_path, dns);
        expected.assert_eq(&text.replace(dir.path().to_str().expect("path"), "DIR"));
    }

    #[test]
    fn a_plain_host_is_copied() {
        let host = "# made by hand\nnameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch a.example b.example\noptions edns0 ndots:2\nsortlist x\n";
        check(
            host,
            None,
            &DnsSettings::default(),
            expect![[r#"
            nameserver 192.0.2.53
            nameserver 2001:db8::53
            search a.example b.example
            options edns0 ndots:2
        "#]],
        );
    }

    #[test]
    fn a_stub_resolver_is_replaced_by_its_upstream() {
        let stub = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n";
        check(
            stub,
            Some("nameserver 192.0.2.1\nnameserver fe80::1%2\nnameserver 192.0.2.2\n"),
            &DnsSettings::default(),
            expect![[r#"
            nameserver 192.0.2.1
            nameserver 192.0.2.2
            search lan
            options edns0 trust-ad
        "#]],
        );
        check(
            stub,
            None,
            &DnsSettings::default(),
            expect![[r#"
            # DIR/host names no server that can be reached from here; set the pod's dnsConfig.nameservers
            search lan
            options edns0 trust-ad
        "#]],
        );
    }

    #[test]
    fn a_pods_own_settings_come_behind_and_override_options() {
        let dns = DnsSettings {
            policy: DnsPolicy::Host,
            nameservers: vec!["192.0.2.53".parse().expect("address"), "192.0.2.54".parse().expect("address")],
            searches: vec!["lan".to_owned(), "x.example".to_owned()],
            options: vec![("ndots".to_owned(), Some("5".to_owned()))],
        };
        let host = "nameserver 192.0.2.53\nsearch lan\noptions ndots:1 rotate\n";
        check(
            host,
            None,
            &dns,
            expect![[r#"
            nameserver 192.0.2.53
            nameserver 192.0.2.54
            search lan x.example
            options rotate ndots:5
        "#]],
        );
        check(
            host,
            None,
            &DnsSettings { policy: DnsPolicy::None, ..dns },
            expect![[r#"
            nameserver 192.0.2.53
            nameserver 192.0.2.54
            search lan x.example
            options ndots:5
        "#]],
        );
    }

    #[test]
    fn hosts_name_the_pod_and_its_aliases() {
        let alias = HostAlias {
            ip: "192.0.2.9".parse().expect("address"),
            hostnames: vec!["db".to_owned(), "db.example".to_owned()],
        };
        let addresses = ["10.187.0.2".parse().expect("v4"), "fd00::2".parse().expect("v6")];
        expect![[r#"
            127.0.0.1	localhost
            ::1	localhost ip6-localhost ip6-loopback
            fe00::	ip6-localnet
            ff02::1	ip6-allnodes
            ff02::2	ip6-allrouters
            10.187.0.2	web
            fd00::2	web
            192.0.2.9	db db.example
        "#]]
        .assert_eq(&hosts_file("web", &addresses, &[alias]));
    }

    proptest! {
        #[test]
        fn any_resolver_configuration_is_read(bytes: Vec<u8>) {
            let text = fuzz_resolv_conf(&bytes);
            prop_assert!(text.lines().filter(|line| line.starts_with("nameserver ")).count() <= NAMESERVERS_MAX);
        }
    }
}
