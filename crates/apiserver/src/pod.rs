//! What is peculiar to pods: rules across fields, what an update may change, the status of a new one.

mod security;

use std::collections::HashSet;

use sampan_kit::quantity::Quantity;
use serde_json::{Value, json};

use crate::error::Fault;
pub(crate) use security::Level;

const CONTAINER_LISTS: [&str; 2] = ["initContainers", "containers"];
const EPHEMERAL: &str = "ephemeralContainers";

/// All containers with the path of each, init containers first.
fn containers(pod: &Value) -> impl Iterator<Item = (String, &Value)> {
    in_lists(pod, &CONTAINER_LISTS)
}

/// The same with those that were put in later.
fn all_containers(pod: &Value) -> impl Iterator<Item = (String, &Value)> {
    in_lists(pod, &["initContainers", "containers", EPHEMERAL])
}

fn in_lists<'pod>(pod: &'pod Value, lists: &'static [&'static str]) -> impl Iterator<Item = (String, &'pod Value)> {
    lists.iter().flat_map(move |list| {
        let items = pod["spec"][*list].as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().enumerate().map(move |(index, one)| (format!("spec.{list}[{index}]"), one))
    })
}

/// Whether the pod has a container of that name.
pub(crate) fn has_container(pod: &Value, name: &str) -> bool {
    all_containers(pod).any(|(_, container)| container["name"] == name)
}

/// Names of all containers.
pub(crate) fn container_names(pod: &Value) -> Vec<&str> {
    containers(pod).filter_map(|(_, container)| container["name"].as_str()).collect()
}

/// Rules that tie fields of a pod together.
pub(crate) fn validate(pod: &Value, faults: &mut Vec<Fault>) {
    let volumes: HashSet<&str> =
        pod["spec"]["volumes"].as_array().into_iter().flatten().filter_map(|volume| volume["name"].as_str()).collect();
    let mut names = HashSet::new();
    let mut host_ports = HashSet::new();
    for (path, container) in all_containers(pod) {
        if let Some(name) = container["name"].as_str()
            && !names.insert(name)
            && !faults.iter().any(|fault| fault.field == format!("{path}.name"))
        {
            faults.push(Fault::duplicate(format!("{path}.name"), &container["name"]));
        }
        for (index, mount) in container["volumeMounts"].as_array().into_iter().flatten().enumerate() {
            if mount["name"].as_str().is_some_and(|name| !volumes.contains(name)) {
                let field = format!("{path}.volumeMounts[{index}].name");
                faults.push(Fault {
                    reason: "FieldValueNotFound",
                    field,
                    message: format!("Not found: {}", mount["name"]),
                });
            }
        }
        for (index, port) in container["ports"].as_array().into_iter().flatten().enumerate() {
            let host = port["hostPort"].as_i64().unwrap_or(0);
            let key = (host, port["protocol"].as_str(), port["hostIP"].as_str());
            if host != 0 && !host_ports.insert(key) {
                faults.push(Fault::duplicate(format!("{path}.ports[{index}].hostPort"), &port["hostPort"]));
            }
        }
        resources(&path, container, faults);
    }
    for (index, volume) in pod["spec"]["volumes"].as_array().into_iter().flatten().enumerate() {
        let sources = volume.as_object().map_or(0, |map| map.len().saturating_sub(1));
        if sources > 1 {
            let why = "may not specify more than 1 volume type";
            faults.push(Fault::forbidden(format!("spec.volumes[{index}]"), why));
        }
    }
    if pod["spec"]["dnsPolicy"] == "None"
        && pod["spec"]["dnsConfig"]["nameservers"].as_array().is_none_or(Vec::is_empty)
    {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        faults.push(Fault::required("spec.dnsConfig.nameservers", why));
    }
}

fn resources(path: &str, container: &Value, faults: &mut Vec<Fault>) {
    let Some(requests) = container["resources"]["requests"].as_object() else { return };
    for (name, request) in requests {
        let limit = &container["resources"]["limits"][name];
        let parse = |value: &Value| value.as_str().and_then(|text| Quantity::parse(text).ok());
        if let (Some(wanted), Some(most)) = (parse(request), parse(limit))
            && wanted > most
        {
            let why = format!("must be less than or equal to {name} limit of {}", limit.as_str().unwrap_or_default());
            faults.push(Fault::invalid(format!("{path}.resources.requests"), request, why));
        }
    }
}

/// What an update of a pod changes and may not. `old` and `new` are whole objects.
pub(crate) fn validate_update(old: &Value, new: &Value) -> Vec<Fault> {
    const WHY: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations)";
    let mut adapted = new["spec"].clone();
    let before = &old["spec"];
    for list in CONTAINER_LISTS {
        let now = adapted.get_mut(list).and_then(Value::as_array_mut);
        let (Some(now), Some(then)) = (now, before[list].as_array()) else { continue };
        if now.len() != then.len() {
            return vec![Fault::forbidden(format!("spec.{list}"), "pod updates may not add or remove containers")];
        }
        for (now, then) in now.iter_mut().zip(then) {
            if let (Some(now), Some(image)) = (now.as_object_mut(), then.get("image")) {
                now.insert("image".to_owned(), image.clone());
            }
        }
    }
    let tolerations = |spec: &Value| spec["tolerations"].as_array().cloned().unwrap_or_default();
    let now = tolerations(&adapted);
    let added_only = tolerations(before).iter().all(|one| now.contains(one));
    if let Some(map) = adapted.as_object_mut() {
        let mut put_back = vec!["activeDeadlineSeconds"];
        if added_only {
            put_back.push("tolerations");
        }
        for field in put_back {
            match before.get(field) {
                Some(value) => drop(map.insert(field.to_owned(), value.clone())),
                None => drop(map.shift_remove(field)),
            }
        }
    }
    if adapted == *before { Vec::new() } else { vec![Fault::forbidden("spec", WHY)] }
}

