//! What the daemon asks of the zygote: one request, one reply, each one packet.

use serde::{Deserialize, Serialize};

use crate::Slot;

/// A request to the zygote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ZygoteRequest {
    /// Make a pod's agent.
    CreateSandbox {
        /// The sandbox' id; shown in the agent's process name.
        id: String,
        /// Whether the pod gets a user namespace of its own.
        own_user_namespace: bool,
        /// Which namespaces the pod shares with the host.
        host_network: bool,
        host_pid: bool,
        host_ipc: bool,
        /// The socket on which the agent will listen; already bound.
        listener: Slot,
        /// The v2 cgroup (its directory) into which the agent is born.
        cgroup: Option<Slot>,
    },
    /// Ask whether anybody is there.
    Ping,
}

/// The zygote's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ZygoteReply {
    /// The agent exists. Its pidfd came along; the pid is as the zygote sees it.
    Created { pid: i32, pidfd: Slot },
    /// The agent could not be made.
    Failed { stage: String, errno: i32 },
    /// The answer to [`ZygoteRequest::Ping`].
    Here,
}
