//! Rates against the real kernel, with real TCP between namespaces. Needs root; see `world`.

#[expect(unreachable_pub, dead_code, reason = "a module of several tests")]
mod world;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use sampan_network::{AttachOptions, Attachment, Bandwidth, Network, Rate};
use world::{HOST4, INTERNET4, Namespace, World, explain};

/// What a bucket holds at the start is gone after this time.
const SETTLING: Duration = Duration::from_millis(700);
const MEASURED: Duration = Duration::from_millis(2500);
const TOLERANCE: f64 = 0.05;
/// The annotations count IP packets; of each of the uplink's 1450 bytes, 52 are IPv4's and TCP's headers.
const PACKET_PER_PAYLOAD: f64 = 1450.0 / (1450.0 - 52.0);

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

/// Bits a second that TCP carries from one namespace to an address in another, once it has settled.
async fn carried(from: &Namespace, to: &Namespace, address: &str, settling: Duration) -> f64 {
    let listener = to.run(|| TcpListener::bind("0.0.0.0:0").expect("bind")).await;
    let target = SocketAddr::new(address.parse().expect("address"), listener.local_addr().expect("port").port());
    let receiving = std::thread::spawn(move || {
        let (mut stream, _peer) = listener.accept().expect("accept");
        let mut buffer = vec![0; 256 << 10];
        let begun = Instant::now();
        while begun.elapsed() < settling {
            assert!(stream.read(&mut buffer).expect("read") > 0);
        }
        let (measured, mut bytes) = (Instant::now(), 0);
        while measured.elapsed() < MEASURED {
            bytes += stream.read(&mut buffer).expect("read");
        }
        bytes as f64 * 8.0 * PACKET_PER_PAYLOAD / measured.elapsed().as_secs_f64()
    });
    from.run(move || {
        let mut stream = TcpStream::connect(target).expect("connect");
        let block = vec![7; 256 << 10];
        while stream.write_all(&block).is_ok() {}
    })
    .await;
    receiving.join().expect("receiver")
}

/// A machine that is busy with other things measures wrongly now and then; a rate that is wrong is so every time.
async fn assert_carries(bits: u64, what: &str, from: &Namespace, to: &Namespace, address: &str) {
    let mut parts = Vec::new();
    for _ in 0..4 {
        let measured = carried(from, to, address, SETTLING).await;
        let part = measured / bits as f64;
        eprintln!("{what}: {:.2} Mbit/s of {:.2} ({:.1} %)", measured / 1e6, bits as f64 / 1e6, part * 100.0);
        if (part - 1.0).abs() <= TOLERANCE {
            return;
        }
        parts.push(part);
    }
    panic!("{what}: {parts:?} of {bits} bit/s");
}

#[test]
fn both_directions_are_as_fast_as_they_should_be() {
    World::play(async |world: World| {
        let network = world.open("sampan").await;
        for (id, bits) in [("slow", 4_000_000), ("usual", 50_000_000), ("fast", 300_000_000)] {
            let pod = limited(&network, id, Some(bits), Some(bits)).await;
            let neighbour = limited(&network, &format!("{id}-2"), None, None).await;
            assert_carries(bits, "to the host", &pod.inside, &world.host, HOST4).await;
            assert_carries(bits, "from the host", &world.host, &pod.inside, &pod.address()).await;
            assert_carries(bits, "from a neighbour", &neighbour.inside, &pod.inside, &pod.address()).await;
            assert_carries(bits, "to the world", &pod.inside, &world.internet, INTERNET4).await;
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
    World::play(async |world: World| {
        let network = world.open("sampan").await;
        let pod = limited(&network, "hostile", None, Some(BITS)).await;
        assert!(pod.inside.tool("tc qdisc show dev eth0").await.contains("tbf"), "its own bucket");
        pod.inside.tool("tc qdisc delete dev eth0 root").await;
        assert!(!pod.inside.tool("tc qdisc show dev eth0").await.contains("tbf"), "its bucket is gone");
        // The policer's bucket holds a second's worth, which has to be spent first.
        let policed = carried(&pod.inside, &world.host, HOST4, Duration::from_secs(4)).await;
        eprintln!("policed: {:.2} Mbit/s", policed / 1e6);
        assert!(policed <= BITS as f64 * (1.0 + TOLERANCE), "{policed:.0} bit/s where {BITS} are allowed");
        world.host.tool("nft delete table inet sampan-rates").await;
        let free = carried(&pod.inside, &world.host, HOST4, SETTLING).await;
        assert!(free > BITS as f64 * 4.0, "{free:.0} bit/s without any limit: the test shows nothing");
        network.mend().await.expect("mend");
        let again = carried(&pod.inside, &world.host, HOST4, Duration::from_secs(4)).await;
        assert!(again <= BITS as f64 * (1.0 + TOLERANCE), "{again:.0} bit/s after the policer was put back");
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
        assert_carries(BITS, "after a restart", &world.host, &pod.inside, &pod.address()).await;
        network.detach("stays").await.expect("detach");
        assert!(!world.host.tool("nft list table inet sampan-rates").await.contains("chain"), "a chain stays");
        network.close().await.expect("close");
        assert!(!world.host.tool("nft list tables").await.contains("sampan"), "a table stays");
    });
}