/// What a new pod may not have yet.
pub(crate) fn validate_new(pod: &Value) -> Vec<Fault> {
    let has_any = pod["spec"][EPHEMERAL].as_array().is_some_and(|list| !list.is_empty());
    let fault = || Fault::forbidden(format!("spec.{EPHEMERAL}"), "cannot be set on create");
    has_any.then(fault).into_iter().collect()
}

/// What a change of `ephemeralcontainers` may not: the list only grows, by containers that claim nothing of the pod's.
pub(crate) fn validate_ephemeral(old: &Value, new: &Value) -> Vec<Fault> {
    const CLAIMS: [&str; 7] =
        ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resizePolicy", "restartPolicy"];
    let list = |pod: &Value| pod["spec"][EPHEMERAL].as_array().cloned().unwrap_or_default();
    let (before, after) = (list(old), list(new));
    let mut faults = Vec::new();
    for known in &before {
        if !after.contains(known) {
            let why = format!("existing ephemeral containers {} may not be changed or removed", known["name"]);
            faults.push(Fault::forbidden(format!("spec.{EPHEMERAL}"), &why));
        }
    }
    for (index, one) in after.iter().enumerate().filter(|(_, one)| !before.contains(one)) {
        let path = |field: &str| format!("spec.{EPHEMERAL}[{index}].{field}");
        for claim in CLAIMS.into_iter().filter(|claim| one.get(claim).is_some()) {
            faults.push(Fault::forbidden(path(claim), "cannot be set for an Ephemeral Container"));
        }
        if one["resources"].as_object().is_some_and(|resources| !resources.is_empty()) {
            faults.push(Fault::forbidden(path("resources"), "cannot be set for an Ephemeral Container"));
        }
        let target = one["targetContainerName"].as_str().filter(|target| !target.is_empty());
        if let Some(target) = target
            && !containers(new).any(|(_, container)| container["name"] == target)
        {
            let field = path("targetContainerName");
            faults.push(Fault { reason: "FieldValueNotFound", field, message: format!("Not found: {target:?}") });
        }
    }
    faults
}

/// Takes over what the containers of `wanted` may use, and the rest of `wanted` not.
pub(crate) fn take_resources(next: &mut Value, wanted: &mut Value) {
    for list in CONTAINER_LISTS {
        let wanted = wanted["spec"][list].as_array().cloned().unwrap_or_default();
        for container in next["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(wanted) = wanted.iter().find(|wanted| wanted["name"] == container["name"]) else { continue };
            for field in ["resources", "resizePolicy"] {
                if let (Some(value), Some(container)) = (wanted.get(field), container.as_object_mut()) {
                    container.insert(field.to_owned(), value.clone());
                }
            }
        }
    }
}

/// What a resize may not: other amounts than of processor and memory, or another class of service.
pub(crate) fn validate_resize(old: &Value, new: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    for ((path, now), (_, then)) in containers(new).zip(containers(old)) {
        for kind in ["limits", "requests"] {
            let others = |container: &Value| {
                let mut map = container["resources"][kind].as_object().cloned().unwrap_or_default();
                map.retain(|name, _| name != "cpu" && name != "memory");
                map
            };
            if others(now) != others(then) {
                let why = "only cpu and memory resources are mutable";
                faults.push(Fault::forbidden(format!("{path}.resources.{kind}"), why));
            }
            let taken_away =
                |name: &&str| then["resources"][kind].get(name).is_some() && now["resources"][kind].get(name).is_none();
            for name in ["cpu", "memory"].into_iter().filter(taken_away) {
                let why = format!("{name} cannot be removed");
                faults.push(Fault::forbidden(format!("{path}.resources.{kind}"), &why));
            }
        }
    }
    if qos_class(old) != qos_class(new) {
        let why = "Pod QOS Class may not change as a result of resizing";
        faults.push(Fault::invalid("spec.containers", &json!(qos_class(new)), why));
    }
    if is_finished(old) {
        faults.push(Fault::forbidden("spec.containers", "a pod that has ended cannot be resized"));
    }
    faults
}

/// The status of a pod that has just been created.
pub(crate) fn first_status(pod: &Value) -> Value {
    json!({"phase": "Pending", "qosClass": qos_class(pod)})
}

/// Guaranteed when every container has equal, non-zero CPU and memory limits and requests; BestEffort when none has any.
fn qos_class(pod: &Value) -> &'static str {
    let amount = |container: &Value, kind: &str, name: &str| {
        let text = container["resources"][kind][name].as_str()?;
        Quantity::parse(text).ok().filter(|amount| amount.millis() > 0)
    };
    let mut any = false;
    let mut guaranteed = true;
    for (_, container) in containers(pod) {
        for name in ["cpu", "memory"] {
            let (request, limit) = (amount(container, "requests", name), amount(container, "limits", name));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Whether every container has ended for good.
pub(crate) fn is_finished(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}
