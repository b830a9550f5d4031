//! Every limit of this room.

use std::time::Duration;

/// Delay before the second restart of a container; the first is immediate, as the kubelet does it.
pub const RESTART_DELAY_FIRST: Duration = Duration::from_secs(10);
/// Delays double up to this.
pub const RESTART_DELAY_LONGEST: Duration = Duration::from_secs(300);
/// A run this long clears the back-off.
pub const RESTART_FORGIVEN_AFTER: Duration = Duration::from_secs(600);
const _: () =
    assert!(RESTART_DELAY_LONGEST.as_secs() < RESTART_FORGIVEN_AFTER.as_secs(), "or health could never be told");

/// After a stop's deadline every process is killed; what is not gone this much later is taken away with its sandbox.
pub const FORCED_AFTER: Duration = Duration::from_secs(10);

/// Intermediate states are written only when a start takes longer than this, so that a fast start is one write.
pub const STATUS_WRITE_DELAY: Duration = Duration::from_millis(150);
/// How often a running pod's disk and memory are looked at for pressure.
pub const PRESSURE_INTERVAL: Duration = Duration::from_secs(2);
/// Changes of the Pod object and events of its sandbox waiting for the pod's worker.
pub const WORKER_QUEUE: usize = 64;
/// Attempts at a status write that keeps losing against other writers.
pub const WRITE_ATTEMPTS_MAX: u32 = 16;
/// A status that could not be written is tried again after this; nothing else may happen to the pod that would.
pub const WRITE_RETRY: Duration = Duration::from_secs(1);
/// A line of a log as the agent writes it, with its prefix: 16 KiB of text and room for time and tags.
pub const LOG_LINE_BYTES_MAX: usize = (16 << 10) + 128;
/// Bytes of log handed to a client at once.
pub const LOG_CHUNK_BYTES: usize = 64 << 10;
/// Processes and threads of one container, execs included: a fork bomb takes nothing from its neighbours. Kubernetes has
/// no field for it; podman's default is 2048, the usual `podPidsLimit` of clusters 1024 to 4096.
pub const PIDS_MAX: u64 = 4096;
/// Kubernetes' default where neither pod nor deletion says.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(30);
/// Progress reports of a pull waiting for a slow client.
pub const PROGRESS_QUEUE: usize = 256;
/// Events kept per pod worker to fold repeated ones into one object.
pub const EVENTS_FOLDED_MAX: usize = 64;
/// A request to pull names an image and a policy: nobody needs more.
pub const PULL_REQUEST_BYTES_MAX: usize = 16 << 10;
/// How often the host's network is put back in order.
pub const MEND_INTERVAL: Duration = Duration::from_secs(60);

/// How long a request about a pod waits for its worker to take it up after a restart of the service: an agent answers
/// within ten seconds or is given up.
pub const TAKE_UP_MAX: Duration = Duration::from_secs(15);
