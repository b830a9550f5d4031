//! Forwarded ports over SPDY/3.1.
//!
//! For each connection the client opens two streams with the same header `requestid`: `error`, on which it says nothing
//! and hears why a connection failed, and `data`. The pair is complete with its second stream; then a task of its own
//! connects to the port in the pod and carries bytes until the pod's side ends. A client that stops sending on `data` has
//! half-closed it and may still read.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::frame::Frame;
use super::headers::Inflater;
use super::{Frames, Outgoing, write_all};
use crate::forward::PortConnector;
use crate::limits::{CHUNK_BYTES, CONNECT_DEADLINE, QUEUE_MAX, SPDY_FORWARD_STREAMS_MAX};

/// Serves one client until it is gone.
pub(crate) async fn serve<C>(connection: C, ports: &[u16], connector: Arc<dyn PortConnector>)
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (read, write) = tokio::io::split(connection);
    let (outgoing, queue) = mpsc::channel(QUEUE_MAX);
    let forwarder = Forwarder {
        inflater: Inflater::new(),
        ports: ports.to_vec(),
        halves: HashMap::new(),
        streams: HashMap::new(),
        connections: JoinSet::new(),
        connector,
        outgoing,
    };
    let reading = forwarder.run(Frames::new(read));
    let (read, written) = tokio::join!(reading, write_all(write, queue));
    if let Err(error) = read.and(written) {
        tracing::debug!(%error, "a client of forwarded ports went away");
    }
}

/// What a stream's headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Error,
    Data,
}

/// The first stream of a pair.
#[derive(Debug, Clone, Copy)]
struct Half {
    stream: u32,
    kind: Kind,
    port: u16,
}

/// An open stream.
struct Stream {
    /// Where its bytes go; none for an error stream, or once the client has sent its last.
    input: Option<mpsc::Sender<Bytes>>,
    /// What carries it, and the stream that hears of errors.
    task: Option<(AbortHandle, u32)>,
}

struct Forwarder {
    inflater: Inflater,
    ports: Vec<u16>,
    /// By `requestid`.
    halves: HashMap<String, Half>,
    streams: HashMap<u32, Stream>,
    /// Each gives back its pair's streams when it ends. Dropping the set ends them all.
    connections: JoinSet<[u32; 2]>,
    connector: Arc<dyn PortConnector>,
    outgoing: mpsc::Sender<Outgoing>,
}

