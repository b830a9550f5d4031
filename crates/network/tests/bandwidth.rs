//! Rates against the real kernel, with real TCP between namespaces. Needs root; see `world`.
//!
//! How fast something is depends on what else the machine does; what it may not be faster than does not. So these tests read what
//! a bucket is set to, have more pass than it holds, and hold its own counters to the bound that it promises at any load: no
//! more than it held at first and what time has brought. How much of its rate TCP gets is for benchmarks.

#[expect(unreachable_pub, dead_code, reason = "a module of several tests")]
mod world;

use std::io::Read as _;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use sampan_network::{AttachOptions, Attachment, Bandwidth, Network, Rate};
use serde_json::Value;
use world::{HOST4, INTERNET4, Namespace, World, explain};

/// The uplink's, which cables take over, and what a frame has beside its packet.
const MTU: u64 = 1450;
const ETHERNET_HEADER: u64 = 14;
/// The kernel counts time in ticks of 64 ns and rates in fixed point.
const ROUNDING: f64 = 1.001;
/// Nothing comes for this long: it will not come.
const STUCK: Duration = Duration::from_secs(30);

struct Limited {
    inside: Namespace,
    attachment: Attachment,
}

async fn limited(network: &Network, id: &str, ingress: Option<u64>, egress: Option<u64>) -> Limited {
    let rate = |bits: Option<u64>| bits.and_then(Rate::from_bits_per_second);
    let options = AttachOptions {
        bandwidth: Bandwidth { ingress: rate(ingress), egress: rate(egress) },
        ..AttachOptions::default()
    };
    let inside = Namespace::new();
    let attached = inside.attach_with(network, id, &options).await;
    Limited { inside, attachment: attached.unwrap_or_else(|error| panic!("{}", explain(&error))) }
}

impl Limited {
    fn address(&self) -> String {
        self.attachment.addresses()[0].to_string()
    }
}

/// Has TCP carry this many bytes from one namespace to an address in another; how long it took, from before it began.
async fn carry(bytes: u64, from: &Namespace, to: &Namespace, address: &str) -> Duration {
    let listener = to.run(|| TcpListener::bind("0.0.0.0:0").expect("bind")).await;
    let target = SocketAddr::new(address.parse().expect("address"), listener.local_addr().expect("port").port());
    let begun = Instant::now();
    let receiving = std::thread::spawn(move || {
        let (mut stream, _peer) = listener.accept().expect("accept");
        stream.set_read_timeout(Some(STUCK)).expect("a limit");
        std::io::copy(&mut stream, &mut std::io::sink()).expect("read")
    });
    from.run(move || {
        let mut stream = TcpStream::connect(target).expect("connect");
        std::io::copy(&mut std::io::repeat(7).take(bytes), &mut stream).expect("write");
        stream.shutdown(Shutdown::Write).expect("end");
    })
    .await;
    assert_eq!(receiving.join().expect("receiver"), bytes);
    begun.elapsed()
}

/// A token bucket as the kernel tells of it.
#[derive(Debug)]
struct Bucket {
    bytes_per_second: u64,
    burst: u64,
    /// Until now.
    sent: u64,
    /// How often something had to wait.
    waits: u64,
}

impl Bucket {
    async fn on(interface: &str, of: &Namespace) -> Self {
        let text = of.tool(&format!("tc -j -s qdisc show dev {interface}")).await;
        let all: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(all[0]["kind"], "tbf", "{text}");
        let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("a number: {text}"));
        let options = &all[0]["options"];
        Self {
            bytes_per_second: number(&options["rate"]),
            burst: number(&options["burst"]),
            sent: number(&all[0]["bytes"]),
            waits: number(&all[0]["overlimits"]),
        }
    }
}

/// What passes a bucket of this rate, which is on an interface of `at`, passes as slowly as it must.
async fn assert_bound(bits: u64, interface: &str, at: &Namespace, from: &Namespace, to: &Namespace, address: &str) {
    let begun = Instant::now();
    let before = Bucket::on(interface, at).await;
    assert_eq!(before.bytes_per_second, bits / 8 * (MTU + ETHERNET_HEADER) / MTU, "rates count packets");
    let bytes = bits / 16;
    assert!(before.burst * 8 < bytes, "the bucket holds most of it: {before:?}");
    carry(bytes, from, to, address).await;
    let after = Bucket::on(interface, at).await;
    let passed = after.sent - before.sent;
    let most = before.burst as f64 + before.bytes_per_second as f64 * begun.elapsed().as_secs_f64() * ROUNDING;
    eprintln!("{interface}: {passed} bytes, at most {most:.0}, {} waits", after.waits - before.waits);
    assert!(passed > bytes, "it went another way: {before:?} {after:?}");
    assert!(after.waits > before.waits, "nothing waited: {before:?} {after:?}");
    assert!(passed as f64 <= most, "{passed} bytes where {most:.0} are allowed");
}

