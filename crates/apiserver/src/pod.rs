//! What is peculiar to pods: rules across fields, what an update may change, the status of a new one.

use std::collections::HashSet;

use sampan_kit::quantity::Quantity;
use serde_json::{Value, json};

use crate::error::Fault;

const CONTAINER_LISTS: [&str; 2] = ["initContainers", "containers"];

/// All containers with the path of each, init containers first.
fn containers(pod: &Value) -> impl Iterator<Item = (String, &Value)> {
    CONTAINER_LISTS.into_iter().flat_map(move |list| {
        let items = pod["spec"][list].as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().enumerate().map(move |(index, one)| (format!("spec.{list}[{index}]"), one))
    })
}

/// Whether the pod has a container of that name.
pub(crate) fn has_container(pod: &Value, name: &str) -> bool {
    containers(pod).any(|(_, container)| container["name"] == name)
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
    for (path, container) in containers(pod) {
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
