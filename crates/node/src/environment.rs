//! A container's environment: literal values, `$(NAME)` expansion, the pod's own fields, ConfigMaps and Secrets.
//!
//! Source of the rules: Kubernetes' `expansion.Expand` (`third_party/forked/golang/expansion`) and "Expose Pod
//! Information to Containers Through Environment Variables".

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use sampan_kit::quantity::Quantity;

/// Why the environment cannot be made yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentError {
    /// A ConfigMap or Secret is missing.
    #[error("{kind} {name:?} not found; create it in the pod's namespace, or mark the reference optional")]
    Missing {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// It lacks the key.
    #[error("couldn't find key {key:?} in {kind} {name:?}; add it, or mark the reference optional")]
    MissingKey {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A field path that pods do not offer to their environment.
    #[error("environment variable {variable:?}: field {path:?} is not available to containers")]
    Field {
        /// The variable.
        variable: String,
        /// The path.
        path: String,
    },
}

/// Values that the pod learns only when it starts.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// `status.podIP` and `status.podIPs`.
    pub pod_ips: Vec<String>,
    /// `status.hostIP`.
    pub host_ip: String,
    /// `spec.nodeName`.
    pub node_name: String,
}

/// Where ConfigMaps and Secrets come from: `(kind, name)` to their decoded values; `None` when there is no such object.
pub type Lookup<'a> = &'a dyn Fn(&'static str, &str) -> Option<BTreeMap<String, String>>;

/// The container's variables in the order of the spec.
pub fn resolve(
    pod: &Pod,
    container: &Container,
    live: &Live,
    lookup: Lookup<'_>,
) -> Result<Vec<(String, String)>, EnvironmentError> {
    let mut resolved: Vec<(String, String)> = Vec::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let (kind, name, optional) = match (&source.config_map_ref, &source.secret_ref) {
            (Some(reference), _) => ("configmap", &reference.name, reference.optional),
            (None, Some(reference)) => ("secret", &reference.name, reference.optional),
            (None, None) => continue,
        };
        match lookup(kind, name) {
            Some(values) => {
                resolved.extend(values.into_iter().map(|(key, value)| (format!("{prefix}{key}"), value)));
            }
            None if optional == Some(true) => {}
            None => return Err(EnvironmentError::Missing { kind, name: name.clone() }),
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value_of(pod, container, variable, live, lookup, &resolved)? {
            resolved.push((variable.name.clone(), value));
        }
    }
    Ok(resolved)
}

fn value_of(
    pod: &Pod,
    container: &Container,
    variable: &EnvVar,
    live: &Live,
    lookup: Lookup<'_>,
    so_far: &[(String, String)],
) -> Result<Option<String>, EnvironmentError> {
    let Some(source) = &variable.value_from else {
        return Ok(Some(expand(variable.value.as_deref().unwrap_or_default(), so_far)));
    };
    if let Some(field) = &source.field_ref {
        let missing = || EnvironmentError::Field { variable: variable.name.clone(), path: field.field_path.clone() };
        return pod_field(pod, field, live).map(Some).ok_or_else(missing);
    }
    if let Some(field) = &source.resource_field_ref {
        let missing = || EnvironmentError::Field { variable: variable.name.clone(), path: field.resource.clone() };
        return resource_field(container, &field.resource).map(Some).ok_or_else(missing);
    }
    key_of(source, lookup)
}

fn key_of(source: &EnvVarSource, lookup: Lookup<'_>) -> Result<Option<String>, EnvironmentError> {
    let (kind, name, key, optional) = match (&source.config_map_key_ref, &source.secret_key_ref) {
        (Some(reference), _) => ("configmap", &reference.name, &reference.key, reference.optional),
        (None, Some(reference)) => ("secret", &reference.name, &reference.key, reference.optional),
        (None, None) => return Ok(None),
    };
    let optional = optional == Some(true);
    match lookup(kind, name) {
        None if optional => Ok(None),
        None => Err(EnvironmentError::Missing { kind, name: name.clone() }),
        Some(mut values) => match values.remove(key) {
            None if !optional => Err(EnvironmentError::MissingKey { kind, name: name.clone(), key: key.clone() }),
            value => Ok(value),
        },
    }
}

fn pod_field(pod: &Pod, field: &ObjectFieldSelector, live: &Live) -> Option<String> {
    let metadata = &pod.metadata;
    let spec = pod.spec.as_ref()?;
    let keyed = |map: &Option<BTreeMap<String, String>>, prefix: &str| {
        let key = field.field_path.strip_prefix(prefix)?.strip_suffix("']")?;
        Some(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default())
    };
    match field.field_path.as_str() {
        "metadata.name" => metadata.name.clone(),
        "metadata.namespace" => metadata.namespace.clone(),
        "metadata.uid" => metadata.uid.clone(),
        "spec.nodeName" => Some(live.node_name.clone()),
        "spec.serviceAccountName" => Some(spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned())),
        "status.podIP" => Some(live.pod_ips.first().cloned().unwrap_or_default()),
        "status.podIPs" => Some(live.pod_ips.join(",")),
        "status.hostIP" | "status.hostIPs" => Some(live.host_ip.clone()),
        _ => keyed(&metadata.labels, "metadata.labels['")
            .or_else(|| keyed(&metadata.annotations, "metadata.annotations['")),
    }
}

