//! Networks made by Debian's containernetworking-plugins, against the real kernel. Needs root, and that package with
//! iptables; see `world`.

#[expect(unreachable_pub, dead_code, reason = "a module of several tests")]
mod world;

use std::fs;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use sampan_network::{AttachOptions, Bandwidth, CniConfig, Network, PodName, Rate};
use world::{HOST4, Namespace, World, explain, port};

const PROGRAMS: &str = "/usr/lib/cni";

/// A chain as kubeadm's users have it, with folders of its own.
struct Chain {
    config_dir: PathBuf,
    addresses: PathBuf,
}

impl Chain {
    fn new(world: &World) -> Self {
        assert!(
            Path::new(PROGRAMS).join("bridge").exists(),
            "these tests run Debian's plugins: apt-get install containernetworking-plugins iptables"
        );
        let config_dir = world.state.path().join("net.d");
        let addresses = world.state.path().join("addresses");
        fs::create_dir_all(&config_dir).expect("folder");
        let text = serde_json::json!({"cniVersion": "1.0.0", "name": "tested", "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
             "ipam": {"type": "host-local", "dataDir": addresses, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                      "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]]}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}}]});
        fs::write(config_dir.join("10-tested.conflist"), text.to_string()).expect("chain");
        Self { config_dir, addresses }
    }

    async fn open(&self, world: &World, programs: &Path) -> Network {
        let mut config = world.config("plugins");
        config.cni = Some(CniConfig { config_dir: self.config_dir.clone(), bin_dir: programs.to_owned() });
        Network::open(config).await.unwrap_or_else(|error| panic!("{}", explain(&error)))
    }

    /// What plugins would leak: addresses, translation rules, the second interface of a bandwidth.
    async fn assert_clean(&self, world: &World) {
        let leases = fs::read_dir(self.addresses.join("tested")).map_or(Vec::new(), |entries| {
            let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            names.filter(|name| name.starts_with("10.") || name.starts_with("fd")).collect()
        });
        assert_eq!(leases, Vec::<String>::new(), "addresses are taken");
        for program in ["iptables", "ip6tables"] {
            let rules = world.host.tool(&format!("{program} -t nat -S")).await;
            let left: Vec<&str> = rules.lines().filter(|rule| rule.contains("CNI-") && rule.contains("-d ")).collect();
            let chains = rules.lines().filter(|rule| rule.starts_with("-N CNI-") && !rule.contains("HOSTPORT")).count();
            assert!(left.is_empty() && chains == 0, "{program}: {rules}");
        }
        let links = world.host.tool("ip -o link").await;
        assert!(!links.contains("ifb") && !links.contains(": bwp"), "{links}");
        let records = fs::read_dir(world.state.path().join("plugins/cni")).expect("records").count();
        assert_eq!(records, 0, "a record stays");
    }
}

fn options(ports: &[&str], bits: Option<u64>) -> AttachOptions {
    let rate = bits.and_then(Rate::from_bits_per_second);
    AttachOptions {
        ports: ports.iter().map(|text| port(text)).collect(),
        bandwidth: Bandwidth { ingress: rate, egress: rate },
        pod: PodName { namespace: "default".into(), name: "web".into(), uid: "1-2".into() },
    }
}

#[test]
fn a_chain_gives_the_same_as_the_built_in_network() {
    World::play(async |world: World| {
        let chain = Chain::new(&world);
        let network = chain.open(&world, Path::new(PROGRAMS)).await;
        let (a, b) = (Namespace::new(), Namespace::new());
        let limited = options(&["8081:80"], Some(20_000_000));
        let first = a.attach_with(&network, "aaaa", &limited).await.unwrap_or_else(|e| panic!("{}", explain(&e)));
        let second = b.attach_with(&network, "bbbb", &options(&[], None)).await.expect("attach");
        a.serve("a", 80).await;
        world.host.serve("host", 7000).await;
        let address = first.ipv4.expect("IPv4").to_string();
        assert!(address.starts_with("10.77.0.") && first.ipv6.is_some(), "{first:?}");
        assert_eq!(b.tcp(&address, 80).await, Ok(format!("a {}", second.ipv4.expect("IPv4"))));
        assert!(b.tcp(&first.ipv6.expect("IPv6").to_string(), 80).await.is_ok(), "over IPv6");
        assert!(world.host.tcp(&address, 80).await.is_ok(), "from the host");
        assert!(world.internet.tcp(HOST4, 8081).await.is_ok(), "the published port from outside");
        assert!(a.tcp("127.0.0.1", 80).await.is_ok(), "the sandbox's own loopback is up");
        let shaped = world.host.tool(&format!("tc qdisc show dev {}", first.host_interface)).await;
        assert!(shaped.contains("tbf") && shaped.contains("20Mbit"), "{shaped}");
        let usage = network.usage("aaaa").await.expect("usage");
        assert!(usage.received_bytes > 0 && usage.sent_bytes > 0, "{usage:?}");
        assert_eq!(network.attachment("aaaa").await.expect("attachment"), Some(first));
        let inside = b.run(|| sampan_sys::namespace::current_network().expect("namespace")).await;
        network.check("bbbb", inside.as_fd()).await.unwrap_or_else(|error| panic!("{}", explain(&error)));
        b.tool("ip address flush dev eth0").await;
        network.check("bbbb", inside.as_fd()).await.expect_err("its address is gone");
        let again = a.attach_with(&network, "aaaa", &limited).await.expect_err("twice");
        assert!(again.to_string().contains("already"), "{again}");
        // One while its namespace lives, one after its end, and once more for nothing.
        drop(b);
        for id in ["aaaa", "bbbb", "bbbb"] {
            network.detach(id).await.unwrap_or_else(|error| panic!("{}", explain(&error)));
        }
        drop(inside);
        chain.assert_clean(&world).await;
    });
}

#[test]
fn a_killed_daemons_networks_are_taken_away_by_the_next() {
    World::play(async |world: World| {
        let chain = Chain::new(&world);
        let network = chain.open(&world, Path::new(PROGRAMS)).await;
        let (stays, goes) = (Namespace::new(), Namespace::new());
        let kept = stays.attach_with(&network, "stays", &options(&["8083:80"], None)).await.expect("attach");
        goes.attach_with(&network, "goes", &options(&["8082:80"], Some(1_000_000))).await.expect("attach");
        stays.serve("stays", 80).await;
        drop((network, goes));
        // The administrator has meanwhile chosen another network: what was made is taken away as it was made.
        fs::write(chain.config_dir.join("00-other.conf"), r#"{"cniVersion":"1.0.0","name":"other","type":"ptp"}"#)
            .expect("write");
        let network = chain.open(&world, Path::new(PROGRAMS)).await;
        let keep = std::iter::once("stays".to_owned()).collect();
        assert_eq!(network.reconcile(&keep).await.expect("reconcile"), ["network of sandbox goes"]);
        assert_eq!(network.attachment("stays").await.expect("attachment"), Some(kept));
        assert!(world.internet.tcp(HOST4, 8083).await.is_ok(), "the other goes on");
        assert!(world.internet.tcp(HOST4, 8082).await.is_err());
        network.detach("stays").await.expect("detach");
        chain.assert_clean(&world).await;
    });
}

#[test]
fn a_chain_that_fails_half_way_leaves_nothing() {
    World::play(async |world: World| {
        let chain = Chain::new(&world);
        // The programs, and among them one that lies, floods or fails, in place of the last.
        let programs = world.state.path().join("programs");
        fs::create_dir(&programs).expect("folder");
        for entry in fs::read_dir(PROGRAMS).expect("plugins") {
            let path = entry.expect("entry").path();
            std::os::unix::fs::symlink(&path, programs.join(path.file_name().expect("name"))).expect("link");
        }
        let network = chain.open(&world, &programs).await;
        for (script, complaint) in [
            (r#"echo '{"code":100,"msg":"no room","details":"at all"}'; exit 1"#, "no room: at all"),
            ("echo not json", "prints no JSON"),
            ("head -c 9000000 /dev/zero", "more than a plugin may"),
            (r#"echo '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.1/99"}]}'"#, "is no address"),
            ("kill -9 $$", "signal"),
        ] {
            let lying = programs.join("bandwidth");
            drop(fs::remove_file(&lying));
            let body = format!("#!/bin/sh\ncat > /dev/null\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\n{script}\n");
            // Written by a name of its own: a file that any child of this program holds open for writing does not run.
            let mut file = fs::File::create(programs.join("new")).expect("file");
            file.write_all(body.as_bytes()).expect("script");
            drop(file);
            fs::set_permissions(programs.join("new"), fs::Permissions::from_mode(0o755)).expect("mode");
            fs::rename(programs.join("new"), &lying).expect("rename");
            let pod = Namespace::new();
            let error = pod.attach_with(&network, "cccc", &options(&["8084:80"], None)).await.expect_err(script);
            assert!(explain(&error).contains(complaint), "{script}: {}", explain(&error));
            chain.assert_clean(&world).await;
        }
    });
}

#[test]
fn what_no_plugin_can_do_is_refused() {
    World::play(async |world: World| {
        let chain = Chain::new(&world);
        let network = chain.open(&world, Path::new(PROGRAMS)).await;
        let single = r#"{"cniVersion":"1.0.0","name":"single","type":"bridge"}"#;
        fs::write(chain.config_dir.join("00-single.conf"), single).expect("write");
        let refused = Namespace::new().attach_with(&network, "dddd", &options(&["80:80"], None)).await;
        assert!(refused.expect_err("no portmap").to_string().contains("portMappings"));
        fs::remove_dir_all(&chain.config_dir).expect("remove");
        let refused = Namespace::new().attach_with(&network, "dddd", &options(&[], None)).await;
        assert!(refused.expect_err("no chain").to_string().contains("no network is configured"));
        chain.assert_clean(&world).await;
    });
}
