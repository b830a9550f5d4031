//! Remote streams over SPDY/3.1: kubectl up to 1.30 and critest speak it by default.
//!
//! The client opens a stream each for error, stdin, stdout, stderr and resize, and says in a header `streamtype` which is
//! which. Only what these clients use is here: no priorities, no pushed streams, and no flow control, because theirs
//! (moby/spdystream) ignores window updates and sends none; TCP's own does the work.
//!
//! ```text
//! read ── SYN_STREAM ─▶ streams by type        session ─▶ outputs ─▶ forward ─┐
//!   │  ── data ────────▶ inputs ─▶ session                                    ├─▶ queue ─▶ write (owns the compressor)
//!   └──── replies, pongs ─────────────────────────────────────────────────────┘
//! ```

pub(crate) mod forward;
mod frame;
mod headers;

use std::io;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use crate::limits::{CHUNK_BYTES, GOODBYE_DEADLINE, QUEUE_MAX, SPDY_STREAMS_DEADLINE, SPDY_STREAMS_MAX};
use crate::session::{self, Input, Output, parse_size};
use crate::spdy::frame::{Frame, parse};
use crate::spdy::headers::{Deflater, Inflater};
use crate::streams::RemoteStreams;

pub(crate) use frame::fuzz as fuzz_frames;

/// What one stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Error,
    Stdin,
    Stdout,
    Stderr,
    Resize,
}

/// To the client.
enum Outgoing {
    Reply(u32),
    Pong(u32),
    Data { stream: u32, bytes: Bytes, last: bool },
    Refuse(u32),
    Goodbye,
}

/// The streams that the client has opened.
#[derive(Debug, Default)]
struct Opened(Vec<(u32, Role)>);

impl Opened {
    fn id(&self, role: Role) -> Option<u32> {
        self.0.iter().find(|(_, one)| *one == role).map(|(id, _)| *id)
    }

    fn role(&self, id: u32) -> Option<Role> {
        self.0.iter().find(|(one, _)| *one == id).map(|(_, role)| *role)
    }
}

/// Serves one session on an upgraded connection until either side ends it.
pub(crate) async fn serve<C>(connection: C, streams: RemoteStreams)
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (read, write) = tokio::io::split(connection);
    let (outgoing, queue) = mpsc::channel(QUEUE_MAX);
    let mut reader =
        Reader { frames: Frames::new(read), inflater: Inflater::new(), opened: Opened::default(), outgoing };
    let mut wanted = vec![Role::Error];
    wanted.extend(streams.stdin.is_some().then_some(Role::Stdin));
    wanted.extend(streams.stdout.is_some().then_some(Role::Stdout));
    wanted.extend(streams.stderr.is_some().then_some(Role::Stderr));
    // Who asks for a terminal opens this one last, and waits for its reply: a command that ends at once must not be quicker.
    wanted.extend(streams.resize.is_some().then_some(Role::Resize));
    let conversation = async move {
        let opened = tokio::time::timeout(SPDY_STREAMS_DEADLINE, reader.wait_for(&wanted)).await;
        if let Err(error) = opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            tracing::debug!(%error, "a SPDY client did not open its streams");
            return;
        }
        converse(reader, streams).await;
    };
    let written = write_all(write, queue);
    // The writer ends when everybody who sends through it has; the conversation, when the client is gone.
    if let ((), Err(error)) = tokio::join!(conversation, written) {
        tracing::debug!(%error, "a SPDY client went away");
    }
}

async fn converse<C: AsyncRead + AsyncWrite>(mut reader: Reader<C>, streams: RemoteStreams) {
    let (input, inputs) = mpsc::channel(QUEUE_MAX);
    let (output, outputs) = mpsc::channel(QUEUE_MAX);
    let ids = Opened(reader.opened.0.clone());
    let outgoing = reader.outgoing.clone();
    let reading = reader.read_input(&input);
    tokio::pin!(reading);
    tokio::select! {
        _ = async { tokio::join!(session::run(streams, inputs, output), forward(&ids, outputs, &outgoing)) } => {
            // Closing with unread input would reset the connection and take the status with it.
            drop(tokio::time::timeout(GOODBYE_DEADLINE, &mut reading).await);
        }
        _ = &mut reading => {}
    }
}

/// Turns a session's outputs into frames; after the last one it ends all streams.
async fn forward(ids: &Opened, mut outputs: mpsc::Receiver<Output>, outgoing: &mpsc::Sender<Outgoing>) {
    let send = async |role: Role, bytes: Bytes, last: bool| match ids.id(role) {
        Some(stream) => outgoing.send(Outgoing::Data { stream, bytes, last }).await.is_ok(),
        None => true,
    };
    while let Some(output) = outputs.recv().await {
        let sent = match output {
            Output::Stdout(bytes) => send(Role::Stdout, bytes, false).await,
            Output::Stderr(bytes) => send(Role::Stderr, bytes, false).await,
            Output::End(status) => {
                send(Role::Stdout, Bytes::new(), true).await
                    && send(Role::Stderr, Bytes::new(), true).await
                    && send(Role::Error, Bytes::from(status.to_string()), true).await
                    && outgoing.send(Outgoing::Goodbye).await.is_ok()
            }
        };
        if !sent {
            return;
        }
    }
}

/// The frames that a client sends.
struct Frames<C> {
    connection: ReadHalf<C>,
    buffer: BytesMut,
}

impl<C: AsyncRead + AsyncWrite> Frames<C> {
    fn new(connection: ReadHalf<C>) -> Self {
        Self { connection, buffer: BytesMut::new() }
    }

