//! A small world for one test: a host, an internet behind it, pods, all network namespaces of the test's own.
//!
//! Needs root. The real host's network is never touched: the thread that plays the host has left it. `ip` and `nft`
//! build the surroundings and look at results; the network under test runs no program.

use std::collections::HashSet;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use sampan_network::{AttachOptions, Attachment, Network, NetworkConfig, NetworkError, PortMapping};
use sampan_sys::namespace;

pub const HOST4: &str = "203.0.113.1";
pub const HOST6: &str = "2001:db8:1::1";
pub const INTERNET4: &str = "203.0.113.2";
pub const INTERNET6: &str = "2001:db8:1::2";
const PATIENCE: Duration = Duration::from_millis(1500);

#[derive(Clone)]
pub struct Namespace(Arc<OwnedFd>);

impl Namespace {
    pub fn new() -> Self {
        Self(Arc::new(namespace::new_network().expect("these tests need root: unshare(CLONE_NEWNET)")))
    }

    /// Runs something inside; it may block.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let this = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || namespace::in_network(this.as_fd(), work).expect("setns"))
            .await
            .expect("work in a namespace")
    }

    pub async fn attach_to(
        &self,
        network: &Network,
        id: &str,
        ports: &[PortMapping],
    ) -> Result<Attachment, NetworkError> {
        let options = AttachOptions { ports: ports.to_vec(), ..AttachOptions::default() };
        self.attach_with(network, id, &options).await
    }

    pub async fn attach_with(
        &self,
        network: &Network,
        id: &str,
        options: &AttachOptions,
    ) -> Result<Attachment, NetworkError> {
        network.attach(id, self.0.as_fd(), options).await
    }

    /// Runs a program inside and gives back what it printed.
    pub async fn tool(&self, line: &str) -> String {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        self.run(move || {
            let output = Command::new(&words[0]).args(&words[1..]).output().expect("program");
            assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
        .await
    }

    /// Serves TCP and UDP on a port until the process ends: the answer is the name and the caller's address.
    pub async fn serve(&self, name: &str, port: u16) {
        self.serve_on(name, SocketAddr::new("::".parse().expect("any"), port)).await;
    }

    pub async fn serve_on(&self, name: &str, address: SocketAddr) {
        let name = name.to_owned();
        let (tcp, udp) = self
            .run(move || (TcpListener::bind(address).expect("bind tcp"), UdpSocket::bind(address).expect("bind udp")))
            .await;
        let answer = move |from: SocketAddr| format!("{name} {}", from.ip().to_canonical());
        let udp_answer = answer.clone();
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut stream = stream.expect("accept");
                let text = answer(stream.peer_addr().expect("peer"));
                drop(stream.write_all(text.as_bytes()));
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 16];
            while let Ok((_length, from)) = udp.recv_from(&mut buffer) {
                drop(udp.send_to(udp_answer(from).as_bytes(), from));
            }
        });
    }

    /// What a server says to a caller from here; or why it says nothing.
    pub async fn tcp(&self, address: &str, port: u16) -> Result<String, std::io::ErrorKind> {
        let to = SocketAddr::new(address.parse().expect("address"), port);
        self.run(move || {
            let ask = || {
                let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                let mut text = String::new();
                stream.read_to_string(&mut text)?;
                Ok(text)
            };
            ask().map_err(|error: std::io::Error| error.kind())
        })
        .await
    }

    pub async fn udp(&self, address: &str, port: u16) -> Result<String, std::io::ErrorKind> {
        let to = SocketAddr::new(address.parse().expect("address"), port);
        self.run(move || {
            let ask = || {
                let socket = UdpSocket::bind(SocketAddr::new(
                    if to.is_ipv4() { "0.0.0.0" } else { "::" }.parse().expect("any"),
                    0,
                ))?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.connect(to)?;
                socket.send(b"hello")?;
                let mut buffer = [0; 128];
                let length = socket.recv(&mut buffer)?;
                Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
            };
            ask().map_err(|error: std::io::Error| error.kind())
        })
        .await
    }
}

/// Host and internet, joined by a cable; the internet knows no way to the pods.
pub struct World {
    pub host: Namespace,
    pub internet: Namespace,
    pub state: tempfile::TempDir,
    /// On a tmpfs, as a service's run directory is.
    run: tempfile::TempDir,
}

