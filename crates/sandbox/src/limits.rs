//! Every limit of the sandboxes.

use std::time::Duration;

/// Making a sandbox, from the request to the configured agent.
pub(crate) const CREATE_DEADLINE: Duration = Duration::from_secs(30);

/// Starting a container or an exec.
pub(crate) const START_DEADLINE: Duration = Duration::from_secs(60);

/// Any other question to an agent.
pub(crate) const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// A copy into a container; whoever sends it may be slow.
pub(crate) const TRANSFER_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// How long a zygote that is being restarted is waited for.
pub(crate) const ZYGOTE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a zygote may take to say that it is there, however long somebody has waited in line for it.
pub(crate) const ZYGOTE_PING_MAX: Duration = Duration::from_secs(2);

/// Between two tries to reach the zygote.
pub(crate) const ZYGOTE_RETRY: Duration = Duration::from_millis(20);

/// How long a killed agent, with everything in its pod, may take to be gone.
pub(crate) const AGENT_DEATH_MAX: Duration = Duration::from_secs(20);

/// Sandboxes of nobody that are removed at the same time when a daemon begins.
pub(crate) const REMOVALS_AT_ONCE: usize = 16;

/// How long a killed group may take to become empty and removable.
pub(crate) const GROUP_REMOVAL_MAX: Duration = Duration::from_secs(10);

/// Requests waiting for one agent.
pub(crate) const REQUESTS_QUEUED_MAX: usize = 256;

/// Events waiting for whoever listens; beyond it they are told again on the next [`crate::ProcessSandbox::events`].
pub(crate) const EVENTS_QUEUED_MAX: usize = 512;

/// Mounts of one container. With the root, devices, log and groups they stay below what one frame carries.
pub(crate) const MOUNTS_MAX: usize = 200;

/// Device nodes of one container, and how deep in a directory they are looked for.
pub(crate) const DEVICES_MAX: usize = 4096;
/// See [`DEVICES_MAX`].
pub(crate) const DEVICE_DEPTH_MAX: usize = 8;

/// Lines of an identity map (`UID_GID_MAP_MAX_EXTENTS` in `linux/user_namespace.h`).
pub(crate) const ID_MAPS_MAX: usize = 340;

/// The largest seccomp profile that is read.
pub(crate) const PROFILE_BYTES_MAX: usize = 1024 * 1024;

/// What a killed container may take to be gone.
pub(crate) const KILL_MAX: Duration = Duration::from_secs(30);

/// What every container's score is raised by, so that the host's services outlive it when memory runs out.
pub(crate) const OOM_SCORE_ADJUSTMENT: i32 = 100;

/// The most bytes of a cgroup file that is read.
pub(crate) const GROUP_FILE_BYTES_MAX: u64 = 64 * 1024;
/// Room made for one at once; `memory.stat` takes about half of it.
pub(crate) const GROUP_FILE_BYTES_USUAL: usize = 4096;

const _: () = assert!(MOUNTS_MAX + 16 <= sampan_wire::limits::DESCRIPTORS_MAX, "a container's descriptors fit a frame");
