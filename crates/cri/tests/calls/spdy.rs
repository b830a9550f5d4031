//! A client of streams over SPDY/3.1, as little of it as a command needs. Headers are deflated without being made smaller,
//! which any inflater takes; what the server's headers say is not read.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::node::PATIENCE;

const _: () = assert!(PATIENCE.as_secs() < 30, "a server waits that long for streams that are not opened");

pub(crate) struct Session {
    connection: TcpStream,
    /// What streams are for, by number.
    streams: HashMap<u32, &'static str>,
    said: HashMap<&'static str, Vec<u8>>,
    /// Streams that the server has ended.
    ended: Vec<&'static str>,
}

impl Session {
    /// Changes protocols at an address that a call gave, and opens these streams.
    pub(crate) async fn open(url: &str, streams: &[&'static str]) -> Result<Self> {
        let (address, path) = url.trim_start_matches("http://").split_once('/').context("a path")?;
        let mut connection = TcpStream::connect(address).await?;
        let request = format!(
            "POST /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n\r\n"
        );
        connection.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(connection.read_u8().await?);
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        ensure!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        let mut session = Self { connection, streams: HashMap::new(), said: HashMap::new(), ended: Vec::new() };
        for (index, kind) in (0_u32..).zip(streams) {
            let id = 2 * index + 1;
            session.connection.write_all(&open_stream(id, kind)).await?;
            session.streams.insert(id, kind);
        }
        Ok(session)
    }

    /// What a stream has carried until now.
    pub(crate) fn text(&self, kind: &str) -> String {
        String::from_utf8_lossy(self.said.get(kind).map(Vec::as_slice).unwrap_or_default()).into_owned()
    }

    pub(crate) async fn say(&mut self, text: &str) -> Result<()> {
        let stdin = self.streams.iter().find(|(_, kind)| **kind == "stdin").context("stdin is not open")?;
        let frame = [&stdin.0.to_be_bytes()[..], &length(text.len())?, text.as_bytes()].concat();
        Ok(self.connection.write_all(&frame).await?)
    }

    pub(crate) async fn read_until(&mut self, kind: &'static str, text: &str) -> Result<()> {
        let reading = async {
            while !self.text(kind).contains(text) {
                self.read_frame().await?;
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, reading).await.with_context(|| format!("{kind} does not say {text:?}"))?
    }

    /// How the command ended.
    pub(crate) async fn read_until_status(&mut self) -> Result<String> {
        let reading = async {
            while !self.ended.contains(&"error") {
                self.read_frame().await?;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, reading).await.context("there is no status")??;
        Ok(self.text("error"))
    }

    async fn read_frame(&mut self) -> Result<()> {
        const CONTROL: u32 = 1 << 31;
        const RESET: u32 = CONTROL | 3 << 16 | 3;
        let (first, second) = (self.connection.read_u32().await?, self.connection.read_u32().await?);
        let mut body = vec![0; usize::try_from(second & 0x00ff_ffff)?];
        self.connection.read_exact(&mut body).await?;
        match self.streams.get(&first) {
            _ if first == RESET => bail!("a stream is refused"),
            Some(kind) => {
                self.said.entry(kind).or_default().extend_from_slice(&body);
                if second >> 24 != 0 {
                    self.ended.push(kind);
                }
            }
            None => ensure!(first & CONTROL != 0, "data on a stream that is not open"),
        }
        Ok(())
    }
}

/// A frame's flags, none, and its length.
fn length(bytes: usize) -> Result<[u8; 4]> {
    Ok(u32::try_from(bytes)?.to_be_bytes())
}

/// SYN_STREAM (draft 3.1, section 2.6.1) with the one header that says what the stream is for.
fn open_stream(id: u32, kind: &str) -> Vec<u8> {
    let name = "streamtype";
    let number = |number: usize| u32::try_from(number).unwrap_or_default().to_be_bytes();
    let headers = [&number(1)[..], &number(name.len()), name.as_bytes(), &number(kind.len()), kind.as_bytes()].concat();
    let stored = u16::try_from(headers.len()).unwrap_or_default();
    // The first of a connection begins zlib's stream (RFC 1950); each is a block that is stored (RFC 1951, section 3.2.4).
    let begin: &[u8] = if id == 1 { &[0x78, 0x01] } else { &[] };
    let block = [begin, &[0], &stored.to_le_bytes(), &(!stored).to_le_bytes(), &headers].concat();
    let length = number(10 + block.len());
    [&[0x80, 3, 0, 1][..], &length, &id.to_be_bytes(), &[0; 6], &block].concat()
}
