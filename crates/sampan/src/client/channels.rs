//! Exec and attach: a WebSocket with Kubernetes' channels (`v5.channel.k8s.io`).
//!
//! Every binary message starts with its channel: 0 stdin, 1 stdout, 2 stderr, 3 how it ended (a `Status`), 4 terminal
//! size, 255 a channel that is closed (staging/src/k8s.io/apimachinery/pkg/util/remotecommand/constants.go).
//!
//! ```text
//!   input ──▶ sender ─────▶ service        both run at once: whoever waited for the other could wait for ever,
//!   stdout, stderr ◀─ receiver ◀──         because a process may stop reading until its output is taken
//! ```

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderValue, Method, StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustix::termios::Winsize;
use serde_json::Value;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::{Client, ClientError, head, whole};
use crate::failure::Failure;
use crate::limits::MESSAGE_BYTES_MAX;

const PROTOCOL: &str = "v5.channel.k8s.io";
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// What the user's side sends.
#[derive(Debug)]
pub(crate) enum Input {
    /// Bytes of standard input.
    Bytes(Bytes),
    /// The end of standard input.
    End,
    /// The terminal's new size.
    Resize(Winsize),
}

/// How a conversation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The process ended with this code.
    Exit(i32),
    /// It could not be run, or was lost: the service's words.
    Failed(String),
    /// The stream ended without a status, as an attach may, or because the service went away.
    Closed,
}

/// An open exec or attach.
#[derive(Debug)]
pub(crate) struct Channels {
    socket: WebSocketStream<TokioIo<Upgraded>>,
}

impl Client {
    /// Opens an exec or attach: a GET of this path, upgraded.
    pub(crate) async fn channels(&self, path: &str) -> Result<Channels, ClientError> {
        Ok(Channels { socket: self.websocket(path, PROTOCOL).await? })
    }

    /// Opens a WebSocket that speaks this protocol.
    pub(crate) async fn websocket(
        &self,
        path: &str,
        protocol: &'static str,
    ) -> Result<WebSocketStream<TokioIo<Upgraded>>, ClientError> {
        let key = generate_key();
        let request = head(Method::GET, path)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key)
            .header(header::SEC_WEBSOCKET_PROTOCOL, protocol)
            .body(whole(Bytes::new()))
            .map_err(|error| ClientError::Unexpected(error.to_string()))?;
        let response = self.send(request).await?;
        let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes);
        if response.status() != StatusCode::SWITCHING_PROTOCOLS
            || accepted != Some(derive_accept_key(key.as_bytes()).as_bytes())
            || response.headers().get(header::SEC_WEBSOCKET_PROTOCOL) != Some(&HeaderValue::from_static(protocol))
        {
            return Err(ClientError::Unexpected(format!("no WebSocket stream but {}", response.status())));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(ClientError::lost)?;
        let mut config = WebSocketConfig::default();
        config.max_message_size = Some(MESSAGE_BYTES_MAX);
        config.max_frame_size = Some(MESSAGE_BYTES_MAX);
        Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(config)).await)
    }
}

impl Channels {
    /// Carries `input` there and the output here until the stream ends; drops `input` when it does.
    ///
    /// # Errors
    /// Only those of writing to `stdout` or `stderr`: a lost service is [`Ended::Closed`].
    pub(crate) async fn converse(
        self,
        input: &mut mpsc::Receiver<Input>,
        stdout: &mut (impl AsyncWrite + Unpin),
        stderr: &mut (impl AsyncWrite + Unpin),
    ) -> Result<Ended, Failure> {
        let (sink, source) = self.socket.split();
        let receiving = receive(source, stdout, stderr);
        tokio::pin!(receiving);
        tokio::select! {
            ended = &mut receiving => return ended,
            () = send(sink, input) => {}
        }
        receiving.await
    }
}

/// Sends until there is no more to send or nobody to send it to.
async fn send(mut sink: SplitSink<WebSocketStream<TokioIo<Upgraded>>, Message>, input: &mut mpsc::Receiver<Input>) {
    while let Some(piece) = input.recv().await {
        let message = match piece {
            Input::Bytes(bytes) => tagged(STDIN, &bytes),
            Input::End => Bytes::from_static(&[CLOSE, STDIN]),
            Input::Resize(size) => {
                tagged(RESIZE, format!(r#"{{"Width":{},"Height":{}}}"#, size.ws_col, size.ws_row).as_bytes())
            }
        };
        if sink.send(Message::Binary(message)).await.is_err() {
            return;
        }
    }
}

async fn receive(
    mut source: SplitStream<WebSocketStream<TokioIo<Upgraded>>>,
    stdout: &mut (impl AsyncWrite + Unpin),
    stderr: &mut (impl AsyncWrite + Unpin),
) -> Result<Ended, Failure> {
    loop {
        let message = match source.next().await {
            Some(Ok(Message::Binary(bytes))) => bytes,
            Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(Ended::Closed),
            Some(Ok(_)) => continue,
        };
        match message.split_first() {
            Some((&STDOUT, bytes)) => deliver(stdout, bytes).await?,
            Some((&STDERR, bytes)) => deliver(stderr, bytes).await?,
            // The service has nothing more to say but goodbye.
            Some((&STATUS, bytes)) => return Ok(status(bytes)),
            _ => {}
        }
    }
}

/// Writes and flushes, so that a prompt without a newline shows.
pub(crate) async fn deliver(output: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), Failure> {
    let written = async {
        output.write_all(bytes).await?;
        output.flush().await
    };
    written.await.map_err(|error| Failure::stdout(&error))
}

/// Reads the `Status` of channel 3.
fn status(bytes: &[u8]) -> Ended {
    let status: Value = serde_json::from_slice(bytes).unwrap_or_default();
    if status.get("status").and_then(Value::as_str) == Some("Success") {
        return Ended::Exit(0);
    }
    let causes = status.pointer("/details/causes").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let code = causes
        .iter()
        .filter(|cause| cause.get("reason").and_then(Value::as_str) == Some("ExitCode"))
        .find_map(|cause| cause.get("message")?.as_str()?.parse().ok());
    let message = status.get("message").and_then(Value::as_str);
    code.map_or_else(
        || Ended::Failed(message.unwrap_or("the service does not say how it ended").to_owned()),
        Ended::Exit,
    )
}

fn tagged(channel: u8, bytes: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(channel);
    message.put_slice(bytes);
    message.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_come_out_of_status_objects() {
        assert_eq!(status(br#"{"status":"Success"}"#), Ended::Exit(0));
        let failure = br#"{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"42"}]}}"#;
        assert_eq!(status(failure), Ended::Exit(42));
        assert_eq!(status(br#"{"status":"Failure","message":"no"}"#), Ended::Failed("no".to_owned()));
        assert_eq!(status(b"\xff"), Ended::Failed("the service does not say how it ended".to_owned()));
    }
}
