//! The link does what it says: it is never faster, no slower than waking up makes it, and its counts are right.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sampan_e2e::link::{Link, Shape};

/// Measured again when another program had the processor; a link that is wrong is wrong every time.
const ATTEMPTS: usize = 8;
/// A link that is too fast favours whoever is measured behind it.
const FASTER_BY_MAX: f64 = 0.04;
/// Timers and threads that wake up late: a quarter of a millisecond is 5 % of the shortest round trip. A delay that is added
/// twice, or a bandwidth that is halved, is more.
const SLOWER_BY_MAX: f64 = 0.4;

/// Answers every byte it is sent with `answer` bytes, on every connection; gives its address.
fn server(answer: usize) -> Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?.to_string();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            std::thread::spawn(move || respond(client, answer));
        }
    });
    Ok(address)
}

fn respond(mut client: TcpStream, answer: usize) {
    let (mut asked, body) = ([0; 1], vec![7; answer]);
    while client.read_exact(&mut asked).is_ok() && client.write_all(&body).is_ok() {}
}

/// Asks once and reads the whole answer.
fn ask(stream: &mut TcpStream, answer: usize) -> Result<Duration> {
    let mut body = vec![0; answer];
    let begin = Instant::now();
    stream.write_all(b"?")?;
    stream.read_exact(&mut body)?;
    Ok(begin.elapsed())
}

/// Insists that one of several measurements is what it should be, and that none is better than that.
fn is_about(what: &str, expected: Duration, mut measure: impl FnMut() -> Result<Duration>) -> Result<()> {
    let mut seen = Vec::new();
    for _ in 0..ATTEMPTS {
        let ratio = measure()?.as_secs_f64() / expected.as_secs_f64();
        ensure!(ratio > 1.0 - FASTER_BY_MAX, "{what}: {ratio:.3} of what it should be");
        if ratio < 1.0 + SLOWER_BY_MAX {
            return Ok(());
        }
        seen.push(format!("{ratio:.3}"));
    }
    anyhow::bail!("{what}: {} of what it should be", seen.join(", "))
}

#[test]
fn a_round_trip_takes_as_long_as_it_should() -> Result<()> {
    for shape in [Shape::new(20, None), Shape::new(5, Some(200))] {
        let link = Link::to(&server(1)?, shape)?;
        let begin = Instant::now();
        let mut stream = TcpStream::connect(link.address())?;
        stream.set_nodelay(true)?;
        ask(&mut stream, 1)?;
        // The first question also waits for the handshake.
        ensure!(begin.elapsed() >= 2 * shape.round_trip, "the handshake is free: {:?}", begin.elapsed());
        is_about(&shape.to_string(), shape.round_trip, || {
            let best = (0..10).map(|_| ask(&mut stream, 1)).collect::<Result<Vec<_>>>()?;
            best.into_iter().min().context("ten are not none")
        })?;
    }
    Ok(())
}

#[test]
fn bandwidth_is_shared_and_as_wide_as_it_should_be() -> Result<()> {
    for (shape, bytes) in [(Shape::new(5, Some(200)), 8 << 20), (Shape::new(20, Some(24)), 1 << 20)] {
        let link = Link::to(&server(bytes)?, shape)?;
        for streams in [1, 3] {
            let bits = (streams * bytes * 8) as f64;
            // One round trip for the handshake, one for the question.
            let on_the_line = Duration::from_secs_f64(bits / shape.bits_per_second.unwrap_or(1) as f64);
            let expected = 2 * shape.round_trip + on_the_line;
            is_about(&format!("{shape} with {streams}"), expected, || {
                let begin = Instant::now();
                let mut open: Vec<TcpStream> =
                    (0..streams).map(|_| TcpStream::connect(link.address())).collect::<Result<_, _>>()?;
                let done: Vec<Result<Duration>> = std::thread::scope(|scope| {
                    let asked: Vec<_> = open.iter_mut().map(|stream| scope.spawn(move || ask(stream, bytes))).collect();
                    asked.into_iter().map(|asked| asked.join().unwrap_or_else(|_| anyhow::bail!("it panics"))).collect()
                });
                done.into_iter().collect::<Result<Vec<_>>>()?;
                Ok(begin.elapsed())
            })?;
        }
    }
    Ok(())
}

#[test]
fn what_passes_is_counted_until_a_marker() -> Result<()> {
    const HEAD: &[u8] = b"GET /v2/ HTTP/1.1\r\nhost: there\r\n\r\n";
    for shape in [Shape::NONE, Shape::new(2, Some(500))] {
        let link = Link::to(&server(100)?, shape)?;
        let mut stream = TcpStream::connect(link.address())?;
        let mut answer = vec![0; 100 * HEAD.len()];
        let ask_three = |stream: &mut TcpStream, answer: &mut [u8]| -> Result<()> {
            for _ in 0..3 {
                stream.write_all(HEAD)?;
                stream.read_exact(answer)?;
            }
            Ok(())
        };
        ask_three(&mut stream, &mut answer)?;
        let marker = link.counts();
        let expected = (3 * answer.len() as u64, 3 * HEAD.len() as u64, 3, 1);
        assert_eq!((marker.down_bytes, marker.up_bytes, marker.requests, marker.connections), expected);
        ask_three(&mut stream, &mut answer)?;
        let since = link.counts() - marker;
        assert_eq!((since.down_bytes, since.requests, since.connections), (expected.0, 3, 0));
        drop(link);
        assert!(stream.read_exact(&mut answer).is_err(), "a link that is gone carries on");
    }
    Ok(())
}
