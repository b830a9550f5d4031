//! One exec or attach between a transport and the node: pumps bytes both ways and ends with a status.
//!
//! The transport gives [`Input`]s and takes [`Output`]s through bounded queues, so either side waits for the other. Dropping
//! the future of [`run`] drops the node's streams: the client has gone away.

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};

use crate::limits::{CHUNK_BYTES, DRAIN_IDLE};
use crate::streams::{RemoteExit, RemoteStreams, TerminalSize};

/// From the client.
#[derive(Debug)]
pub(crate) enum Input {
    Stdin(Bytes),
    StdinClosed,
    Resize(TerminalSize),
}

/// To the client.
#[derive(Debug)]
pub(crate) enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
    /// The last one: a Kubernetes `Status`.
    End(Value),
}

/// Runs a session to its end.
pub(crate) async fn run(streams: RemoteStreams, inputs: mpsc::Receiver<Input>, outputs: mpsc::Sender<Output>) {
    let RemoteStreams { stdin, stdout, stderr, resize, exit } = streams;
    let (ended, ending) = watch::channel(false);
    let drain = async {
        tokio::join!(
            pump(stdout, &outputs, Output::Stdout, ending.clone()),
            pump(stderr, &outputs, Output::Stderr, ending.clone()),
        )
    };
    let exit = async {
        let exit = exit.await;
        ended.send_replace(true);
        exit
    };
    let finish = async {
        let (exit, _) = tokio::join!(exit, drain);
        exit
    };
    // Input goes on until the end and no longer; a command that reads nothing must not keep us.
    let exit = tokio::select! {
        exit = finish => exit,
        never = feed(stdin, resize, inputs) => match never {},
    };
    drop(outputs.send(Output::End(status(&exit))).await);
}

enum Never {}

/// Passes input on. Never ends by itself: a client may close its input and still read.
async fn feed(
    mut stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    resize: Option<mpsc::Sender<TerminalSize>>,
    mut inputs: mpsc::Receiver<Input>,
) -> Never {
    while let Some(input) = inputs.recv().await {
        match input {
            Input::Stdin(bytes) => {
                if let Some(pipe) = &mut stdin
                    && pipe.write_all(&bytes).await.is_err()
                {
                    // The command has closed its input; what still comes is thrown away, as a pipe would.
                    stdin = None;
                }
            }
            Input::StdinClosed => {
                if let Some(mut pipe) = stdin.take() {
                    drop(pipe.shutdown().await);
                }
            }
            Input::Resize(size) => {
                // Only the newest size matters; a node that is behind will get the next one.
                if let Some(Err(error)) = resize.as_ref().map(|resize| resize.try_send(size)) {
                    tracing::debug!(%error, "a terminal's size was not taken");
                }
            }
        }
    }
    drop(stdin);
    std::future::pending().await
}

/// Copies an output until it ends; once the command has ended, until it has been silent for a while.
async fn pump(
    output: Option<Box<dyn AsyncRead + Send + Unpin>>,
    outputs: &mpsc::Sender<Output>,
    wrap: fn(Bytes) -> Output,
    mut ending: watch::Receiver<bool>,
) {
    let Some(mut output) = output else { return };
    let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
    loop {
        buffer.reserve(CHUNK_BYTES);
        let idle = async {
            // The sender lives as long as this; waiting for true cannot fail before.
            drop(ending.wait_for(|ended| *ended).await);
            tokio::time::sleep(DRAIN_IDLE).await;
        };
        let read = tokio::select! {
            read = output.read_buf(&mut buffer) => read,
            () = idle => return,
        };
        match read {
            // A terminal whose last process is gone reads as EIO.
            Ok(0) | Err(_) => return,
            Ok(_) => {
                if outputs.send(wrap(buffer.split().freeze())).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// How the end is told to clients: they take the exit code out of the causes.
fn status(exit: &RemoteExit) -> Value {
    match exit {
        RemoteExit::Code(0) => json!({"metadata": {}, "status": "Success"}),
        RemoteExit::Code(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        RemoteExit::Failed(why) => json!({
            "metadata": {},
            "status": "Failure",
            "message": why,
            "reason": "InternalError",
            "code": 500,
        }),
    }
}

/// A size as clients send it: `{"Width": 80, "Height": 24}`.
pub(crate) fn parse_size(bytes: &[u8]) -> Option<TerminalSize> {
    let size: Value = serde_json::from_slice(bytes).ok()?;
    let number = |field: &str| u16::try_from(size[field].as_u64()?).ok();
    Some(TerminalSize { columns: number("Width")?, rows: number("Height")? })
}
