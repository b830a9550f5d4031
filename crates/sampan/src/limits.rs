//! Every bound of the client, with the argument for it.
//!
//! The service is trusted more than an image, but not with the client's memory or time: a line, a body or a wait that
//! has no end in the protocol gets one here.

use std::time::Duration;

/// Reaching the Unix socket: the kernel answers at once unless the service's backlog is full.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A socket that exists but refuses may belong to a daemon that its supervisor is restarting.
pub(crate) const CONNECT_RETRY_MAX: Duration = Duration::from_secs(1);
/// One question with one answer; anything that streams has no such end.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a command that follows an instance waits for a lost service to return.
pub(crate) const SERVICE_RETURN_MAX: Duration = Duration::from_secs(60);
/// After an instance's end, how long its last output or status may take to arrive.
pub(crate) const LAST_WORDS_MAX: Duration = Duration::from_secs(15);
/// How long a deletion may take beyond the grace period before the client stops waiting for it.
pub(crate) const REMOVAL_MAX: Duration = Duration::from_secs(60);
/// A third Ctrl-C within this time of the first leaves the instance alone and ends the client.
pub(crate) const FORCE_WINDOW: Duration = Duration::from_secs(3);

/// An answer held in memory: a list of a node's pods at their largest.
pub(crate) const RESPONSE_BYTES_MAX: usize = 256 << 20;
/// One line of a watch or of a progress stream: an object of the store is at most 1.5 MiB.
pub(crate) const LINE_BYTES_MAX: usize = 8 << 20;
/// The body of an error, of which one line is shown.
pub(crate) const ERROR_BYTES_MAX: usize = 1 << 20;
/// What is shown of one message of the service.
pub(crate) const MESSAGE_CHARS_MAX: usize = 2000;

/// A manifest file given to `apply`.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 16 << 20;
/// An environment file: the kernel refuses more than 2 MiB of arguments and environment anyway.
pub(crate) const ENV_FILE_BYTES_MAX: u64 = 2 << 20;

/// One piece of standard input on its way to an instance.
pub(crate) const STDIN_PIECE_BYTES: usize = 32 << 10;
/// Pieces of standard input in flight.
pub(crate) const STDIN_PIECES_MAX: usize = 8;
/// One message of a WebSocket stream: the service sends pieces of at most 64 KiB.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Connections that one forwarded port carries at once; further ones wait in the kernel.
pub(crate) const FORWARDED_CONNECTIONS_MAX: usize = 256;

/// Directories below each other in a copy.
pub(crate) const COPY_DEPTH_MAX: usize = 1000;

/// Layers a progress display keeps; the runtime refuses images of more than 127.
pub(crate) const PROGRESS_LAYERS_MAX: usize = 512;
/// Time between two drawings of a progress display.
pub(crate) const REDRAW_INTERVAL: Duration = Duration::from_millis(100);

/// After a traced start has ended and its image is complete, how long the trace may take to be written down.
pub(crate) const TRACE_WRITTEN_MAX: Duration = Duration::from_secs(25);
