//! The routed network against the real kernel. Needs root; see `world`.

#[expect(unreachable_pub, reason = "a module of this one test")]
mod world;

use std::io::ErrorKind;
use std::time::Instant;

use sampan_network::{Network, NetworkError, PortHolder};
use world::{HOST4, HOST6, INTERNET4, INTERNET6, Pod, World, explain, keep, port};

#[test]
fn pods_reach_the_host_each_other_and_the_world() {
    World::play(async |world: World| {
        let network = world.open("sampan").await;
        let a = Pod::start(&network, "aaaaaaaaaaaaaaaa", &[]).await;
        let b = Pod::start(&network, "bbbbbbbbbbbbbbbb", &[]).await;
        world.host.serve("host", 7000).await;
        world.internet.serve("internet", 7000).await;

        let said = |text: &str| Ok::<_, ErrorKind>(text.to_owned());
        assert_eq!(a.inside.tcp(&b.ipv4(), 80).await, said(&format!("{} {}", b.id, a.ipv4())));
        assert_eq!(a.inside.udp(&b.ipv4(), 80).await, said(&format!("{} {}", b.id, a.ipv4())));
        assert_eq!(a.inside.tcp(&b.ipv6(), 80).await, said(&format!("{} {}", b.id, a.ipv6())));
        assert_eq!(a.inside.udp(&b.ipv6(), 80).await, said(&format!("{} {}", b.id, a.ipv6())));
        assert_eq!(a.inside.tcp("127.0.0.1", 80).await, said(&format!("{} 127.0.0.1", a.id)));
        assert_eq!(a.inside.tcp("::1", 80).await, said(&format!("{} ::1", a.id)));

        assert_eq!(a.inside.tcp(HOST4, 7000).await, said(&format!("host {}", a.ipv4())));
        assert_eq!(a.inside.tcp(HOST6, 7000).await, said(&format!("host {}", a.ipv6())));
        assert_eq!(a.inside.udp("10.187.0.1", 7000).await, said(&format!("host {}", a.ipv4())));
        assert_eq!(world.host.tcp(&a.ipv4(), 80).await, said(&format!("{} 10.187.0.1", a.id)));
        assert!(world.host.tcp(&a.ipv6(), 80).await.expect("host to pod").ends_with("::1"));

        assert_eq!(a.inside.tcp(INTERNET4, 7000).await, said(&format!("internet {HOST4}")));
        assert_eq!(a.inside.udp(INTERNET4, 7000).await, said(&format!("internet {HOST4}")));
        assert_eq!(a.inside.tcp(INTERNET6, 7000).await, said(&format!("internet {HOST6}")));
        assert_eq!(a.inside.udp(INTERNET6, 7000).await, said(&format!("internet {HOST6}")));

        let usage = network.usage(&a.id).await.expect("usage");
        assert!(usage.received_bytes > 500 && usage.sent_bytes > 500, "{usage:?}");
        let all = network.usage_of_all().await.expect("usage of all");
        assert_eq!(all.len(), 2);
        assert_eq!(all[&a.id], usage);
        assert!(matches!(network.usage("nobody").await, Err(NetworkError::NotAttached { .. })));
        assert!(a.inside.tool("ip link show eth0").await.contains("mtu 1450"), "the uplink's MTU");
    });
}

