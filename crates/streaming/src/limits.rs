//! Every bound of remote streams, in one place.

use std::time::Duration;

/// Bytes read from an output at once, and sent as one message.
pub const CHUNK_BYTES: usize = 32 << 10;

/// Messages that may wait in either direction.
pub const QUEUE_MAX: usize = 8;

/// Bytes of one message or SPDY frame from a client; kubectl sends 32 KiB.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Header bytes of one SPDY stream, inflated.
pub const SPDY_HEADER_BYTES_MAX: usize = 16 << 10;

/// Streams that a SPDY client may open: error, stdin, stdout, stderr, resize, and some room.
pub const SPDY_STREAMS_MAX: usize = 8;

/// Time for a SPDY client to open its streams.
pub const SPDY_STREAMS_DEADLINE: Duration = Duration::from_secs(30);

/// Streams that a client may have open for forwarded ports: two for each connection.
pub const SPDY_FORWARD_STREAMS_MAX: usize = 512;

/// Ports of one forwarding over WebSocket channels: their numbers are two to a port, and 255 has a meaning of its own.
pub const FORWARD_PORTS_MAX: usize = 100;

/// Time for a program in the pod to accept a forwarded connection.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(30);

/// After the command has ended, how long an output that somebody else holds open may stay silent before it is given up.
pub const DRAIN_IDLE: Duration = Duration::from_secs(2);

/// Time for a client to answer our goodbye.
pub const GOODBYE_DEADLINE: Duration = Duration::from_secs(5);

const _: () = assert!(CHUNK_BYTES < MESSAGE_BYTES_MAX);
