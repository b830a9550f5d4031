//! Remote streams over WebSocket.
//!
//! Every message begins with the number of its channel: 0 stdin, 1 stdout, 2 stderr, 3 the final status, 4 terminal sizes.
//! In `v5.channel.k8s.io` a message `[255, n]` closes channel n, which is how a client ends its input.

pub(crate) mod forward;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::limits::{GOODBYE_DEADLINE, MESSAGE_BYTES_MAX, QUEUE_MAX};
use crate::session::{self, Input, Output, parse_size};
use crate::streams::RemoteStreams;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Serves one session on an upgraded connection until either side ends it.
pub(crate) async fn serve<C>(connection: C, streams: RemoteStreams)
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut config = WebSocketConfig::default();
    config.max_message_size = Some(MESSAGE_BYTES_MAX);
    config.max_frame_size = Some(MESSAGE_BYTES_MAX);
    let socket = WebSocketStream::from_raw_socket(connection, Role::Server, Some(config)).await;
    let (sink, stream) = socket.split();
    let (input, inputs) = mpsc::channel(QUEUE_MAX);
    let (output, outputs) = mpsc::channel(QUEUE_MAX);
    let reading = read(stream, input);
    tokio::pin!(reading);
    tokio::select! {
        ((), sent) = async { tokio::join!(session::run(streams, inputs, output), write(sink, outputs)) } => {
            if sent.is_ok() {
                // Closing with unread input would reset the connection and take the status with it.
                drop(tokio::time::timeout(GOODBYE_DEADLINE, &mut reading).await);
            }
        }
        () = &mut reading => {}
    }
}

/// Takes messages until the client is gone.
async fn read<C: AsyncRead + AsyncWrite + Unpin>(
    mut stream: SplitStream<WebSocketStream<C>>,
    inputs: mpsc::Sender<Input>,
) {
    while let Some(Ok(message)) = stream.next().await {
        let input = match message {
            Message::Binary(bytes) => parse(&bytes),
            // Some clients send text; the channel is then its first character's code, which is no channel of ours but 0.
            Message::Text(text) => parse(&Bytes::from(text)),
            Message::Close(_) => return,
            _ => None,
        };
        if let Some(input) = input {
            // A session that is over takes nothing more; the rest is read and forgotten until the client says goodbye.
            drop(inputs.send(input).await);
        }
    }
}

/// One message from a client. Total: anything that is not understood is None.
pub(crate) fn parse(message: &Bytes) -> Option<Input> {
    match (message.first()?, message.get(1..)?) {
        (&STDIN, _) => Some(Input::Stdin(message.slice(1..))),
        (&RESIZE, size) => parse_size(size).map(Input::Resize),
        (&CLOSE, [STDIN]) => Some(Input::StdinClosed),
        _ => None,
    }
}

type SendError = tokio_tungstenite::tungstenite::Error;

async fn write<C: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<C>, Message>,
    mut outputs: mpsc::Receiver<Output>,
) -> Result<(), SendError> {
    while let Some(output) = outputs.recv().await {
        let (channel, bytes) = match output {
            Output::Stdout(bytes) => (STDOUT, bytes),
            Output::Stderr(bytes) => (STDERR, bytes),
            Output::End(status) => (STATUS, Bytes::from(status.to_string())),
        };
        let mut message = BytesMut::with_capacity(bytes.len() + 1);
        message.put_u8(channel);
        message.put_slice(&bytes);
        sink.send(Message::Binary(message.freeze())).await?;
    }
    let goodbye = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::from_static("") };
    sink.send(Message::Close(Some(goodbye))).await
}