#[test]
fn strangers_reach_nothing_that_is_not_published() {
    World::play(async |world: World| {
        let network = world.open("sampan").await;
        let a = Pod::start(&network, "aaaaaaaaaaaaaaaa", &[port("127.0.0.1:8080:80")]).await;
        let b = Pod::start(&network, "bbbbbbbbbbbbbbbb", &[]).await;
        // A neighbour that routes to the pods by way of the host, or forges packets for its loopback.
        world.internet.tool(&format!("ip route add 10.187.0.0/16 via {HOST4}")).await;
        world.internet.tool("ip addr del 127.0.0.1/8 dev lo").await;
        world.internet.tool("sysctl -qw net.ipv4.conf.all.route_localnet=1").await;
        world.internet.tool(&format!("ip route add 127.0.0.0/8 via {HOST4}")).await;
        assert!(world.host.tcp("127.0.0.1", 8080).await.is_ok(), "the host itself may");
        assert!(world.host.tcp(HOST4, 8080).await.is_err(), "only on 127.0.0.1");

        // A pod that does the same must not meet what listens on the host's loopback.
        world.host.serve_on("host", "127.0.0.1:7001".parse().expect("address")).await;
        b.inside.tool("ip addr del 127.0.0.1/8 dev lo").await;
        b.inside.tool("sysctl -qw net.ipv4.conf.all.route_localnet=1").await;
        b.inside.tool("ip route add 127.0.0.0/8 via 169.254.1.1 dev eth0 onlink").await;
        let (timed_out, a_directly) = (Err(ErrorKind::TimedOut), a.ipv4());
        assert_eq!(
            tokio::join!(
                world.internet.tcp(&a_directly, 80),
                world.internet.tcp("127.0.0.1", 8080),
                b.inside.tcp("127.0.0.1", 7001)
            ),
            (timed_out.clone(), timed_out.clone(), timed_out.clone())
        );

        // A borrowed source address is not carried: neither another pod's nor one of the world's.
        world.host.serve("host", 7002).await;
        let borrowing = async |source: &str, to: &str| {
            b.inside.tool(&format!("ip addr add {source}/32 dev eth0")).await;
            b.inside.tool(&format!("ip route add {to}/32 via 169.254.1.1 dev eth0 onlink src {source}")).await;
            b.inside.tcp(to, 7002).await
        };
        let [from_a, from_the_world] = [a.ipv4(), "198.51.100.7".to_owned()];
        assert_eq!(
            tokio::join!(borrowing(&from_a, HOST4), borrowing(&from_the_world, "10.187.0.1")),
            (timed_out.clone(), timed_out)
        );
        // An address that nobody has says so at once, to pods and to the host.
        let asked = Instant::now();
        assert_eq!(a.inside.tcp("10.187.200.1", 80).await, Err(ErrorKind::HostUnreachable));
        assert_eq!(world.host.tcp("10.187.200.1", 80).await, Err(ErrorKind::HostUnreachable));
        assert!(asked.elapsed().as_millis() < 1000);
    });
}

#[test]
fn published_ports_answer_from_everywhere() {
    World::play(async |world: World| {
        let network = world.open("sampan").await;
        let ports = [port("8080:80"), port("8080:80/udp"), port(&format!("{HOST4}:9090:80"))];
        let a = Pod::start(&network, "aaaaaaaaaaaaaaaa", &ports).await;
        let b = Pod::start(&network, "bbbbbbbbbbbbbbbb", &[]).await;
        let said = |by: &str, from: &str| Ok::<_, ErrorKind>(format!("{by} {from}"));

        assert_eq!(world.internet.tcp(HOST4, 8080).await, said(&a.id, INTERNET4), "the caller's address is kept");
        assert_eq!(world.internet.udp(HOST4, 8080).await, said(&a.id, INTERNET4));
        assert_eq!(world.internet.tcp(HOST6, 8080).await, said(&a.id, INTERNET6));
        assert_eq!(world.internet.udp(HOST6, 8080).await, said(&a.id, INTERNET6));
        assert_eq!(world.internet.tcp(HOST4, 9090).await, said(&a.id, INTERNET4));
        assert_eq!(world.internet.tcp(HOST6, 9090).await, Err(ErrorKind::ConnectionRefused), "one address only");

        assert_eq!(world.host.tcp("127.0.0.1", 8080).await, said(&a.id, "10.187.0.1"));
        assert_eq!(world.host.udp("127.0.0.1", 8080).await, said(&a.id, "10.187.0.1"));
        assert_eq!(world.host.tcp(HOST4, 8080).await, said(&a.id, HOST4));
        assert_eq!(world.host.tcp(HOST4, 9090).await, said(&a.id, HOST4));
        assert_eq!(world.host.tcp(HOST6, 8080).await, said(&a.id, HOST6));
        let on_loopback6 = world.host.tcp("::1", 8080).await.expect("carried over in user space");
        assert!(on_loopback6.starts_with(&a.id), "{on_loopback6}");

        assert_eq!(b.inside.tcp(HOST4, 8080).await, said(&a.id, &b.ipv4()), "another pod keeps its address");
        assert_eq!(b.inside.udp(HOST4, 8080).await, said(&a.id, &b.ipv4()));
        assert_eq!(b.inside.tcp(HOST6, 8080).await, said(&a.id, &b.ipv6()));
        assert_eq!(b.inside.tcp("10.187.0.1", 8080).await, said(&a.id, &b.ipv4()));
        assert_eq!(a.inside.tcp(HOST4, 8080).await, said(&a.id, "10.187.0.1"), "hairpin");
        assert_eq!(a.inside.udp(HOST4, 8080).await, said(&a.id, "10.187.0.1"), "hairpin");
        assert!(a.inside.tcp(HOST6, 8080).await.is_ok_and(|text| text.starts_with(&a.id)), "hairpin");

        network.detach(&a.id).await.expect("detach");
        network.detach(&a.id).await.expect("detaching again is no error");
        assert_eq!(world.internet.tcp(HOST4, 8080).await, Err(ErrorKind::ConnectionRefused));
        assert_eq!(world.host.tcp("127.0.0.1", 8080).await, Err(ErrorKind::ConnectionRefused));
        assert_eq!(world.host.tcp("::1", 8080).await, Err(ErrorKind::ConnectionRefused));
        let c = Pod::start(&network, "cccccccccccccccc", &ports).await;
        assert_eq!(world.internet.tcp(HOST4, 8080).await, said(&c.id, INTERNET4), "the port is free for the next");
    });
}

