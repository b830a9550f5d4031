//! Every bound of the API server, in one place.

use std::time::Duration;

/// Bytes of one request body that becomes an object or a patch. The real server's limit.
pub const REQUEST_BYTES_MAX: usize = 3 << 20;

/// Bytes of a body that is too large that are read all the same, to the end if it comes before.
pub const REQUEST_BYTES_DISCARDED: usize = 16 << 20;

/// Levels of nesting in a body; published types have fewer than 20.
pub const NESTING_MAX: usize = 100;

/// Operations in one JSON patch; the real server's limit.
pub const JSON_PATCH_OPERATIONS_MAX: usize = 10_000;

/// Connections open at a time, on all listeners together.
pub const CONNECTIONS_MAX: usize = 2048;

/// Watches open at a time.
pub const WATCHES_MAX: usize = 4096;

/// Remote streams (exec, attach) open at a time.
pub const STREAMS_MAX: usize = 512;

/// Time for a TLS handshake.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Time for the head of the next request on a connection; longer than the 90 s for which Go's clients keep idle ones.
pub const IDLE_DEADLINE: Duration = Duration::from_secs(120);

/// Requests at a time on one HTTP/2 connection.
pub const CONNECTION_STREAMS_MAX: u32 = 250;

/// Bytes of a request's head.
pub const HEAD_BYTES_MAX: u32 = 64 << 10;

/// Time for reading a request's body and for answering it; watches, logs, streams and proxied requests have none.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(60);

/// A watch without `timeoutSeconds` ends after this long, so that clients spread out again. The real server: 30 to 60 minutes.
pub const WATCH_DEADLINE: Duration = Duration::from_secs(45 * 60);

/// How often a watch that asked for bookmarks gets one.
pub const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

/// Events of one watch that may wait for its connection.
pub const WATCH_FRAMES_MAX: usize = 64;

/// How long a watch waits for a client that does not read; then it is gone.
pub const WATCH_STALL_DEADLINE: Duration = Duration::from_secs(60);

/// Creations that may be between admission and commit at a time; those of one name share a lane. Tokio's arrays of
/// defaults end at 32.
pub const CREATION_LANES: usize = 32;

/// How often a change that lost a race, without naming a resource version, is tried again.
pub const CONFLICT_RETRIES_MAX: usize = 16;

/// Random names tried for a `generateName`.
pub const NAME_RETRIES_MAX: usize = 8;

/// Bytes of a name, label value … as Kubernetes has them.
pub const DNS_SUBDOMAIN_MAX: usize = 253;
/// A DNS label.
pub const DNS_LABEL_MAX: usize = 63;
/// Bytes of all annotations of one object.
pub const ANNOTATIONS_BYTES_MAX: usize = 256 << 10;
/// Bytes of all values of a Secret or ConfigMap.
pub const CONFIG_BYTES_MAX: usize = 1 << 20;

/// How long an Event is kept after it was last seen; the real server's time.
pub const EVENT_LIFETIME: Duration = Duration::from_secs(3600);
/// Events kept at most; the oldest go first.
pub const EVENTS_MAX: usize = 8192;
/// How often expired events are looked for.
pub const EVENT_SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Time for open requests to end at shutdown.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// Faults named in one refusal.
pub const FAULTS_MAX: usize = 50;
/// Warnings sent with one answer.
pub const WARNINGS_MAX: usize = 20;

/// Time before a listener that failed to accept tries again.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long certificates are valid. They never leave the machine, and are renewed with every start of the service.
pub const CERTIFICATE_YEARS: i16 = 10;

const _: () = assert!(REQUEST_BYTES_MAX < REQUEST_BYTES_DISCARDED);
const _: () = assert!(DNS_LABEL_MAX < DNS_SUBDOMAIN_MAX);
const _: () = assert!(CONFIG_BYTES_MAX < REQUEST_BYTES_MAX);
