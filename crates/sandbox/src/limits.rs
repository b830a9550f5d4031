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

/// Between two tries to reach the zygote.
pub(crate) const ZYGOTE_RETRY: Duration = Duration::from_millis(20);

/// How long a killed agent, with everything in its pod, may take to be gone.
pub(crate) const AGENT_DEATH_MAX: Duration = Duration::from_secs(20);

/// How long a killed group may take to become empty and removable.
pub(crate) const GROUP_REMOVAL_MAX: Duration = Duration::from_secs(10);

/// Requests waiting for one agent.
pub(crate) const REQUESTS_QUEUED_MAX: usize = 256;

/// Events waiting for whoever listens; beyond it they are told again on the next [`crate::ProcessSandbox::events`].
pub(crate) const EVENTS_QUEUED_MAX: usize = 512;

/// Mounts of one container. With the root, devices, log and groups they stay below what one frame carries.
pub(crate) const MOUNTS_MAX: usize = 200;

/// What every container's score is raised by, so that the host's services outlive it when memory runs out.
pub(crate) const OOM_SCORE_ADJUSTMENT: i32 = 100;

/// The most bytes of a cgroup file that is read.
pub(crate) const GROUP_FILE_BYTES_MAX: u64 = 64 * 1024;

const _: () = assert!(MOUNTS_MAX + 16 <= sampan_wire::limits::DESCRIPTORS_MAX, "a container's descriptors fit a frame");