fn resource_field(container: &Container, resource: &str) -> Option<String> {
    let (group, name) = resource.split_once('.')?;
    let resources = container.resources.as_ref()?;
    let map = match group {
        "limits" => resources.limits.as_ref(),
        "requests" => resources.requests.as_ref().or(resources.limits.as_ref()),
        _ => None,
    }?;
    let quantity = Quantity::parse(&map.get(name)?.0).ok()?;
    Some(quantity.units().to_string())
}

/// Replaces `$(NAME)` by its value where it is known; `$$` stands for one `$`.
#[must_use]
pub fn expand(text: &str, values: &[(String, String)]) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find('$') {
        let (before, after) = rest.split_at(position);
        expanded.push_str(before);
        let after = after.get(1..).unwrap_or_default();
        if let Some(after) = after.strip_prefix('$') {
            expanded.push('$');
            rest = after;
            continue;
        }
        match after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            Some((name, after)) => {
                match values.iter().rfind(|(known, _)| known == name) {
                    Some((_, value)) => expanded.push_str(value),
                    None => expanded.push_str(&format!("$({name})")),
                }
                rest = after;
            }
            None => {
                expanded.push('$');
                rest = after;
            }
        }
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::{Live, expand, resolve};
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    #[test]
    fn expands_as_kubernetes_does() {
        let values = [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "x$(A)".to_owned())];
        for (text, expanded) in
            [("$(A)", "1"), ("$(B)", "x$(A)"), ("$$(A)", "$(A)"), ("$(C)", "$(C)"), ("$A $", "$A $"), ("$(A", "$(A")]
        {
            assert_eq!(expand(text, &values), expanded, "{text}");
        }
    }

    #[test]
    fn fields_config_maps_and_order() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "labels": {"app": "shop"}},
            "spec": {"containers": [{"name": "main", "resources": {"limits": {"memory": "64Mi"}}, "env": [
                {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}},
                {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
                {"name": "URL", "value": "http://$(IP)/$(NAME)"},
                {"name": "GONE", "valueFrom": {"secretKeyRef": {"name": "none", "key": "x", "optional": true}}},
            ]}]},
        }))
        .unwrap();
        let live = Live { pod_ips: vec!["10.0.0.2".into()], ..Live::default() };
        let lookup = |kind: &'static str, name: &str| {
            (kind == "configmap" && name == "settings").then(|| [("colour".to_owned(), "blue".to_owned())].into())
        };
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let resolved = resolve(&pod, container, &live, &lookup).unwrap();
        let shown: Vec<String> = resolved.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let wanted = ["NAME=web", "APP=shop", "IP=10.0.0.2", "MEM=67108864", "KEY=blue", "URL=http://10.0.0.2/web"];
        assert_eq!(shown, wanted);
    }
}
