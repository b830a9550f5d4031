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

/// What a program gets after a pre-stop hook that used the whole grace up (`minimumGracePeriodInSeconds` of the kubelet).
pub const LAST_GRACE: Duration = Duration::from_secs(2);
const _: () =
    assert!(LAST_GRACE.as_secs() < FORCED_AFTER.as_secs(), "or the sandbox would go before the last grace is over");

/// What an answer to a probe or hook may take of memory: as the kubelet reads it.
pub const ANSWER_BYTES_MAX: usize = 10 << 10;
/// What an event quotes of an answer.
pub const ANSWER_QUOTED_MAX: usize = 512;
/// A post-start hook that takes longer is given up: the kubelet waits for ever, and with it the container.
pub const POST_START_DEADLINE: Duration = Duration::from_secs(600);
/// Redirects to its own host that a probe follows.
pub const REDIRECTS_MAX: u32 = 10;

/// What a program may leave in its termination message (`MaxContainerTerminationMessageLength`).
pub const TERMINATION_MESSAGE_BYTES_MAX: usize = 4096;
/// What of a log serves as one (`MaxContainerTerminationMessageLogLength`).
pub const TERMINATION_LOG_BYTES_MAX: usize = 2048;
/// The same in lines.
pub const TERMINATION_LOG_LINES_MAX: u64 = 80;

/// What the files of one projected volume may take together: objects have at most 1 MiB, and several may be joined.
pub const PROJECTED_VOLUME_BYTES_MAX: usize = 8 << 20;
/// And how many they may be.
pub const PROJECTED_FILES_MAX: usize = 4096;
/// A seccomp profile of the node's own.
pub const SECCOMP_PROFILE_BYTES_MAX: u64 = 1 << 20;

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
/// A log this long is cut (`containerLogMaxSize` of the kubelet).
pub const LOG_PIECE_BYTES: u64 = 10 << 20;
/// Pieces kept of a run's log, the one being written included (`containerLogMaxFiles`).
pub const LOG_PIECES_MAX: usize = 5;
/// A piece that grew faster than it was cut is read and packed up to this: what an agent lets a log grow to.
pub const LOG_PIECE_BYTES_UNPACKED_MAX: u64 = 160 << 20;
const _: () = assert!(LOG_PIECE_BYTES < LOG_PIECE_BYTES_UNPACKED_MAX, "or no piece could be read whole");

/// A line of a log as the agent writes it, with its prefix: 16 KiB of text and room for time and tags.
pub const LOG_LINE_BYTES_MAX: usize = (16 << 10) + 128;
/// Bytes of log handed to a client at once.
pub const LOG_CHUNK_BYTES: usize = 64 << 10;
/// News of growing logs read at once.
pub const LOG_CHANGES_BYTES: usize = 4 << 10;
/// Processes and threads of one container, execs included: a fork bomb takes nothing from its neighbours. Kubernetes has
/// no field for it; podman's default is 2048, the usual `podPidsLimit` of clusters 1024 to 4096.
pub const PIDS_MAX: u64 = 4096;
/// Kubernetes' default where neither pod nor deletion says.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(30);
/// Progress reports of a pull waiting for a slow client.
pub const PROGRESS_QUEUE: usize = 256;
/// Events kept per pod to fold repeated ones into one object.
pub const EVENTS_FOLDED_MAX: usize = 64;
/// Events of a pod that wait to be written.
pub const EVENTS_QUEUED_MAX: usize = 64;
/// Events of a pod that may come at once, before they are thinned out (client-go's `defaultSpamBurst`).
pub const EVENTS_AT_ONCE: f64 = 25.0;
/// One more may come after this (`defaultSpamQPS`).
pub const EVENTS_REFILL: Duration = Duration::from_secs(300);
/// Events of one reason that say different things, before they become one (`defaultAggregateMaxEvents`).
pub const EVENTS_SIMILAR_MAX: usize = 10;
/// After a silence this long they count anew (`defaultAggregateIntervalInSeconds`).
pub const EVENTS_SIMILAR_WITHIN: Duration = Duration::from_secs(600);
/// A request about images names one, and a policy, a command or a key at most: nobody needs more.
pub const REQUEST_BYTES_MAX: usize = 16 << 10;
/// How often the host's network is put back in order.
pub const MEND_INTERVAL: Duration = Duration::from_secs(60);

/// How long a request about a pod waits for its worker to take it up after a restart of the service: an agent answers
/// within ten seconds or is given up.
pub const TAKE_UP_MAX: Duration = Duration::from_secs(15);