#[test]
fn a_port_is_given_once_and_its_holder_is_named() {
    World::play(async |world: World| {
        let network = world.open("sampan").await;
        let _a = Pod::start(&network, "aaaaaaaaaaaaaaaa", &[port("8080:80")]).await;
        let taken = |result: Result<Pod, NetworkError>| match result.map(|pod| pod.id) {
            Err(NetworkError::PortTaken { holder, port: 8080, .. }) => holder,
            other => panic!("{other:?}"),
        };
        let by_a = PortHolder::Sandbox("aaaaaaaaaaaaaaaa".to_owned());
        assert_eq!(taken(Pod::try_start(&network, "b", &[port("8080:80")]).await), by_a);
        assert_eq!(taken(Pod::try_start(&network, "b", &[port("127.0.0.1:8080:81")]).await), by_a);
        assert!(Pod::try_start(&network, "udp-is-another", &[port("8080:80/udp")]).await.is_ok());

        let bound = world.host.run(|| std::net::TcpListener::bind("0.0.0.0:8080").map_err(|error| error.kind())).await;
        assert_eq!(bound.err(), Some(ErrorKind::AddrInUse), "no host process can take a published port");

        world.host.serve_on("host", "127.0.0.1:8081".parse().expect("address")).await;
        let error = Pod::try_start(&network, "b", &[port("8082:80"), port("8081:80")]).await.map(|pod| pod.id);
        match &error {
            Err(NetworkError::PortTaken { port: 8081, holder: PortHolder::Process { pid, .. }, .. }) => {
                assert_eq!(*pid, std::process::id());
            }
            other => panic!("{other:?}"),
        }
        let text = error.expect_err("taken").to_string();
        assert!(text.starts_with("port 8081/tcp on 0.0.0.0 is taken by process \""), "{text}");
        // Nothing is left of the failed one: its first port is free, its name too.
        assert!(Pod::try_start(&network, "b", &[port("8082:80")]).await.is_ok());

        let refused = Pod::try_start(&network, "c", &[port("8090:80"), port("8090:81")]).await.map(|pod| pod.id);
        assert!(matches!(refused, Err(NetworkError::PortRepeated { port: 8090, .. })), "{refused:?}");
        let refused = Pod::try_start(&network, "c", &[port("198.51.100.1:8090:80")]).await.map(|pod| pod.id);
        assert!(matches!(refused, Err(NetworkError::AddressNotLocal { .. })), "{refused:?}");
        let refused = Pod::try_start(&network, "c", &[port("0:80")]).await.map(|pod| pod.id);
        assert!(matches!(refused, Err(NetworkError::PortZero)), "{refused:?}");
        let refused = Pod::try_start(&network, "../c", &[]).await.map(|pod| pod.id);
        assert!(matches!(refused, Err(NetworkError::InvalidName { .. })), "{refused:?}");
    });
}

