//! The cells of the tables that `kubectl get` prints.
//!
//! A column is a path, `age PATH`, `count PATH…`, or one of the named printers below: what `kubectl` users expect of a
//! pod's STATUS cannot be said as a path.

use serde_json::{Value, json};

use crate::resources::Column;

/// The text of a column for one object.
pub(crate) fn cell(column: &Column, object: &Value, now: jiff::Timestamp) -> Value {
    let text = match column.value.split_once(' ') {
        Some(("age", path)) => age(at(object, path), now),
        Some(("count", paths)) => return json!(count(object, paths).to_string()),
        _ if column.value.starts_with('.') => scalar(at(object, &column.value)),
        _ => named(&column.value, object, now),
    };
    json!(if text.is_empty() { column.empty.clone() } else { text })
}

fn at<'a>(object: &'a Value, path: &str) -> &'a Value {
    path.split('.').filter(|part| !part.is_empty()).fold(object, |value, part| &value[part])
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn count(object: &Value, paths: &str) -> usize {
    paths.split(' ').map(|path| at(object, path).as_object().map_or(0, serde_json::Map::len)).sum()
}

fn named(printer: &str, object: &Value, now: jiff::Timestamp) -> String {
    match printer {
        "podReady" => {
            let ready = statuses(object, "containerStatuses").filter(|status| status["ready"] == true).count();
            format!("{ready}/{}", object["spec"]["containers"].as_array().map_or(0, Vec::len))
        }
        "podStatus" => pod_status(object),
        "podRestarts" => pod_restarts(object, now),
        "podReadinessGates" => readiness_gates(object),
        "eventLastSeen" => age(
            event_time(object, &["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/firstTimestamp"]),
            now,
        ),
        "eventFirstSeen" => age(event_time(object, &["/firstTimestamp", "/eventTime"]), now),
        "eventObject" => {
            let kind = object["involvedObject"]["kind"].as_str().unwrap_or_default().to_lowercase();
            format!("{kind}/{}", object["involvedObject"]["name"].as_str().unwrap_or_default())
        }
        "eventSource" => {
            let component = object["source"]["component"].as_str().filter(|text| !text.is_empty());
            let component = component.or(object["reportingComponent"].as_str()).unwrap_or_default();
            let host = object["source"]["host"].as_str().filter(|text| !text.is_empty());
            host.map_or_else(|| component.to_owned(), |host| format!("{component}, {host}"))
        }
        "eventCount" => {
            let count = object["series"]["count"].as_i64().or(object["count"].as_i64()).unwrap_or(0);
            count.max(1).to_string()
        }
        "nodeStatus" => {
            let ready = condition(object, "Ready");
            let mut text = match ready {
                Some("True") => "Ready".to_owned(),
                Some(_) => "NotReady".to_owned(),
                None => "Unknown".to_owned(),
            };
            if object["spec"]["unschedulable"] == true {
                text.push_str(",SchedulingDisabled");
            }
            text
        }
        "nodeRoles" => node_roles(object),
        "nodeInternalIp" => node_address(object, "InternalIP"),
        "nodeExternalIp" => node_address(object, "ExternalIP"),
        _ => String::new(),
    }
}

fn statuses<'a>(pod: &'a Value, list: &str) -> impl DoubleEndedIterator<Item = &'a Value> {
    pod["status"][list].as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|one| one["type"] == kind)?["status"].as_str()
}

/// One word for what a pod is doing: its phase, or what keeps a container from running, or how it ended.
fn pod_status(pod: &Value) -> String {
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let mut reason = text(&pod["status"]["reason"]).or_else(|| text(&pod["status"]["phase"])).unwrap_or_default();
    let initializing = init_status(pod);
    match &initializing {
        Some(initializing) if condition(pod, "Initialized") != Some("True") => reason.clone_from(initializing),
        _ => {
            let mut running = false;
            for status in statuses(pod, "containerStatuses").rev() {
                let state = &status["state"];
                if let Some(waiting) = text(&state["waiting"]["reason"]) {
                    reason = waiting;
                } else if state["terminated"].is_object() {
                    reason = ended(&state["terminated"]);
                } else if status["ready"] == true && state["running"].is_object() {
                    running = true;
                }
            }
            if reason == "Completed" && running {
                reason = if condition(pod, "Ready") == Some("True") { "Running" } else { "NotReady" }.to_owned();
            }
        }
    }
    let deleted = pod["metadata"].get("deletionTimestamp").is_some();
    if deleted && pod["status"]["reason"] == "NodeLost" {
        "Unknown".to_owned()
    } else if deleted && !crate::pod::is_finished(pod) {
        "Terminating".to_owned()
    } else {
        reason
    }
}

fn ended(terminated: &Value) -> String {
    match terminated["reason"].as_str() {
        Some(reason) if !reason.is_empty() => reason.to_owned(),
        _ => match terminated["signal"].as_i64() {
            Some(signal) if signal != 0 => format!("Signal:{signal}"),
            _ => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
        },
    }
}

