//! Ports of this machine that lead inside, by kubectl in both of its dialects and by our own client.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sampan_e2e::claims;
use sampan_e2e::harness::call::Call;
use sampan_e2e::harness::wait::eventually;
use sampan_e2e::service::Service;

/// One request and the whole answer.
fn get(port: u16) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /page HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn answers(port: u16) -> Result<()> {
    let page = eventually("the forwarded port answers", || Ok(get(port).ok().filter(|page| !page.is_empty())))?;
    ensure!(page.contains("over the loopback"), "{page}");
    // Large answers come whole, and several at a time.
    let sizes: Vec<Result<usize>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| Ok(get_large(port)?.len()))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Ok(0))).collect()
    });
    for size in sizes {
        ensure!(size? > 1 << 20, "a large answer is cut");
    }
    Ok(())
}

fn get_large(port: u16) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(b"GET /large HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("a large answer")?;
    Ok(answer)
}

pub(crate) fn ports_are_forwarded_to_the_loopback_inside(service: &Service) -> Result<()> {
    service.background(
        "harbour",
        "mkdir /www; cd /www; echo over the loopback > page; dd if=/dev/zero of=large bs=1M count=1 2>/dev/null; \
         exec httpd -f -p 127.0.0.1:8080",
    )?;
    service.kubectl(["wait", "--for=condition=Ready", "pod/harbour", "--timeout=30s"]).ok()?;
    let forward = |call: Call, port: u16| -> Result<()> {
        let running = call.start()?;
        let outcome = answers(port);
        drop(running);
        outcome
    };
    let port = claims::port()?;
    let words = |port: u16| ["port-forward".to_owned(), "pod/harbour".to_owned(), format!("{port}:8080")];
    forward(service.kubectl(words(port)), port).context("by kubectl over WebSocket")?;
    let port = claims::port()?;
    let spdy = service.kubectl(words(port)).env("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false");
    forward(spdy, port).context("by kubectl over SPDY")?;
    let port = claims::port()?;
    let pair = format!("{port}:8080");
    forward(service.sampan(["port-forward", "harbour", &pair]), port).context("by sampan")?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let pair = format!("{}:8080", taken.local_addr()?.port());
    service.sampan(["port-forward", "harbour", &pair]).finish()?.fails_with(1, &["in use", "another port"])?;
    service.sampan(["port-forward", "nobody", "8080"]).finish()?.fails_with(1, &["nobody", "no such instance"])?;
    service.remove(["harbour"])
}
