//! Reading Pod objects: what state an instance is in, and how that is said.
//!
//! Pure functions over JSON that came from the service; a field that is missing is treated as not yet set, as clients of
//! Kubernetes must.

use jiff::Timestamp;
use serde_json::Value;

use crate::output::age;

/// How far an instance's main container has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Not started yet.
    Waiting,
    /// It runs.
    Running,
    /// It ran, or tried to, and ended.
    Finished(End),
    /// It did not start and will not without somebody's help.
    NeverStarted { reason: String, message: String },
}

/// The end of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// Its exit code.
    pub(crate) code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError` …
    pub(crate) reason: String,
    /// What is known beyond that.
    pub(crate) message: String,
    /// Whether the command itself ever ran.
    pub(crate) ran: bool,
}

/// Waiting reasons that nothing but a change by somebody ends, for who waits in front of a terminal.
const HOPELESS: [&str; 10] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "ImageInspectError",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "StartError",
    "FailedPreStartHook",
];

/// Reasons of a terminated container whose command was never executed.
const NOT_RUN: [&str; 5] =
    ["StartError", "ContainerCannotRun", "RunContainerError", "CreateContainerError", "CreateContainerConfigError"];

/// A text inside an object, `""` when it is not there.
pub(crate) fn text<'value>(value: &'value Value, pointer: &str) -> &'value str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The elements of a list inside an object.
pub(crate) fn list<'value>(value: &'value Value, pointer: &str) -> &'value [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The items of a list object.
pub(crate) fn items(value: &Value) -> &[Value] {
    list(value, "/items")
}

/// The container that commands mean when none is named: the first, or what kubectl's annotation says.
pub(crate) fn main_container(pod: &Value) -> &str {
    match text(pod, "/metadata/annotations/kubectl.kubernetes.io~1default-container") {
        "" => text(pod, "/spec/containers/0/name"),
        name => name,
    }
}

/// The status of one container.
pub(crate) fn container_status<'pod>(pod: &'pod Value, container: &str) -> Option<&'pod Value> {
    list(pod, "/status/containerStatuses").iter().find(|status| text(status, "/name") == container)
}

/// Whether the whole pod has ended.
pub(crate) fn is_finished(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
}

/// How far `container` of `pod` has come.
pub(crate) fn stage(pod: &Value, container: &str) -> Stage {
    let status = container_status(pod, container);
    let state = status.and_then(|status| status.get("state")).unwrap_or(&Value::Null);
    if let Some(terminated) = state.get("terminated").filter(|terminated| terminated.is_object()) {
        return Stage::Finished(end(terminated));
    }
    if state.get("running").is_some_and(Value::is_object) {
        return Stage::Running;
    }
    let never =
        |reason: &str, message: &str| Stage::NeverStarted { reason: reason.to_owned(), message: message.to_owned() };
    if is_finished(pod) {
        let message = match text(state, "/waiting/message") {
            "" => text(pod, "/status/message"),
            message => message,
        };
        return never(text(pod, "/status/reason"), message);
    }
    let reason = text(state, "/waiting/reason");
    if HOPELESS.contains(&reason) {
        return never(reason, text(state, "/waiting/message"));
    }
    let unschedulable = list(pod, "/status/conditions").iter().find(|condition| {
        text(condition, "/type") == "PodScheduled"
            && text(condition, "/status") == "False"
            && text(condition, "/reason") == "Unschedulable"
    });
    unschedulable.map_or(Stage::Waiting, |condition| never("Unschedulable", text(condition, "/message")))
}

fn end(terminated: &Value) -> End {
    let reason = text(terminated, "/reason");
    End {
        code: terminated.get("exitCode").and_then(Value::as_i64).and_then(|code| code.try_into().ok()).unwrap_or(255),
        reason: reason.to_owned(),
        message: text(terminated, "/message").to_owned(),
        ran: !NOT_RUN.contains(&reason),
    }
}

/// The state of a pod in a few words, as `ps` shows it.
pub(crate) fn summary(pod: &Value, now: Timestamp) -> String {
    let ago = |timestamp: &str| match age(timestamp, now) {
        age if age.is_empty() => String::new(),
        age => format!(" {age} ago"),
    };
    let container = main_container(pod);
    let status = container_status(pod, container).unwrap_or(&Value::Null);
    let restarts = status.get("restartCount").and_then(Value::as_u64).filter(|count| *count > 0);
    let restarts = restarts.map_or_else(String::new, |count| format!(", {count} restarts"));
    if !text(pod, "/metadata/deletionTimestamp").is_empty() && !is_finished(pod) {
        return "Stopping, to be removed".to_owned();
    }
    match stage(pod, container) {
        Stage::Running => {
            let ready = list(pod, "/status/containerStatuses");
            let up = ready.iter().filter(|status| status.pointer("/state/running").is_some()).count();
            let of = list(pod, "/spec/containers").len();
            let parts = if of > 1 { format!(" ({up}/{of})") } else { String::new() };
            format!("Up {}{parts}{restarts}", age(text(status, "/state/running/startedAt"), now))
        }
        Stage::Finished(end) => {
            let ago = ago(text(status, "/state/terminated/finishedAt"));
            let why = if matches!(end.reason.as_str(), "" | "Completed" | "Error") {
                String::new()
            } else {
                format!(" {}", end.reason)
            };
            format!("Exited ({}){why}{ago}{restarts}", end.code)
        }
        Stage::NeverStarted { reason, .. } if reason.is_empty() => "Failed".to_owned(),
        Stage::NeverStarted { reason, .. } => format!("Failed: {reason}"),
        Stage::Waiting => match text(status, "/state/waiting/reason") {
            "" => "Pending".to_owned(),
            reason => format!("Pending: {reason}{restarts}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use serde_json::json;

    fn pod(phase: &str, state: Value) -> Value {
        json!({"spec": {"containers": [{"name": "main"}]},
               "status": {"phase": phase, "containerStatuses": [{"name": "main", "state": state}]}})
    }

    fn check(pod: &Value, expected: Expect) {
        let now = "2026-01-01T01:00:00Z".parse().unwrap();
        expected.assert_eq(&format!("{:?} | {}", stage(pod, "main"), summary(pod, now)));
    }

    #[test]
    fn stages_of_an_instance() {
        check(&json!({}), expect!["Waiting | Pending"]);
        check(
            &pod("Pending", json!({"waiting": {"reason": "ContainerCreating"}})),
            expect!["Waiting | Pending: ContainerCreating"],
        );
        check(&pod("Running", json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}})), expect!["Running | Up 60m"]);
        check(
            &pod(
                "Failed",
                json!({"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-01-01T00:59:00Z"}}),
            ),
            expect![[
                r#"Finished(End { code: 137, reason: "OOMKilled", message: "", ran: true }) | Exited (137) OOMKilled 60s ago"#
            ]],
        );
        check(
            &pod(
                "Failed",
                json!({"terminated": {"exitCode": 127, "reason": "StartError", "message": "nope: not found"}}),
            ),
            expect![[
                r#"Finished(End { code: 127, reason: "StartError", message: "nope: not found", ran: false }) | Exited (127) StartError"#
            ]],
        );
        check(
            &pod("Pending", json!({"waiting": {"reason": "ErrImagePull", "message": "no such image"}})),
            expect![[r#"NeverStarted { reason: "ErrImagePull", message: "no such image" } | Failed: ErrImagePull"#]],
        );
        check(
            &json!({"status": {"phase": "Failed", "reason": "Evicted", "message": "disk is full"}}),
            expect![[r#"NeverStarted { reason: "Evicted", message: "disk is full" } | Failed: Evicted"#]],
        );
        check(
            &json!({"status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "needs 9 CPUs"}]}}),
            expect![[r#"NeverStarted { reason: "Unschedulable", message: "needs 9 CPUs" } | Failed: Unschedulable"#]],
        );
    }
}