/// How far the init containers are; None when they are done or there are none.
fn init_status(pod: &Value) -> Option<String> {
    let specs = pod["spec"]["initContainers"].as_array()?;
    for (index, status) in statuses(pod, "initContainerStatuses").enumerate() {
        let state = &status["state"];
        let sidecar = specs.iter().any(|spec| spec["name"] == status["name"] && spec["restartPolicy"] == "Always");
        let terminated = &state["terminated"];
        if terminated.is_object() && terminated["exitCode"] == 0 || (sidecar && status["started"] == true) {
            continue;
        }
        if terminated.is_object() {
            return Some(format!("Init:{}", ended(terminated)));
        }
        return Some(match state["waiting"]["reason"].as_str() {
            Some(reason) if !reason.is_empty() && reason != "PodInitializing" => format!("Init:{reason}"),
            _ => format!("Init:{index}/{}", specs.len()),
        });
    }
    None
}

fn pod_restarts(pod: &Value, now: jiff::Timestamp) -> String {
    let mut restarts = 0;
    let mut last: Option<jiff::Timestamp> = None;
    let list = if init_status(pod).is_some() { "initContainerStatuses" } else { "containerStatuses" };
    for status in statuses(pod, list) {
        restarts += status["restartCount"].as_i64().unwrap_or(0);
        let finished = status["lastState"]["terminated"]["finishedAt"].as_str().and_then(|time| time.parse().ok());
        last = last.max(finished);
    }
    match last {
        Some(time) if restarts != 0 => format!("{restarts} ({} ago)", human(now.as_second() - time.as_second())),
        _ => restarts.to_string(),
    }
}

fn readiness_gates(pod: &Value) -> String {
    let gates = pod["spec"]["readinessGates"].as_array().map(Vec::as_slice).unwrap_or_default();
    if gates.is_empty() {
        return String::from("<none>");
    }
    let met = gates
        .iter()
        .filter(|gate| gate["conditionType"].as_str().is_some_and(|kind| condition(pod, kind) == Some("True")));
    format!("{}/{}", met.count(), gates.len())
}

fn node_roles(node: &Value) -> String {
    let mut roles = Vec::new();
    for (key, value) in node["metadata"]["labels"].as_object().into_iter().flatten() {
        if let Some(role) = key.strip_prefix("node-role.kubernetes.io/") {
            roles.push(role.to_owned());
        } else if key == "kubernetes.io/role" {
            roles.extend(value.as_str().map(str::to_owned));
        }
    }
    roles.sort();
    if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") }
}

fn node_address(node: &Value, kind: &str) -> String {
    let addresses = node["status"]["addresses"].as_array();
    let found = addresses.into_iter().flatten().find(|address| address["type"] == kind);
    found.and_then(|address| address["address"].as_str()).unwrap_or_default().to_owned()
}

fn event_time<'a>(event: &'a Value, pointers: &[&str]) -> &'a Value {
    pointers.iter().find_map(|pointer| event.pointer(pointer).filter(|time| time.is_string())).unwrap_or(&Value::Null)
}

fn age(time: &Value, now: jiff::Timestamp) -> String {
    let time = time.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    time.map_or_else(|| "<unknown>".to_owned(), |time| human(now.as_second() - time.as_second()))
}

/// A duration in at most two units, as kubectl's users know it.
fn human(seconds: i64) -> String {
    let pair = |large: i64, large_unit, small: i64, small_unit| {
        if small == 0 { format!("{large}{large_unit}") } else { format!("{large}{large_unit}{small}{small_unit}") }
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => pair(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => pair(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (601, "10m"),
            (10_801, "3h"),
            (14_700, "4h5m"),
            (90_000, "25h"),
            (180_000, "2d2h"),
            (864_000, "10d"),
        ] {
            assert_eq!(human(seconds), text);
        }
    }

    #[test]
    fn a_pod_status_says_what_matters_most() {
        let pod = |status: Value| json!({"metadata": {}, "spec": {"containers": [{}], "initContainers": [{"name": "i"}]}, "status": status});
        for (status, expected) in [
            (json!({"phase": "Pending"}), "Pending"),
            (json!({"phase": "Failed", "reason": "Evicted"}), "Evicted"),
            (
                json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull"}}}]}),
                "ErrImagePull",
            ),
            (
                json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}),
                "ExitCode:3",
            ),
            (
                json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"reason": "OOMKilled"}}}]}),
                "OOMKilled",
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}),
                "Init:0/1",
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}),
                "Init:Error",
            ),
            (
                json!({"phase": "Running", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 0}}}], "containerStatuses": [{"ready": true, "state": {"running": {}}}]}),
                "Running",
            ),
        ] {
            assert_eq!(pod_status(&pod(status)), expected);
        }
        let mut gone = pod(json!({"phase": "Running"}));
        gone["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(pod_status(&gone), "Terminating");
    }
}