impl Forwarder {
    async fn run<C: AsyncRead + AsyncWrite>(mut self, mut frames: Frames<C>) -> io::Result<()> {
        loop {
            let frame = tokio::select! {
                frame = frames.next() => frame,
                Some(ended) = self.connections.join_next(), if !self.connections.is_empty() => {
                    ended.iter().flatten().for_each(|stream| drop(self.streams.remove(stream)));
                    continue;
                }
            };
            match frame {
                Ok(Frame::Goodbye) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                frame => self.take(frame?).await?,
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> io::Result<()> {
        match frame {
            Frame::OpenStream { stream, headers } => {
                let headers = self.inflater.headers(&headers)?;
                self.open(stream, &headers).await
            }
            Frame::Headers { headers } => self.inflater.headers(&headers).map(drop),
            Frame::Ping(id) => self.send(Outgoing::Pong(id)).await,
            Frame::Data { stream, bytes, last } => {
                let Some(open) = self.streams.get_mut(&stream) else { return Ok(()) };
                if let Some(input) = open.input.as_ref().filter(|_| !bytes.is_empty()) {
                    // A connection that has ended takes nothing more.
                    drop(input.send(bytes).await);
                }
                if last {
                    open.input = None;
                }
                Ok(())
            }
            Frame::Reset(stream) => {
                let Some((task, error)) = self.streams.remove(&stream).and_then(|stream| stream.task) else {
                    return Ok(());
                };
                task.abort();
                self.streams.remove(&error);
                self.send(Outgoing::Data { stream: error, bytes: Bytes::new(), last: true }).await
            }
            Frame::Goodbye | Frame::Other => Ok(()),
        }
    }

    async fn open(&mut self, stream: u32, headers: &[(String, String)]) -> io::Result<()> {
        let header = |wanted: &str| {
            headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.as_str())
        };
        let kind = match header("streamtype") {
            Some("error") => Some(Kind::Error),
            Some("data") => Some(Kind::Data),
            _ => None,
        };
        let port = header("port").and_then(|port| port.parse::<u16>().ok()).filter(|port| *port != 0);
        let port = port.filter(|port| self.ports.is_empty() || self.ports.contains(port));
        let known = self.streams.contains_key(&stream) || self.streams.len() >= SPDY_FORWARD_STREAMS_MAX;
        let (Some(kind), Some(port), false) = (kind, port, known) else {
            return self.send(Outgoing::Refuse(stream)).await;
        };
        // The first clients had none; theirs are two streams in a row.
        let request = header("requestid").unwrap_or_default().to_owned();
        self.streams.insert(stream, Stream { input: None, task: None });
        self.send(Outgoing::Reply(stream)).await?;
        match self.halves.remove(&request) {
            Some(half) if half.kind != kind && half.port == port => {
                let (error, data) = if kind == Kind::Data { (half.stream, stream) } else { (stream, half.stream) };
                self.connect(error, data, port);
            }
            _ => drop(self.halves.insert(request, Half { stream, kind, port })),
        }
        Ok(())
    }

    fn connect(&mut self, error: u32, data: u32, port: u16) {
        let (input, inputs) = mpsc::channel(QUEUE_MAX);
        let (connector, outgoing) = (Arc::clone(&self.connector), self.outgoing.clone());
        let task = self.connections.spawn(async move {
            let failure = carry(&*connector, port, data, inputs, &outgoing).await.err();
            let ends = [(error, Bytes::from(failure.unwrap_or_default())), (data, Bytes::new())];
            for (stream, bytes) in ends {
                // The client may have gone.
                drop(outgoing.send(Outgoing::Data { stream, bytes, last: true }).await);
            }
            [error, data]
        });
        if let Some(stream) = self.streams.get_mut(&data) {
            *stream = Stream { input: Some(input), task: Some((task, error)) };
        }
    }

    async fn send(&mut self, outgoing: Outgoing) -> io::Result<()> {
        self.outgoing.send(outgoing).await.map_err(|_closed| io::ErrorKind::BrokenPipe.into())
    }
}

/// Carries one connection until the pod's side ends; the error is what the client reads.
async fn carry(
    connector: &dyn PortConnector,
    port: u16,
    stream: u32,
    mut inputs: mpsc::Receiver<Bytes>,
    outgoing: &mpsc::Sender<Outgoing>,
) -> Result<(), String> {
    let connection = tokio::time::timeout(CONNECT_DEADLINE, connector.connect(port)).await;
    let connection = connection.map_err(|_elapsed| format!("port {port} of the pod does not answer"))??;
    let (mut read, mut write) = tokio::io::split(connection);
    let upload = async {
        while let Some(bytes) = inputs.recv().await {
            if write.write_all(&bytes).await.is_err() {
                break;
            }
        }
        drop(write.shutdown().await);
        std::future::pending::<()>().await;
    };
    let download = async {
        let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
        loop {
            buffer.reserve(CHUNK_BYTES);
            match read.read_buf(&mut buffer).await {
                Ok(0) => return Ok(()),
                Ok(_) => {
                    let bytes = buffer.split().freeze();
                    if outgoing.send(Outgoing::Data { stream, bytes, last: false }).await.is_err() {
                        return Ok(());
                    }
                }
                Err(error) => return Err(format!("port {port} of the pod: {error}")),
            }
        }
    };
    tokio::select! {
        ended = download => ended,
        () = upload => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::{data_head, parse};
    use super::super::headers::tests_support::block;
    use super::*;
    use crate::forward::ByteStream;

    /// Answers in capitals, and refuses port 81.
    struct Shouting;

    #[async_trait::async_trait]
    impl PortConnector for Shouting {
        async fn connect(&self, port: u16) -> Result<Box<dyn ByteStream>, String> {
            if port == 81 {
                return Err("nobody listens".to_owned());
            }
            let (ours, mut theirs) = tokio::io::duplex(64);
            tokio::spawn(async move {
                let mut heard = Vec::new();
                theirs.read_to_end(&mut heard).await.expect("a whole request");
                theirs.write_all(&heard.to_ascii_uppercase()).await.expect("an answer");
            });
            Ok(Box::new(ours))
        }
    }

    fn open(stream: u32, block: &[u8]) -> Vec<u8> {
        let length = u32::try_from(block.len() + 10).expect("short");
        let mut frame = vec![0x80, 3, 0, 1];
        frame.extend(length.to_be_bytes());
        frame.extend(stream.to_be_bytes());
        frame.extend([0; 6]);
        frame.extend(block);
        frame
    }

    async fn ask(port: &str, allowed: &[u16]) -> (String, String, usize) {
        let (client, server) = tokio::io::duplex(1 << 16);
        let allowed = allowed.to_vec();
        let serving = tokio::spawn(async move { serve(server, &allowed, Arc::new(Shouting)).await });
        let (read, mut write) = tokio::io::split(client);
        let headers = |kind| [("streamtype", kind), ("port", port), ("requestid", "7")];
        let mut blocks = block(&[&headers("error"), &headers("data")]).into_iter();
        let mut request = open(1, &blocks.next().expect("two blocks"));
        request.extend(data_head(1, 0, true));
        request.extend(open(3, &blocks.next().expect("two blocks")));
        request.extend(data_head(3, 5, false));
        request.extend(b"hello");
        request.extend(data_head(3, 0, true));
        write.write_all(&request).await.expect("sent");
        let mut frames = Frames::new(read);
        let (mut said, mut ended, mut refused) = ([Vec::new(), Vec::new()], 0, 0);
        while ended + refused < 2 {
            match frames.next().await.expect("a frame") {
                Frame::Data { stream, bytes, last } => {
                    said[usize::from(stream == 3)].extend_from_slice(&bytes);
                    ended += usize::from(last);
                }
                Frame::Reset(_) => refused += 1,
                _ => {}
            }
        }
        drop((frames, write));
        serving.await.expect("the server ends with its client");
        let [error, data] = said.map(|bytes| String::from_utf8(bytes).expect("text"));
        (error, data, refused)
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_a_half_closed_client_still_reads() {
        assert_eq!(ask("80", &[]).await, (String::new(), "HELLO".to_owned(), 0));
    }

    #[tokio::test]
    async fn a_failed_connection_says_why() {
        assert_eq!(ask("81", &[]).await, ("nobody listens".to_owned(), String::new(), 0));
    }

    #[tokio::test]
    async fn ports_that_were_not_asked_for_are_refused() {
        assert_eq!(ask("80", &[8080]).await.2, 2);
        assert_eq!(ask("no number", &[]).await.2, 2);
    }

    #[test]
    fn a_head_is_not_a_frame_yet() {
        let mut buffer = BytesMut::from(&data_head(3, 5, false)[..]);
        assert_eq!(parse(&mut buffer).expect("no error"), None);
    }
}