#[test]
fn both_directions_are_as_slow_as_they_should_be() {
    World::play(async |world: World| {
        let network = world.open("sampan").await;
        for (id, bits) in [("slow", 4_000_000), ("usual", 50_000_000), ("fast", 300_000_000)] {
            let pod = limited(&network, id, Some(bits), Some(bits)).await;
            let neighbour = limited(&network, &format!("{id}-2"), None, None).await;
            let (outer, inside, address) = (pod.attachment.host_interface.clone(), &pod.inside, pod.address());
            assert_bound(bits, "eth0", inside, inside, &world.host, HOST4).await;
            assert_bound(bits, "eth0", inside, inside, &world.internet, INTERNET4).await;
            assert_bound(bits, &outer, &world.host, &world.host, inside, &address).await;
            assert_bound(bits, &outer, &world.host, &neighbour.inside, inside, &address).await;
            for id in [id.to_owned(), format!("{id}-2")] {
                network.detach(&id).await.expect("detach");
            }
        }
    });
}

/// The control is in the middle: what takes the bucket away does take it away, and a pod without a policer is then free.
#[test]
fn a_root_inside_cannot_make_itself_faster() {
    const BITS: u64 = 40_000_000;
    const BYTES_PER_SECOND: u64 = BITS / 8;
    /// The policer's bucket holds a second's worth and one burst, and one packet that a sender has left to be cut.
    const HELD: u64 = BYTES_PER_SECOND + BYTES_PER_SECOND / 50 + (64 << 10);
    /// What it takes at least to pass is less than this only where nobody limits it.
    const BYTES: u64 = 4 * BYTES_PER_SECOND;
    let least = Duration::from_secs_f64((BYTES - HELD) as f64 / BYTES_PER_SECOND as f64 / ROUNDING);
    World::play(async |world: World| {
        let network = world.open("sampan").await;
        let pod = limited(&network, "hostile", None, Some(BITS)).await;
        assert!(pod.inside.tool("tc qdisc show dev eth0").await.contains("tbf"), "its own bucket");
        pod.inside.tool("tc qdisc delete dev eth0 root").await;
        assert!(!pod.inside.tool("tc qdisc show dev eth0").await.contains("tbf"), "its bucket is gone");
        let policed = carry(BYTES, &pod.inside, &world.host, HOST4).await;
        assert!(policed >= least, "{policed:?} where {least:?} are the least");
        world.host.tool("nft delete table inet sampan-rates").await;
        let free = carry(BYTES, &pod.inside, &world.host, HOST4).await;
        assert!(free < least, "{free:?} without any limit: the test shows nothing");
        network.mend().await.expect("mend");
        let again = carry(BYTES, &pod.inside, &world.host, HOST4).await;
        assert!(again >= least, "{again:?} after the policer was put back, where {least:?} are the least");
    });
}

#[test]
fn rates_outlive_the_daemon_and_leave_nothing_behind() {
    const BITS: u64 = 30_000_000;
    World::play(async |world: World| {
        let network = world.open("sampan").await;
        let pod = limited(&network, "stays", Some(BITS), Some(BITS)).await;
        let gone = limited(&network, "goes", Some(BITS), Some(BITS)).await;
        assert_eq!(world.host.tool("nft list table inet sampan-rates").await.matches("limit rate over").count(), 2);
        drop((network, gone));
        let network = world.open("sampan").await;
        let keep = std::iter::once("stays".to_owned()).collect();
        network.reconcile(&keep).await.expect("reconcile");
        assert_eq!(world.host.tool("nft list table inet sampan-rates").await.matches("limit rate over").count(), 1);
        let outer = pod.attachment.host_interface.clone();
        assert_bound(BITS, &outer, &world.host, &world.host, &pod.inside, &pod.address()).await;
        network.detach("stays").await.expect("detach");
        assert!(!world.host.tool("nft list table inet sampan-rates").await.contains("chain"), "a chain stays");
        network.close().await.expect("close");
        assert!(!world.host.tool("nft list tables").await.contains("sampan"), "a table stays");
    });
}
