//! Every limit of this room.

use std::time::Duration;

/// Pods of the last run that are taken up at the same time.
pub const ADOPTIONS_AT_ONCE: usize = 16;

/// The largest message from a client. The kubelet's own bound is the same.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Connections of clients at one time; a kubelet keeps two.
pub const CLIENTS_MAX: usize = 256;
/// Before the next try when a client cannot be accepted.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Calls under way on one connection.
pub const CALLS_A_CLIENT_MAX: u32 = 1024;

/// Pods that there may be, finished ones included.
pub const PODS_MAX: usize = 10_000;
/// Containers that there may be, finished ones included.
pub const CONTAINERS_MAX: usize = 50_000;

/// Bytes of each output in an answer of `ExecSync`; what is more is cut off.
pub const EXEC_SYNC_OUTPUT_BYTES_MAX: usize = (8 << 20) - 1024;
const _: () = assert!(2 * EXEC_SYNC_OUTPUT_BYTES_MAX < MESSAGE_BYTES_MAX, "the kubelet takes no larger answer");

/// How long a killed container may take to be gone.
pub const KILL_DEADLINE: Duration = Duration::from_secs(20);
/// How long after its start a program may take to say which signals it handles, before it is sent one to end. Within the
/// time that its stop may take; on a busy machine an interpreter needs seconds to begin.
pub const BEGINNING: Duration = Duration::from_secs(5);
/// How often it is looked at meanwhile.
pub const BEGINNING_PAUSE: Duration = Duration::from_millis(10);

/// How long containers may take to tell how they ended when their pod is stopped.
pub const POD_STOP_GRACE: Duration = Duration::from_secs(2);
/// The longest time for a container to stop by itself; longer wishes are cut to it.
pub const STOP_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);
/// Reading groups and file systems of one pod.
pub const STATS_DEADLINE: Duration = Duration::from_secs(5);
/// A figure younger than this is given again instead of being read anew.
pub const STATS_FRESH: Duration = Duration::from_millis(500);

/// How long the address of a stream may wait for its client.
pub const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// Addresses of streams that wait for their clients.
pub const TOKENS_MAX: usize = 1000;
/// Streams that are open at one time.
pub const STREAMS_MAX: usize = 1024;

/// Events that a slow follower may be behind before it is cut off, to list everything and follow anew.
pub const EVENTS_BEHIND_MAX: usize = 1024;
/// Items of a list in one message of the streaming calls.
pub const STREAMED_ITEMS: usize = 256;

/// Bytes of a seccomp profile on this machine.
pub const SECCOMP_PROFILE_BYTES_MAX: u64 = 4 << 20;
/// Processes of a container that are looked at for its descriptors and sockets; beyond, its figures are of these.
pub const METRIC_PROCESSES_MAX: usize = 1024;
