//! A container's environment: literal values, `$(NAME)` expansion, the pod's own fields, ConfigMaps and Secrets.
//!
//! Source of the rules: Kubernetes' `expansion.Expand` (`third_party/forked/golang/expansion`) and "Expose Pod
//! Information to Containers Through Environment Variables".

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod, ResourceFieldSelector};
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
    /// What the node has to give: thousandths of a core, bytes of memory. The limit of whoever has none.
    pub allocatable: (i64, i64),
}

/// The values of one ConfigMap or Secret, decoded.
pub type Values = BTreeMap<String, Vec<u8>>;

/// Where ConfigMaps and Secrets come from: `(kind, name)` to their values; `None` when there is no such object.
pub type Lookup<'a> = &'a dyn Fn(&'static str, &str) -> Option<Values>;

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
                resolved.extend(values.into_iter().map(|(key, value)| (format!("{prefix}{key}"), text(value))));
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
        return resource_field(container, field, live).map(Some).ok_or_else(missing);
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
            value => Ok(value.map(text)),
        },
    }
}

/// Variables are text; what is not is passed on as near to it as text can be.
fn text(value: Vec<u8>) -> String {
    String::from_utf8(value).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// A field of the pod as its containers may know it.
pub(crate) fn pod_field(pod: &Pod, field: &ObjectFieldSelector, live: &Live) -> Option<String> {
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

/// What a container may use, in units of the divisor, rounded up. Without a limit it is the node's.
pub(crate) fn resource_field(container: &Container, field: &ResourceFieldSelector, live: &Live) -> Option<String> {
    let (group, name) = field.resource.split_once('.')?;
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|resources| resources.limits.as_ref()?.get(name));
    let own = match group {
        "limits" => limits,
        "requests" => resources.and_then(|resources| resources.requests.as_ref()?.get(name)).or(limits),
        _ => return None,
    };
    let (cpu_millis, memory_bytes) = live.allocatable;
    let millis = match (own, name) {
        (Some(own), _) => Quantity::parse(&own.0).ok()?.millis(),
        (None, "cpu") if group == "limits" => cpu_millis,
        (None, "memory") if group == "limits" => memory_bytes.saturating_mul(1000),
        (None, "cpu" | "memory" | "ephemeral-storage") => 0,
        (None, _) => return None,
    };
    let divisor = field.divisor.as_ref().and_then(|text| Quantity::parse(&text.0).ok()).map(Quantity::millis);
    let divisor = divisor.filter(|divisor| *divisor > 0).unwrap_or(1000);
    Some((millis / divisor + i64::from(millis % divisor > 0)).to_string())
}

/// Replaces `$(NAME)` by its value where it is known; `$$` stands for one `$`.
#[must_use]
pub fn expand(text: &str, values: &[(String, String)]) -> String {
    expand_with(text, values, |name| Ok::<_, std::convert::Infallible>(format!("$({name})")))
        .unwrap_or_else(|never| match never {})
}

/// The same where every name has to be known; the first that is not.
pub fn expand_known(text: &str, values: &[(String, String)]) -> Result<String, String> {
    expand_with(text, values, |name| Err(name.to_owned()))
}

fn expand_with<E>(
    text: &str,
    values: &[(String, String)],
    mut unknown: impl FnMut(&str) -> Result<String, E>,
) -> Result<String, E> {
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
                    None => expanded.push_str(&unknown(name)?),
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
    Ok(expanded)
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
            (kind == "configmap" && name == "settings").then(|| [("colour".to_owned(), b"blue".to_vec())].into())
        };
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let resolved = resolve(&pod, container, &live, &lookup).unwrap();
        let shown: Vec<String> = resolved.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let wanted = ["NAME=web", "APP=shop", "IP=10.0.0.2", "MEM=67108864", "KEY=blue", "URL=http://10.0.0.2/web"];
        assert_eq!(shown, wanted);
    }

    #[test]
    fn amounts_are_in_units_of_the_divisor_rounded_up() {
        let container =
            serde_json::from_value(json!({"name": "m", "resources": {"limits": {"cpu": "1500m"}}})).unwrap();
        let live = Live { allocatable: (4000, 3 << 20), ..Live::default() };
        let amount = |resource: &str, divisor: &str| {
            let field = json!({"resource": resource, "divisor": divisor});
            super::resource_field(&container, &serde_json::from_value(field).unwrap(), &live)
        };
        for (resource, divisor, wanted) in [
            ("limits.cpu", "1", Some("2")),
            ("limits.cpu", "1m", Some("1500")),
            ("requests.cpu", "0", Some("2")),
            ("limits.memory", "1Mi", Some("3")),
            ("requests.memory", "1", Some("0")),
            ("limits.stars", "1", None),
            ("cpu", "1", None),
        ] {
            assert_eq!(amount(resource, divisor).as_deref(), wanted, "{resource} {divisor}");
        }
    }
}
