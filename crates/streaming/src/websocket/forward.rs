//! Forwarded ports over WebSocket: SPDY inside messages, or two channels for each port.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::forward::PortConnector;
use crate::limits::{CHUNK_BYTES, CONNECT_DEADLINE, MESSAGE_BYTES_MAX, QUEUE_MAX};
use crate::spdy;

async fn accept<C: AsyncRead + AsyncWrite + Unpin>(connection: C) -> WebSocketStream<C> {
    let mut config = WebSocketConfig::default();
    config.max_message_size = Some(MESSAGE_BYTES_MAX);
    config.max_frame_size = Some(MESSAGE_BYTES_MAX);
    WebSocketStream::from_raw_socket(connection, Role::Server, Some(config)).await
}

/// The bytes of the client's messages are a SPDY connection, and so are ours.
pub(crate) async fn tunnel<C>(connection: C, ports: &[u16], connector: Arc<dyn PortConnector>)
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sink, mut stream) = accept(connection).await.split();
    let (inside, outside) = tokio::io::duplex(2 * CHUNK_BYTES);
    let (mut from_inside, mut to_inside) = tokio::io::split(outside);
    let receive = async {
        while let Some(Ok(message)) = stream.next().await {
            let sent = match message {
                Message::Binary(bytes) => to_inside.write_all(&bytes).await,
                Message::Close(_) => break,
                _ => Ok(()),
            };
            if sent.is_err() {
                break;
            }
        }
        drop(to_inside.shutdown().await);
    };
    let send = async {
        let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
        loop {
            buffer.reserve(CHUNK_BYTES);
            match from_inside.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {
                    if sink.send(Message::Binary(buffer.split().freeze())).await.is_err() {
                        break;
                    }
                }
            }
        }
        // The client may have gone first.
        drop(sink.send(Message::Close(None)).await);
    };
    let converse = async { tokio::join!(spdy::forward::serve(inside, ports, connector), send) };
    tokio::pin!(converse);
    tokio::select! {
        _ = &mut converse => {}
        () = receive => drop(converse.await),
    }
}

/// Port `n` of the list has channel 2n for its bytes and 2n + 1 for what went wrong; each begins with the port's number,
/// two bytes, little-endian. There is one connection to each port, made at once.
pub(crate) async fn channels<C>(connection: C, ports: &[u16], connector: Arc<dyn PortConnector>)
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sink, stream) = accept(connection).await.split();
    let (outgoing, queue) = mpsc::channel::<Bytes>(QUEUE_MAX);
    let mut inputs = Vec::new();
    let mut connections = JoinSet::new();
    for (channel, port) in (0_u8..).step_by(2).zip(ports) {
        let (input, received) = mpsc::channel(QUEUE_MAX);
        inputs.push(input);
        connections.spawn(carry(Arc::clone(&connector), *port, channel, received, outgoing.clone()));
    }
    drop(outgoing);
    let reading = receive(stream, inputs);
    tokio::select! {
        () = send(sink, queue) => {}
        () = reading => {}
    }
}

async fn receive<C: AsyncRead + AsyncWrite + Unpin>(
    mut stream: SplitStream<WebSocketStream<C>>,
    inputs: Vec<mpsc::Sender<Bytes>>,
) {
    while let Some(Ok(message)) = stream.next().await {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            Message::Close(_) => return,
            _ => continue,
        };
        let Some((channel, input)) = parse(&bytes) else { continue };
        if let Some(connection) = inputs.get(channel) {
            // A connection that has ended takes nothing more.
            drop(connection.send(input).await);
        }
    }
}

/// The place in the list of ports that a message is for, and its bytes. Total: nothing is said on channels of errors.
pub(crate) fn parse(message: &Bytes) -> Option<(usize, Bytes)> {
    let channel = usize::from(*message.first()?);
    let input = message.slice(1..);
    (channel % 2 == 0 && !input.is_empty()).then_some((channel / 2, input))
}

async fn carry(
    connector: Arc<dyn PortConnector>,
    port: u16,
    channel: u8,
    mut inputs: mpsc::Receiver<Bytes>,
    outgoing: mpsc::Sender<Bytes>,
) {
    let errors = channel.saturating_add(1);
    for channel in [channel, errors] {
        if outgoing.send(message(channel, &port.to_le_bytes())).await.is_err() {
            return;
        }
    }
    let connection = match tokio::time::timeout(CONNECT_DEADLINE, connector.connect(port)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(why)) => return drop(outgoing.send(message(errors, why.as_bytes())).await),
        Err(_elapsed) => {
            let why = format!("port {port} of the pod does not answer");
            return drop(outgoing.send(message(errors, why.as_bytes())).await);
        }
    };
    let (mut read, mut write) = tokio::io::split(connection);
    let upload = async {
        while let Some(bytes) = inputs.recv().await {
            if write.write_all(&bytes).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let download = async {
        let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
        loop {
            buffer.reserve(CHUNK_BYTES);
            match read.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    if outgoing.send(message(channel, &buffer.split())).await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    tokio::select! {
        () = download => {}
        () = upload => {}
    }
}

fn message(channel: u8, bytes: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(channel);
    message.put_slice(bytes);
    message.freeze()
}

async fn send<C: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<C>, Message>,
    mut queue: mpsc::Receiver<Bytes>,
) {
    while let Some(bytes) = queue.recv().await {
        if sink.send(Message::Binary(bytes)).await.is_err() {
            return;
        }
    }
    // The client may have gone first.
    drop(sink.send(Message::Close(None)).await);
}