#[test]
fn after_a_restart_the_living_go_on_and_the_dead_leave_nothing() {
    World::play(async |world: World| {
        let network = world.open("sampan").await;
        let a = Pod::start(&network, "aaaaaaaaaaaaaaaa", &[port("8080:80")]).await;
        let b = Pod::start(&network, "bbbbbbbbbbbbbbbb", &[port("8081:80")]).await;
        network.close().await.expect("close with pods attached");
        assert!(world.internet.tcp(HOST4, 8080).await.is_ok(), "the service is away, the kernel goes on");
        // A kill between the lease and the rest, and an interface whose lease is lost.
        world.host.tool("ip link add spn-stray type veth peer name other").await;
        std::fs::write(world.lease_dir("sampan").join(".x.json.new"), "half").expect("write");

        let network = world.open("sampan").await;
        let removed = network.reconcile(&keep(&[&a])).await.expect("reconcile");
        assert_eq!(
            removed,
            [
                "address of sandbox bbbbbbbbbbbbbbbb",
                "interface spn-bbbbbbbbbbb of sandbox bbbbbbbbbbbbbbbb",
                "interface spn-stray"
            ]
        );
        assert_eq!(network.attachment(&a.id).await.expect("ask"), Some(a.attachment.clone()));
        assert!(world.internet.tcp(HOST4, 8080).await.is_ok());
        assert!(world.host.tcp("::1", 8080).await.is_ok(), "the port is held again");
        assert_eq!(world.internet.tcp(HOST4, 8081).await, Err(ErrorKind::ConnectionRefused));
        assert_eq!(b.inside.tool("ip -br link show type veth").await, "", "its cable is gone");
        assert!(network.usage(&a.id).await.is_ok());
        let again = world::Namespace::new().attach_to(&network, &a.id, &[]).await;
        assert!(matches!(again, Err(NetworkError::AlreadyAttached { .. })), "{again:?}");
        assert_eq!(network.reconcile(&keep(&[&a])).await.expect("reconcile"), Vec::<String>::new());

        // Somebody flushes all rules: the next change, or the next reconciliation, brings the table back.
        world.host.tool("nft flush ruleset").await;
        let c = Pod::start(&network, "cccccccccccccccc", &[port("8082:80")]).await;
        assert!(world.internet.tcp(HOST4, 8080).await.is_ok() && world.internet.tcp(HOST4, 8082).await.is_ok());
        world.host.tool("nft flush ruleset").await;
        network.reconcile(&keep(&[&a, &c])).await.expect("reconcile");
        assert!(world.internet.tcp(HOST4, 8080).await.is_ok() && world.internet.tcp(HOST4, 8082).await.is_ok());

        network.reconcile(&keep(&[])).await.expect("reconcile");
        network.close().await.expect("close");
        assert_eq!(world.host.tool("nft list ruleset").await, "");
        assert!(!world.host.tool("ip -br link").await.contains("spn-"));
        let routes =
            world.host.tool("ip route show table all").await + &world.host.tool("ip -6 route show table all").await;
        assert!(!routes.contains("spn-") && !routes.contains("10.187"), "{routes}");
        let left: Vec<_> = std::fs::read_dir(world.lease_dir("sampan")).expect("dir").flatten().collect();
        assert!(left.iter().all(|entry| entry.file_name() == "cursor"), "{left:?}");
    });
}

#[test]
fn a_failed_attachment_leaves_nothing() {
    World::play(async |world: World| {
        let network = world.open("sampan").await;
        let taken = world::Namespace::new();
        taken.tool("ip link add eth0 type bridge").await;
        let error = taken.attach_to(&network, "aaaaaaaaaaaaaaaa", &[port("8080:80")]).await.expect_err("eth0 exists");
        assert!(explain(&error).contains("spn-aaaaaaaaaaa"), "{}", explain(&error));
        assert!(!world.host.tool("ip -br link").await.contains("spn-aaa"));
        Pod::start(&network, "bbbbbbbbbbbbbbbb", &[port("8080:80")]).await;
    });
}

#[test]
fn two_services_live_side_by_side() {
    World::play(async |world: World| {
        let one = world.open("sampan").await;
        let two = world.open("sampan-test").await;
        let a = Pod::start(&one, "aaaaaaaaaaaaaaaa", &[port("8080:80")]).await;
        let b = Pod::start(&two, "aaaaaaaaaaaaaaaa", &[port("8081:80")]).await;
        assert_ne!(a.attachment.ipv4, b.attachment.ipv4);
        assert_ne!(a.attachment.host_interface, b.attachment.host_interface);
        assert!(world.internet.tcp(HOST4, 8080).await.is_ok() && world.internet.tcp(HOST4, 8081).await.is_ok());
        assert!(a.inside.tcp(HOST4, 8081).await.is_ok() && b.inside.tcp(HOST4, 8080).await.is_ok());
        assert!(a.inside.tcp(&b.ipv4(), 80).await.is_err(), "a stranger to that service");
        let taken = Pod::try_start(&two, "bbbbbbbbbbbbbbbb", &[port("8080:80")]).await.map(|pod| pod.id);
        assert!(matches!(taken, Err(NetworkError::PortTaken { .. })), "{taken:?}");
        one.reconcile(&keep(&[])).await.expect("reconcile");
        one.close().await.expect("close");
        assert!(world.internet.tcp(HOST4, 8081).await.is_ok(), "the other is not touched");
        let tables = world.host.tool("nft list tables").await;
        assert_eq!(tables.trim(), "table inet sampan-test");
    });
}

