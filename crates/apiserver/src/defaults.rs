//! Completes an object: the defaults of schemas and rules, and those that depend on other fields.

use serde_json::{Map, Value, json};

use crate::schema::{Schemas, Type, TypeId};

/// Fills in what the schemas and rules say. Only fields of objects that are there; `status` is left alone but for
/// required fields, which get the zero that the specification publishes.
pub(crate) fn fill(schemas: &Schemas, id: TypeId, value: &mut Value) {
    match (schemas.get(id), value) {
        (Type::Object(object), Value::Object(map)) => {
            for (name, field) in &object.fields {
                if let Some(value) = map.get_mut(name) {
                    fill(schemas, field.value, value);
                } else if let Some(default) = &field.rule.default {
                    let mut default = default.clone();
                    fill(schemas, field.value, &mut default);
                    map.insert(name.clone(), default);
                } else if let Some(default) = field.published_default.as_ref().filter(|default| !is_zero(default)) {
                    map.insert(name.clone(), default.clone());
                }
            }
        }
        (Type::Map(values), Value::Object(map)) => map.values_mut().for_each(|value| fill(schemas, *values, value)),
        (Type::List(items), Value::Array(list)) => list.iter_mut().for_each(|value| fill(schemas, *items, value)),
        _ => {}
    }
}

/// Fills in published zeros of required fields, so that a status written by hand is complete.
pub(crate) fn fill_required(schemas: &Schemas, id: TypeId, value: &mut Value) {
    match (schemas.get(id), value) {
        (Type::Object(object), Value::Object(map)) => {
            for (name, field) in &object.fields {
                if let Some(value) = map.get_mut(name) {
                    fill_required(schemas, field.value, value);
                } else if field.required
                    && let Some(default) = &field.published_default
                {
                    map.insert(name.clone(), default.clone());
                }
            }
        }
        (Type::Map(values), Value::Object(map)) => {
            map.values_mut().for_each(|value| fill_required(schemas, *values, value));
        }
        (Type::List(items), Value::Array(list)) => {
            list.iter_mut().for_each(|value| fill_required(schemas, *items, value));
        }
        _ => {}
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(one) => !one,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// Defaults that depend on other fields, by kind.
pub(crate) fn fill_dependent(kind: &str, value: &mut Value) {
    match kind {
        "Pod" => fill_pod(value),
        "Namespace" => {
            let name = value["metadata"]["name"].clone();
            value["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
        }
        "Secret" => merge_string_data(value),
        _ => {}
    }
}

fn fill_pod(pod: &mut Value) {
    let host_network = pod["spec"]["hostNetwork"] == true;
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        let Some(containers) = pod["spec"].get_mut(list).and_then(Value::as_array_mut) else { continue };
        for container in containers.iter_mut().filter_map(Value::as_object_mut) {
            fill_container(container, host_network);
        }
    }
}

fn fill_container(container: &mut Map<String, Value>, host_network: bool) {
    if !container.contains_key("imagePullPolicy") {
        let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
        let policy = if floats(image) { "Always" } else { "IfNotPresent" };
        container.insert("imagePullPolicy".to_owned(), Value::String(policy.to_owned()));
    }
    // What is limited and not requested is requested to its limit.
    if let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut)
        && let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned()
    {
        let requests = resources.entry("requests").or_insert_with(|| json!({}));
        if let Some(requests) = requests.as_object_mut() {
            for (name, limit) in limits {
                requests.entry(name).or_insert(limit);
            }
        }
    }
    if host_network {
        let ports = container.get_mut("ports").and_then(Value::as_array_mut);
        for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
            if let Some(number) = port.get("containerPort").cloned() {
                port.entry("hostPort").or_insert(number);
            }
        }
    }
}

/// Whether a reference may mean another image tomorrow: it has the tag `latest` or none, and no digest.
fn floats(reference: &str) -> bool {
    if reference.contains('@') {
        return false;
    }
    // A local directory does not change behind our back in a way that pulling again would show sooner.
    if reference.starts_with("oci:") {
        return false;
    }
    let last = reference.rsplit('/').next().unwrap_or(reference);
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

/// `stringData` is write-only: it ends up in `data`, encoded.
fn merge_string_data(secret: &mut Value) {
    use base64::Engine as _;
    let Some(Value::Object(texts)) = secret.as_object_mut().and_then(|map| map.shift_remove("stringData")) else {
        return;
    };
    for (key, text) in texts {
        let encoded = base64::engine::general_purpose::STANDARD.encode(text.as_str().unwrap_or_default());
        secret["data"][key] = Value::String(encoded);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_floating_references_are_always_pulled() {
        for (reference, expected) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("registry:5000/nginx", true),
            ("nginx:1.27", false),
            ("registry:5000/nginx:1", false),
            ("nginx@sha256:00", false),
            ("oci:/tmp/image", false),
        ] {
            assert_eq!(super::floats(reference), expected, "{reference}");
        }
    }
}
