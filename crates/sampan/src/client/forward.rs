//! One connection to a port inside an instance, over a WebSocket of its own.
//!
//! The dialect is the one of Kubernetes' Python client (`v4.channel.k8s.io` with the query `ports=N`): channel 0 carries
//! bytes, channel 1 what went wrong; the first message on each is the port's number, two bytes.

use bytes::{BufMut as _, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use super::{Client, ClientError};
use crate::limits::{MESSAGE_CHARS_MAX, STDIN_PIECE_BYTES};

const PROTOCOL: &str = "v4.channel.k8s.io";
const DATA: u8 = 0;
const ERROR: u8 = 1;
/// Bytes of the port's number, which every channel begins with.
const PREFACE: usize = 2;

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Carried {
    /// One side closed it.
    ToTheEnd,
    /// There was none; the service's words.
    Refused(String),
}

/// Carries a local connection to the port that `path` names, until one side ends it.
pub(crate) async fn carry(client: &Client, path: &str, local: TcpStream) -> Result<Carried, ClientError> {
    let (mut sink, mut source) = client.websocket(path, PROTOCOL).await?.split();
    let (mut from_local, mut to_local) = local.into_split();
    let upload = async {
        let mut message = BytesMut::new();
        loop {
            message.reserve(STDIN_PIECE_BYTES + 1);
            message.put_u8(DATA);
            match from_local.read_buf(&mut message).await {
                // The dialect has no word for a half that is closed: the other half goes on until its own end.
                Ok(0) | Err(_) => break,
                Ok(_) => {
                    if sink.send(Message::Binary(message.split().freeze())).await.is_err() {
                        break;
                    }
                }
            }
        }
        std::future::pending::<()>().await;
    };
    let download = async {
        let mut prefaces = [PREFACE; 2];
        let mut complaint = Vec::new();
        while let Some(Ok(message)) = source.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Close(_) => break,
                _ => continue,
            };
            let Some((channel @ (&DATA | &ERROR), bytes)) = bytes.split_first() else { continue };
            let Some(preface) = prefaces.get_mut(usize::from(*channel)) else { continue };
            let skipped = (*preface).min(bytes.len());
            *preface -= skipped;
            let bytes = bytes.get(skipped..).unwrap_or_default();
            if *channel == ERROR {
                complaint.extend_from_slice(bytes.get(..bytes.len().min(MESSAGE_CHARS_MAX)).unwrap_or_default());
                complaint.truncate(MESSAGE_CHARS_MAX);
            } else if to_local.write_all(bytes).await.is_err() {
                break;
            }
        }
        to_local.shutdown().await.ok();
        complaint
    };
    let complaint = tokio::select! {
        complaint = download => complaint,
        () = upload => Vec::new(),
    };
    if complaint.is_empty() {
        return Ok(Carried::ToTheEnd);
    }
    Ok(Carried::Refused(String::from_utf8_lossy(&complaint).into_owned()))
}