#[test]
fn a_pool_in_use_by_the_host_is_refused_by_name_or_passed_over() {
    World::play(async |world: World| {
        world.host.tool("ip link add lan0 type bridge").await;
        world.host.tool("ip addr add 10.187.4.1/24 dev lan0").await;
        world.host.tool("ip link set lan0 up").await;
        let network = world.open("sampan").await;
        let a = Pod::start(&network, "aaaaaaaaaaaaaaaa", &[]).await;
        assert_eq!(a.attachment.ipv4.expect("address").octets()[..2], [10, 213]);

        let mut config = world.config("other");
        config.ipv4_pool = Some("10.187.0.0/16".parse().expect("pool"));
        let error = Network::open(config).await.expect_err("overlaps");
        let text = error.to_string();
        assert!(text.contains("10.187.0.0/16") && text.contains("on lan0"), "{text}");

        network.close().await.expect("close");
        let mut config = world.config("sampan");
        config.ipv4_pool = Some("10.99.0.0/16".parse().expect("pool"));
        let error = Network::open(config).await.expect_err("instances use the old pool");
        assert!(matches!(error, NetworkError::PoolChanged { attached: 1, .. }), "{error}");
    });
}

#[test]
fn the_shared_firewall_lets_sandboxes_through_and_others_are_told_of() {
    World::play(async |world: World| {
        world.internet.serve("internet", 7000).await;
        for family in ["ip", "ip6"] {
            world.host.tool(&format!("nft add table {family} filter")).await;
            let chain = "{ type filter hook forward priority 0 ; policy drop ; }";
            world.host.tool(&format!("nft add chain {family} filter FORWARD {chain}")).await;
        }
        let network = world.open("sampan").await;
        let a = Pod::start(&network, "aaaaaaaaaaaaaaaa", &[port("8080:80")]).await;
        let all_ways = async || {
            a.inside.tcp(INTERNET4, 7000).await.is_ok()
                && a.inside.tcp(INTERNET6, 7000).await.is_ok()
                && world.internet.tcp(HOST4, 8080).await.is_ok()
                && world.internet.tcp(HOST6, 8080).await.is_ok()
        };
        assert!(all_ways().await, "as with docker or ufw on the machine");
        network.mend().await.expect("mend");
        let rules = world.host.tool("nft list chain ip filter FORWARD").await;
        assert_eq!(rules.matches("spn-*").count(), 2, "not twice: {rules}");
        world.host.tool("nft flush chain ip filter FORWARD").await;
        network.mend().await.expect("mend");
        assert!(all_ways().await, "after a reload");

        assert!(network.obstacles().await.expect("ask").is_empty(), "neither our own table nor the shared one");
        world.host.tool("nft add table inet fortress").await;
        world
            .host
            .tool("nft add chain inet fortress gate { type filter hook forward priority 0 ; policy drop ; }")
            .await;
        let found = network.obstacles().await.expect("ask");
        assert_eq!(found.len(), 1);
        assert!(found[0].to_string().starts_with("chain gate of table fortress drops"), "{}", found[0]);

        network.reconcile(&keep(&[])).await.expect("reconcile");
        network.close().await.expect("close");
        let rules = world.host.tool("nft list ruleset").await;
        assert!(!rules.contains("spn-"), "{rules}");
    });
}

