//! Addresses, names, published ports and the way out.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sampan_e2e::claims;
use sampan_e2e::fixtures::debian;
use sampan_e2e::harness::call::Call;
use sampan_e2e::harness::pod::text;
use sampan_e2e::harness::wait::eventually;
use sampan_e2e::leaks::{self, Traces};
use sampan_e2e::service::Service;

const PATIENCE: Duration = Duration::from_secs(5);

/// One HTTP request without a client library; the whole answer.
fn get(address: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: test\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

pub(crate) fn nginx_answers_on_a_published_port(service: &Service) -> Result<()> {
    const HELLO: &str = "Hello from nginx in Sampan";
    let image = service.image("nginx:1", debian::nginx)?;
    let port = claims::port()?;
    service.sampan(["run", "-d", "--name", "web", "-p", &format!("{port}:80"), &image]).ok()?;
    let here = SocketAddr::from(([127, 0, 0, 1], port));
    let answer = eventually("nginx answers", || Ok(get(here).ok()))?;
    ensure!(answer.contains(HELLO), "{answer}");
    let pod = service.pod("web")?;
    let ip = text(&pod, "/status/podIP").to_owned();
    ensure!(get(SocketAddr::new(ip.parse()?, 80))?.contains(HELLO), "not at its own address");
    service.background("visitor", "sleep 1000")?;
    let gateway = format!("{}1", service.prefix4);
    for address in [format!("{ip}:80"), format!("{gateway}:{port}")] {
        let page = service.inside("visitor", &format!("wget -q -O - http://{address}/"));
        ensure!(page.with_context(|| format!("from another instance at {address}"))?.contains(HELLO));
    }
    // Its own published port, from inside itself.
    let listed = service.sampan(["ps"]).ok()?;
    ensure!(listed.contains(&format!("{port}->80")), "{listed}");
    let taken = service.sampan(["run", "--rm", "-p", &format!("{port}:80"), &image]).finish()?;
    taken.fails_with(125, &[&port.to_string(), "web"])?;
    ensure!(service.sampan(["logs", "web"]).ok()?.contains("GET / HTTP/1"), "nginx's log is not its output");
    service.remove(["web", "visitor"])?;
    ensure!(get(here).is_err(), "the port answers after its instance is gone");
    Ok(())
}

pub(crate) fn a_start_on_a_taken_port_leaves_nothing(_service: &Service) -> Result<()> {
    let before = Traces::global()?;
    let other = Service::prepare("taken")?;
    let owner = TcpListener::bind(other.listen)?;
    let refused = other.serve().err().context("it serves on a port of somebody else's")?;
    let said = format!("{refused:#}");
    ensure!(said.contains(&other.listen.to_string()) && said.contains("another service"), "{said}");
    leaks::nothing_at_all(&other, &before)?;
    drop(owner);
    other.serve()?;
    other.stop()?;
    leaks::nothing_at_all(&other, &before)
}

pub(crate) fn a_port_can_be_bound_to_one_address_and_to_udp(service: &Service) -> Result<()> {
    let image = service.image("python:numpy", debian::python)?;
    let (tcp, udp) = (claims::port()?, claims::port()?);
    let ports = [format!("127.0.0.1:{tcp}:7"), format!("{udp}:9/udp")];
    let program = "import socket, threading\n\
                   def datagrams():\n    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 9))\n    \
                   while True:\n        data, peer = s.recvfrom(99); s.sendto(data, peer)\n\
                   threading.Thread(target=datagrams).start()\n\
                   s = socket.create_server(('', 7))\n\
                   while True:\n    c, a = s.accept(); c.sendall(b'tcp\\n'); c.close()\n";
    let words = ["run", "-d", "--name", "ports", "-p", &ports[0], "-p", &ports[1], &image, "python3", "-c", program];
    service.sampan(words).ok()?;
    let answer = eventually("the port answers", || {
        let mut text = String::new();
        let stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], tcp)), PATIENCE);
        Ok(stream.and_then(|mut stream| stream.read_to_string(&mut text)).ok().filter(|count| *count > 0).map(|_| text))
    })?;
    assert_eq!(answer, "tcp\n");
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    eventually("the datagram comes back", || {
        socket.send_to(b"ping", ("127.0.0.1", udp))?;
        let mut answer = [0; 16];
        Ok(socket.recv(&mut answer).ok().filter(|count| answer.get(..*count) == Some(b"ping")).map(drop))
    })?;
    service.remove(["ports"])
}

