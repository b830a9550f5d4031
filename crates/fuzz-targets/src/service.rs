//! What clients send to the API, what the agent reads out of images, and profiles that pods name.
//!
//! These parsers are private to their rooms, which offer one entry each and say nothing of what was accepted: all
//! inputs count as accepted.

use std::sync::LazyLock;

use sampan_apiserver::fuzz::Fuzzer;

/// Loading the published schemas takes longer than any input; damage to them is a finding of its own.
static API: LazyLock<Option<Fuzzer>> = LazyLock::new(|| Fuzzer::new().ok());

fn api(run: impl FnOnce(&Fuzzer)) -> bool {
    assert!(API.is_some(), "the embedded data cannot be loaded");
    API.as_ref().map(run).is_some()
}

/// A pod in JSON or protobuf: decoded, completed, validated.
pub fn api_body(bytes: &[u8]) -> bool {
    api(|api| api.body(bytes))
}

/// A JSON array of a pod and a patch, which is applied as each kind of patch.
pub fn api_patch(bytes: &[u8]) -> bool {
    api(|api| api.patch(bytes))
}

/// A label selector and, after a line feed, a field selector.
pub fn api_selector(bytes: &[u8]) -> bool {
    api(|api| api.selector(bytes))
}

/// What a client sends on a remote stream: SPDY frames, or one WebSocket message.
pub fn remote_stream(bytes: &[u8]) -> bool {
    sampan_streaming::fuzz::spdy_frames(bytes);
    sampan_streaming::fuzz::websocket_message(bytes);
    true
}

/// An archive for a container, or its account files (`passwd` and, after a NUL, `group`).
pub fn agent_files(bytes: &[u8]) -> bool {
    sampan_agent::exercise(bytes);
    true
}

/// A seccomp profile in JSON: read, and compiled if it can be.
pub fn seccomp_profile(bytes: &[u8]) -> bool {
    sampan_sandbox::seccomp::exercise(bytes);
    true
}