impl World {
    /// Plays a test on a thread that is the host. Its runtime has that one thread, so that sockets made by tasks
    /// are the host's.
    pub fn play<F: Future<Output = ()>>(test: impl FnOnce(World) -> F + Send) {
        namespace::in_new_network(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let host = Namespace(Arc::new(namespace::current_network().expect("own namespace")));
                let world = World {
                    host,
                    internet: Namespace::new(),
                    state: tempfile::tempdir().expect("directory"),
                    run: tempfile::tempdir_in("/dev/shm").expect("directory on a tmpfs"),
                };
                world.join().await;
                test(world).await;
            });
        })
        .expect("these tests need root: unshare(CLONE_NEWNET)");
    }

    async fn join(&self) {
        use std::os::fd::AsRawFd;
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.internet.0.as_raw_fd());
        self.host.tool("ip link set lo up").await;
        self.host.tool(&format!("ip link add up0 mtu 1450 type veth peer name eth0 netns {path}")).await;
        self.host.tool(&format!("ip addr add {HOST4}/24 dev up0")).await;
        self.host.tool(&format!("ip addr add {HOST6}/64 dev up0 nodad")).await;
        self.host.tool("ip link set up0 up").await;
        self.internet.tool("ip link set lo up").await;
        self.internet.tool(&format!("ip addr add {INTERNET4}/24 dev eth0")).await;
        self.internet.tool(&format!("ip addr add {INTERNET6}/64 dev eth0 nodad")).await;
        self.internet.tool("ip link set eth0 up").await;
        self.host.tool(&format!("ip route add default via {INTERNET4}")).await;
        self.host.tool(&format!("ip route add default via {INTERNET6}")).await;
    }

    pub fn config(&self, instance: &str) -> NetworkConfig {
        let mut config = NetworkConfig::new(instance, self.state.path().join(instance));
        config.lease_dir = self.lease_dir(instance);
        config
    }

    pub fn lease_dir(&self, instance: &str) -> PathBuf {
        self.run.path().join(instance)
    }

    pub async fn open(&self, instance: &str) -> Network {
        Network::open(self.config(instance)).await.unwrap_or_else(|error| panic!("open: {}", explain(&error)))
    }
}

/// A pod: its namespace, what it got, and a server on port 80 that says its name.
pub struct Pod {
    pub id: String,
    pub inside: Namespace,
    pub attachment: Attachment,
}

impl Pod {
    pub async fn start(network: &Network, id: &str, ports: &[PortMapping]) -> Self {
        let pod = Self::try_start(network, id, ports).await.unwrap_or_else(|error| panic!("{id}: {}", explain(&error)));
        pod.inside.serve(id, 80).await;
        pod
    }

    pub async fn try_start(network: &Network, id: &str, ports: &[PortMapping]) -> Result<Self, NetworkError> {
        let inside = Namespace::new();
        let attachment = inside.attach_to(network, id, ports).await?;
        Ok(Self { id: id.to_owned(), inside, attachment })
    }

    pub fn ipv4(&self) -> String {
        self.attachment.ipv4.expect("an IPv4 address").to_string()
    }

    pub fn ipv6(&self) -> String {
        self.attachment.ipv6.expect("the host has IPv6").to_string()
    }
}

/// `8080:80` or `127.0.0.1:8080:80`, with `/udp` at the end where it is that.
pub fn port(text: &str) -> PortMapping {
    let (text, protocol) = match text.strip_suffix("/udp") {
        Some(text) => (text, sampan_network::Protocol::Udp),
        None => (text, sampan_network::Protocol::Tcp),
    };
    let (rest, container_port) = text.rsplit_once(':').expect("container port");
    let (host_ip, host_port) = match rest.rsplit_once(':') {
        Some((ip, port)) => (Some(ip.parse::<IpAddr>().expect("address")), port),
        None => (None, rest),
    };
    PortMapping {
        host_ip,
        host_port: host_port.parse().expect("host port"),
        container_port: container_port.parse().expect("container port"),
        protocol,
    }
}

pub fn keep(pods: &[&Pod]) -> HashSet<String> {
    pods.iter().map(|pod| pod.id.clone()).collect()
}

/// An error with its causes.
pub fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