pub(crate) fn instances_have_both_kinds_of_addresses(service: &Service) -> Result<()> {
    service.background("left-side", "sleep 1000")?;
    service.background("right-side", "sleep 1000")?;
    let pod = service.pod("right-side")?;
    let addresses = pod["status"]["podIPs"].as_array().cloned().unwrap_or_default();
    let addresses: Vec<&str> = addresses.iter().map(|entry| text(entry, "/ip")).collect();
    let [four, six] = addresses.as_slice() else { anyhow::bail!("its addresses are {addresses:?}") };
    ensure!(four.starts_with(&service.prefix4) && six.starts_with(&service.prefix6), "{addresses:?}");
    service.inside("left-side", &format!("ping -c 1 -W 5 {four}"))?;
    service.inside("left-side", &format!("ping -6 -c 1 -W 5 {six}"))?;
    let own = service.inside("right-side", "ip address show eth0")?;
    ensure!(own.contains(four) && own.contains(six), "{own}");
    assert_eq!(service.inside("right-side", "wget -q -O - http://127.0.0.1:1 2>&1 | grep -c refused")?, "1");
    service.remove(["left-side", "right-side"])
}

pub(crate) fn names_are_resolved_by_files_of_its_own(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    service.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: named}}\nspec:\n  hostAliases: [{{ip: 10.1.2.3, hostnames: \
         [friend.example]}}]\n  dnsPolicy: None\n  dnsConfig: {{nameservers: [192.0.2.53], searches: [example.org], \
         options: [{{name: ndots, value: \"2\"}}]}}\n  containers:\n  - {{name: main, image: \"{busybox}\", command: \
         [sleep, \"1000\"]}}\n"
    ))?;
    let pod = service.wait_for_phase("named", "Running")?;
    let hosts = service.inside("named", "cat /etc/hosts")?;
    let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    for wanted in [["127.0.0.1", "localhost"], ["10.1.2.3", "friend.example"], [text(&pod, "/status/podIP"), "named"]] {
        ensure!(
            hosts.lines().any(|line| fields(line).starts_with(&wanted.map(str::to_owned))),
            "no {wanted:?}: {hosts}"
        );
    }
    let resolver = service.inside("named", "cat /etc/resolv.conf")?;
    for line in ["nameserver 192.0.2.53", "search example.org", "options ndots:2"] {
        ensure!(resolver.lines().any(|found| found == line), "no {line:?}: {resolver}");
    }
    service.remove(["named"])?;
    // By default: what the host has, without the servers that only the host itself can reach.
    let resolver = service.sampan(["run", "--rm", &busybox, "cat", "/etc/resolv.conf"]).ok()?;
    ensure!(!resolver.contains("nameserver 127."), "{resolver}");
    Ok(())
}

/// A network behind the host that only the host is in: a namespace at the other end of a cable.
struct Outside {
    name: String,
}

impl Outside {
    fn new(service: &Service, address: &str, host: &str) -> Result<Self> {
        let name = format!("{}-out", service.instance);
        let interface = format!("o{}", std::process::id());
        let outside = Self { name };
        let name = outside.name.as_str();
        for words in [
            &["netns", "add", name][..],
            &["link", "add", &interface, "type", "veth", "peer", "name", "eth0", "netns", name],
            &["address", "add", &format!("{host}/30"), "dev", &interface],
            &["link", "set", &interface, "up"],
            &["-n", name, "address", "add", &format!("{address}/30"), "dev", "eth0"],
            &["-n", name, "link", "set", "eth0", "up"],
            &["-n", name, "link", "set", "lo", "up"],
        ] {
            Call::new("ip").args(words).ok()?;
        }
        Ok(outside)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        if let Err(error) = Call::new("ip").args(["netns", "delete", &self.name]).ok() {
            eprintln!("{error:#}");
        }
    }
}

pub(crate) fn the_way_out_goes_by_the_hosts_address(service: &Service) -> Result<()> {
    let octet = std::process::id() % 250;
    let (address, host) = (format!("10.99.{octet}.2"), format!("10.99.{octet}.1"));
    let outside = Outside::new(service, &address, &host)?;
    // The other end knows no way to the instances: an answer comes back only if the host put its own address in.
    let script = "import socket; s = socket.create_server(('', 80)); print('up', flush=True); c, a = s.accept(); \
                  c.sendall(a[0].encode()); c.close()";
    let server = Call::new("ip").args(["netns", "exec", &outside.name, "python3", "-c", script]).start()?;
    server.output.wait_for("up")?;
    let busybox = service.busybox()?;
    let seen = service.sampan(["run", "--rm", &busybox, "nc", "-w", "5", &address, "80"]).ok()?;
    assert_eq!(seen, host);
    Ok(())
}
