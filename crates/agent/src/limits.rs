//! Every limit of zygote and agent.

use std::time::Duration;

/// Bytes read from a descriptor at a time; also the default capacity of a pipe.
pub(crate) const READ_BYTES: usize = 64 * 1024;

/// The longest log line written in one piece; a longer one is cut into partial ones, as containerd does.
pub(crate) const LOG_LINE_BYTES_MAX: usize = 16 * 1024;

/// What a run's log may take of the host's disk: beyond it the older half is given back. The kubelet keeps 10 MiB in each
/// of five files.
pub(crate) const LOG_BYTES_MAX: u64 = 128 << 20;
/// Space is given back in whole blocks of the file system.
pub(crate) const LOG_BLOCK_BYTES: u64 = 4096;
const _: () = assert!(LOG_BYTES_MAX.is_multiple_of(2 * LOG_BLOCK_BYTES), "half a log is whole blocks");

/// What is kept of a container's output for the first one who attaches.
pub(crate) const REPLAY_BYTES_MAX: usize = 64 * 1024;

/// Output that waits for one attached client; beyond it the container's own output is not read until the client catches up.
pub(crate) const CLIENT_QUEUE_BYTES_MAX: usize = 256 * 1024;

/// Input that waits for the container to read it.
pub(crate) const STDIN_QUEUE_BYTES_MAX: usize = 64 * 1024;

/// How long a client may take nothing while it holds up a container; then it is cut off.
pub(crate) const CLIENT_STALL_MAX: Duration = Duration::from_secs(300);

/// How long output of an ended container is still read when processes that cannot be killed hold its pipes open.
pub(crate) const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Clients attached to one container.
pub(crate) const CLIENTS_MAX: usize = 32;

/// Containers in one pod, ended and unacknowledged ones not counted.
pub(crate) const CONTAINERS_MAX: usize = 256;

/// Execs and transfers that run in one pod at a time.
pub(crate) const EXECS_MAX: usize = 1024;

/// The largest `/etc/passwd` or `/etc/group` looked at, and the longest line.
pub(crate) const ACCOUNT_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Groups that one process is given (`NGROUPS_MAX` is 65536; nobody means that many).
pub(crate) const GROUPS_MAX: usize = 1024;

/// Connections that the zygote serves at a time; there is one daemon, and perhaps the one before it.
pub(crate) const ZYGOTE_CONNECTIONS_MAX: usize = 8;

/// Connections to an agent of which nobody has greeted yet; the oldest makes room for the next.
pub(crate) const STRANGERS_MAX: usize = 8;

/// Size of a pod's `/dev/shm`, as docker and containerd have it.
pub(crate) const SHARED_MEMORY_BYTES: u64 = 64 * 1024 * 1024;

/// Terminals of one container; all containers share the machine's 4096 (`kernel.pty.max`).
pub(crate) const TERMINALS_MAX: &str = "512";

/// Nested directories in a transfer's archive.
pub(crate) const ARCHIVE_DEPTH_MAX: usize = 256;

/// The largest extended header (PAX or GNU long name) accepted in an archive.
pub(crate) const ARCHIVE_EXTENSION_BYTES_MAX: u64 = 1024 * 1024;

/// Files of one transfer whose several names are remembered; beyond it they are copied once for each name.
pub(crate) const HARD_LINKS_MAX: usize = 65_536;

const _: () = assert!(CLIENT_QUEUE_BYTES_MAX >= REPLAY_BYTES_MAX + READ_BYTES, "a replay fits a client's queue");
