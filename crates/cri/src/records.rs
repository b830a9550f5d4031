//! What is remembered of pods and containers across restarts of the daemon.
//!
//! Rows are protobuf messages: the interface's own configurations in an envelope of ours, whose tags are never reused.

use prost::Message;

use crate::proto::v1::{ContainerConfig, LinuxContainerResources, LinuxContainerUser, PodSandboxConfig};

/// A pod sandbox.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PodRecord {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) config: Option<PodSandboxConfig>,
    #[prost(string, tag = "3")]
    pub(crate) runtime_handler: String,
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "4")]
    pub(crate) created_at: i64,
    /// Its processes and network exist.
    #[prost(bool, tag = "5")]
    pub(crate) ready: bool,
    /// IPv4 first; empty on the host's network.
    #[prost(string, repeated, tag = "6")]
    pub(crate) addresses: Vec<String>,
}

/// How far a container has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Phase {
    Created = 0,
    Running = 1,
    Exited = 2,
}

/// A container.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ContainerRecord {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, tag = "2")]
    pub(crate) pod_id: String,
    #[prost(message, optional, tag = "3")]
    pub(crate) config: Option<ContainerConfig>,
    /// Digest of the image's configuration.
    #[prost(string, tag = "4")]
    pub(crate) image_id: String,
    /// A name with a digest, where the image has one.
    #[prost(string, tag = "5")]
    pub(crate) image_ref: String,
    #[prost(enumeration = "Phase", tag = "6")]
    pub(crate) phase: i32,
    /// All times are nanoseconds since 1970; 0 for not yet.
    #[prost(int64, tag = "7")]
    pub(crate) created_at: i64,
    #[prost(int64, tag = "8")]
    pub(crate) started_at: i64,
    #[prost(int64, tag = "9")]
    pub(crate) finished_at: i64,
    #[prost(int32, tag = "10")]
    pub(crate) exit_code: i32,
    #[prost(string, tag = "11")]
    pub(crate) reason: String,
    #[prost(string, tag = "12")]
    pub(crate) message: String,
    /// As they are now, after updates.
    #[prost(message, optional, tag = "13")]
    pub(crate) resources: Option<LinuxContainerResources>,
    #[prost(message, optional, tag = "14")]
    pub(crate) user: Option<LinuxContainerUser>,
}

impl ContainerRecord {
    /// Notes an end. What has ended already stays as it was.
    pub(crate) fn end(&mut self, code: i32, reason: &str, message: &str, finished_at: i64) {
        if self.phase() == Phase::Exited {
            return;
        }
        self.set_phase(Phase::Exited);
        self.exit_code = code;
        reason.clone_into(&mut self.reason);
        message.clone_into(&mut self.message);
        self.finished_at = finished_at;
    }

    /// The pod-wide name of a container's run, by which the sandbox knows it.
    pub(crate) fn run_name(id: &str) -> &str {
        id.get(..RUN_NAME_CHARS).unwrap_or(id)
    }
}

/// The sandbox takes names of at most 63 characters; ids have 64.
const RUN_NAME_CHARS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_counts() {
        let mut record = ContainerRecord { id: "a".repeat(64), ..ContainerRecord::default() };
        record.set_phase(Phase::Running);
        record.end(0, "Completed", "", 5);
        record.end(137, "Error", "killed with its pod", 6);
        assert_eq!((record.exit_code, record.reason.as_str(), record.finished_at), (0, "Completed", 5));
        assert_eq!(ContainerRecord::run_name(&record.id).len(), 32);
        let bytes = record.encode_to_vec();
        assert_eq!(ContainerRecord::decode(bytes.as_slice()).unwrap(), record);
    }
}