#[test]
fn a_stream_of_datagrams_finds_the_sandbox_that_has_the_port_now() {
    World::play(async |world: World| {
        let network = world.open("sampan").await;
        let ports = [port("8090:80/udp")];
        // One sender that never changes its own port, as a log shipper does.
        let sender = world.internet.run(|| std::net::UdpSocket::bind("0.0.0.0:5000").expect("bind")).await;
        let ask = async |patience: u64| {
            let sender = sender.try_clone().expect("clone");
            world
                .internet
                .run(move || {
                    let mut buffer = [0; 64];
                    sender.set_read_timeout(Some(std::time::Duration::from_millis(patience))).expect("timeout");
                    sender.send_to(b"hello", (HOST4, 8090)).expect("send");
                    let length = sender.recv(&mut buffer).ok()?;
                    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
                })
                .await
        };
        // Neighbours know each other first, so that no datagram is kept back and answered to the next question.
        assert_eq!(world.internet.tcp(HOST4, 8090).await, Err(ErrorKind::ConnectionRefused));
        assert_eq!(ask(50).await, None, "before there is anybody");
        let a = Pod::start(&network, "aaaaaaaaaaaaaaaa", &ports).await;
        assert_eq!(ask(1500).await, Some(format!("{} {INTERNET4}", a.id)));
        network.detach(&a.id).await.expect("detach");
        assert_eq!(ask(50).await, None, "the way to the old one is closed");
        let b = Pod::start(&network, "bbbbbbbbbbbbbbbb", &ports).await;
        assert_eq!(ask(1500).await, Some(format!("{} {INTERNET4}", b.id)));
    });
}

#[test]
fn three_hundred_attachments() {
    World::play(async |world: World| {
        const COUNT: u32 = 300;
        let network = world.open("sampan").await;
        let namespaces: Vec<_> = (0..COUNT).map(|_| world::Namespace::new()).collect();
        let start = Instant::now();
        for (index, namespace) in namespaces.iter().enumerate() {
            let ports = if index % 10 == 0 { vec![port(&format!("{}:80", 20_000 + index))] } else { vec![] };
            let id = format!("{index:016x}").chars().rev().collect::<String>();
            namespace.attach_to(&network, &id, &ports).await.unwrap_or_else(|error| panic!("{}", explain(&error)));
        }
        let attached = start.elapsed();
        let start = Instant::now();
        let usage = network.usage_of_all().await.expect("usage");
        let counted = start.elapsed();
        assert_eq!(usage.len(), COUNT as usize);
        let start = Instant::now();
        let removed = network.reconcile(&keep(&[])).await.expect("reconcile");
        assert_eq!(removed.len(), 2 * COUNT as usize);
        eprintln!(
            "{COUNT} attachments: {:.0} µs each; usage of all: {counted:?}; detaching and deleting all: {:?}",
            attached.as_secs_f64() * 1e6 / f64::from(COUNT),
            start.elapsed()
        );
        assert!(!world.host.tool("ip -br link").await.contains("spn-0"));
    });
}

#[test]
fn without_ipv6_on_the_host_everything_else_works() {
    World::play(async |world: World| {
        world.host.tool("sysctl -qw net.ipv6.conf.default.disable_ipv6=1 net.ipv6.conf.all.disable_ipv6=1").await;
        let network = world.open("sampan").await;
        let a = Pod::start(&network, "aaaaaaaaaaaaaaaa", &[port("8080:80")]).await;
        assert_eq!(a.attachment.ipv6, None);
        assert!(world.internet.tcp(HOST4, 8080).await.is_ok());
        assert!(world.host.tcp("127.0.0.1", 8080).await.is_ok());
        network.reconcile(&keep(&[])).await.expect("reconcile");
        network.close().await.expect("close");
    });
}

#[test]
fn many_attach_and_die_at_once() {
    World::play(async |world: World| {
        let network = world.open("sampan").await;
        let pods: Vec<_> = (0..40).map(|index| (format!("{index:02x}").repeat(8), world::Namespace::new())).collect();
        let attached =
            futures_util::future::join_all(pods.iter().map(|(id, namespace)| namespace.attach_to(&network, id, &[])))
                .await;
        let addresses: std::collections::HashSet<_> = attached
            .into_iter()
            .map(|result| result.unwrap_or_else(|error| panic!("{}", explain(&error))).ipv4)
            .collect();
        assert_eq!(addresses.len(), pods.len());
        let ids: Vec<_> = pods.iter().map(|(id, _)| id.clone()).collect();
        drop(pods);
        for id in &ids {
            network.detach(id).await.expect("detach");
        }
        // Their cables went with their namespaces, or go now: there is nothing to say of addresses any more.
        let removed = network.reconcile(&keep(&[])).await.expect("reconcile");
        assert!(removed.iter().all(|line| line.starts_with("interface ")), "{removed:?}");
        assert!(!world.host.tool("ip -br link show type veth").await.contains("spn-"));
    });
}