    /// The next one; an error when the client is gone.
    async fn next(&mut self) -> io::Result<Frame> {
        loop {
            if let Some(frame) = parse(&mut self.buffer)? {
                return Ok(frame);
            }
            self.buffer.reserve(CHUNK_BYTES);
            if self.connection.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

struct Reader<C> {
    frames: Frames<C>,
    inflater: Inflater,
    opened: Opened,
    outgoing: mpsc::Sender<Outgoing>,
}

impl<C: AsyncRead + AsyncWrite> Reader<C> {
    /// Reads until all these streams are open.
    async fn wait_for(&mut self, wanted: &[Role]) -> io::Result<()> {
        while !wanted.iter().all(|role| self.opened.id(*role).is_some()) {
            let frame = self.frames.next().await?;
            if let Some((_, Some(input))) = self.take(frame).await? {
                // Nothing may be sent on a stream before its reply; a client that does is not one of those we know.
                tracing::debug!(?input, "input came before the session began");
            }
        }
        Ok(())
    }

    /// Reads until the client is gone.
    async fn read_input(&mut self, inputs: &mpsc::Sender<Input>) -> io::Result<()> {
        let mut sizes = BytesMut::new();
        loop {
            let frame = self.frames.next().await?;
            let Some((role, input)) = self.take(frame).await? else { continue };
            let input = match (role, input) {
                // Sizes are a stream of JSON lines, not one a frame.
                (Role::Resize, Some(Input::Stdin(bytes))) => {
                    sizes.extend_from_slice(&bytes);
                    last_size(&mut sizes)
                }
                (Role::Stdin, input) => input,
                _ => None,
            };
            if let Some(input) = input {
                // A session that is over takes nothing more; the rest is read and forgotten until the client says goodbye.
                drop(inputs.send(input).await);
            }
        }
    }

    /// Answers a frame, or hands on what it carries for a stream.
    async fn take(&mut self, frame: Frame) -> io::Result<Option<(Role, Option<Input>)>> {
        match frame {
            Frame::OpenStream { stream, headers } => {
                let headers = self.inflater.headers(&headers)?;
                let kind = headers
                    .iter()
                    .find(|(name, _)| name.eq_ignore_ascii_case("streamtype"))
                    .map(|(_, value)| value.as_str());
                let role = match kind {
                    Some("error") => Some(Role::Error),
                    Some("stdin") => Some(Role::Stdin),
                    Some("stdout") => Some(Role::Stdout),
                    Some("stderr") => Some(Role::Stderr),
                    Some("resize") => Some(Role::Resize),
                    _ => None,
                };
                let answer = match role {
                    Some(role) if self.opened.0.len() < SPDY_STREAMS_MAX && self.opened.id(role).is_none() => {
                        self.opened.0.push((stream, role));
                        Outgoing::Reply(stream)
                    }
                    _ => Outgoing::Refuse(stream),
                };
                self.send(answer).await?;
                Ok(None)
            }
            Frame::Headers { headers } => {
                // Read even though unwanted: the compression's state goes on through all of them.
                self.inflater.headers(&headers)?;
                Ok(None)
            }
            Frame::Ping(id) => {
                self.send(Outgoing::Pong(id)).await?;
                Ok(None)
            }
            Frame::Data { stream, bytes, last } => {
                let Some(role) = self.opened.role(stream) else { return Ok(None) };
                let input = match (bytes.is_empty(), last) {
                    (true, false) => None,
                    (true, true) => Some(Input::StdinClosed),
                    // No client of ours ends a stream together with its last bytes; the bytes matter more.
                    (false, _) => Some(Input::Stdin(bytes)),
                };
                Ok(Some((role, input)))
            }
            Frame::Reset(stream) => Ok(self.opened.role(stream).map(|role| (role, Some(Input::StdinClosed)))),
            Frame::Goodbye => Err(io::ErrorKind::UnexpectedEof.into()),
            Frame::Other => Ok(None),
        }
    }

    async fn send(&mut self, outgoing: Outgoing) -> io::Result<()> {
        self.outgoing.send(outgoing).await.map_err(|_closed| io::ErrorKind::BrokenPipe.into())
    }
}

/// The newest complete size in a stream of JSON documents, which is taken off its front.
fn last_size(buffer: &mut BytesMut) -> Option<Input> {
    const SIZE_BYTES_MAX: usize = 1024;
    let mut size = None;
    while let Some(end) = buffer.iter().position(|byte| *byte == b'}') {
        size = parse_size(buffer.get(..=end)?).or(size);
        buffer.advance(end + 1);
    }
    if buffer.len() > SIZE_BYTES_MAX {
        buffer.clear();
    }
    size.map(Input::Resize)
}

async fn write_all<C: AsyncRead + AsyncWrite>(
    mut connection: WriteHalf<C>,
    mut queue: mpsc::Receiver<Outgoing>,
) -> io::Result<()> {
    let mut deflater = Deflater::new()?;
    while let Some(outgoing) = queue.recv().await {
        let frame = match outgoing {
            Outgoing::Reply(stream) => frame::reply(stream, &deflater.no_headers()?),
            Outgoing::Pong(id) => frame::ping(id),
            Outgoing::Refuse(stream) => frame::reset(stream, frame::REFUSED_STREAM),
            Outgoing::Goodbye => frame::goodbye(),
            Outgoing::Data { stream, bytes, last } => {
                connection.write_all(&frame::data_head(stream, bytes.len(), last)).await?;
                bytes
            }
        };
        connection.write_all(&frame).await?;
        connection.flush().await?;
    }
    connection.shutdown().await
}
