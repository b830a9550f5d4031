//! Label and field selectors.

use serde_json::Value;

use crate::error::ApiError;
use crate::names::{label_value_fault, qualified_name_fault};
use crate::resources::Resource;

/// Which objects of a list or watch are wanted. An empty one wants all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<LabelRequirement>,
    fields: Vec<FieldRequirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum LabelRequirement {
    In(String, Vec<String>),
    /// True also where the label is missing.
    NotIn(String, Vec<String>),
    Exists(String),
    Missing(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldRequirement {
    /// `spec.nodeName`.
    path: String,
    value: String,
    equal: bool,
}

impl Selector {
    /// Reads `labelSelector` and `fieldSelector`.
    pub(crate) fn parse(resource: &Resource, labels: &str, fields: &str) -> Result<Self, ApiError> {
        let unreadable = |what: &str, text: &str, why: String| {
            let text: String = text.chars().take(128).collect();
            ApiError::bad_request(format!("unable to parse the {what} selector {text:?}: {why}"))
        };
        Ok(Self {
            labels: parse_labels(labels).map_err(|why| unreadable("label", labels, why))?,
            fields: parse_fields(resource, fields).map_err(|why| unreadable("field", fields, why))?,
        })
    }

    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.labels.iter().all(|requirement| requirement.matches(labels))
            && self.fields.iter().all(|field| (field_text(object, &field.path) == field.value) == field.equal)
    }
}

impl LabelRequirement {
    fn matches(&self, labels: &Value) -> bool {
        let value = |key: &String| labels.get(key).and_then(Value::as_str);
        match self {
            Self::In(key, values) => value(key).is_some_and(|value| values.iter().any(|one| one == value)),
            Self::NotIn(key, values) => value(key).is_none_or(|value| values.iter().all(|one| one != value)),
            Self::Exists(key) => value(key).is_some(),
            Self::Missing(key) => value(key).is_none(),
        }
    }
}

/// A field as a selector sees it: absent is empty.
fn field_text(object: &Value, path: &str) -> String {
    let mut value = object;
    if path == "source" {
        let reporter = object["reportingComponent"].as_str().filter(|text| !text.is_empty());
        return reporter.or(object["source"]["component"].as_str()).unwrap_or_default().to_owned();
    }
    for part in path.split('.') {
        value = &value[part];
    }
    match value {
        Value::String(text) => text.clone(),
        Value::Null if path == "spec.unschedulable" || path == "spec.hostNetwork" => "false".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        _ => String::new(),
    }
}

fn parse_fields(resource: &Resource, text: &str) -> Result<Vec<FieldRequirement>, String> {
    let mut requirements = Vec::new();
    for term in split_escaped(text).into_iter().filter(|term| !term.is_empty()) {
        let (path, value, equal) = if let Some((path, value)) = term.split_once("!=") {
            (path, value, false)
        } else if let Some((path, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
            (path, value, true)
        } else {
            return Err(format!("{term:?} is not of the form field=value"));
        };
        let path = path.trim();
        let known = path == "metadata.name"
            || (path == "metadata.namespace" && resource.namespaced)
            || resource.fields.iter().any(|one| one == path);
        if !known {
            return Err(format!("field label not supported: {path}"));
        }
        let value = value.replace("\\,", ",").replace("\\=", "=").replace("\\\\", "\\");
        requirements.push(FieldRequirement { path: path.to_owned(), value, equal });
    }
    Ok(requirements)
}

/// Splits at commas that no backslash precedes.
fn split_escaped(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let mut start = 0;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        if byte == b',' && !escaped {
            terms.push(text.get(start..at).unwrap_or_default());
            start = at + 1;
        }
        escaped = byte == b'\\' && !escaped;
    }
    terms.push(text.get(start..).unwrap_or_default());
    terms
}

fn parse_labels(text: &str) -> Result<Vec<LabelRequirement>, String> {
    let mut rest = text.trim();
    let mut requirements = Vec::new();
    while !rest.is_empty() {
        let (requirement, after) = parse_label(rest)?;
        requirements.push(requirement);
        rest = after.trim_start();
        match rest.strip_prefix(',') {
            Some(after) => rest = after.trim_start(),
            None if rest.is_empty() => break,
            None => return Err(format!("a comma is missing before {rest:?}")),
        }
    }
    Ok(requirements)
}

fn parse_label(text: &str) -> Result<(LabelRequirement, &str), String> {
    if let Some(text) = text.strip_prefix('!') {
        let (key, rest) = parse_key(text.trim_start())?;
        return Ok((LabelRequirement::Missing(key), rest));
    }
    let (key, rest) = parse_key(text)?;
    let rest = rest.trim_start();
    if let Some(rest) = rest.strip_prefix("!=") {
        let (value, rest) = parse_value(rest)?;
        return Ok((LabelRequirement::NotIn(key, vec![value]), rest));
    }
    if let Some(rest) = rest.strip_prefix("==").or_else(|| rest.strip_prefix('=')) {
        let (value, rest) = parse_value(rest)?;
        return Ok((LabelRequirement::In(key, vec![value]), rest));
    }
    if let Some(rest) = rest.strip_prefix("in").filter(|rest| rest.trim_start().starts_with('(')) {
        let (values, rest) = parse_set(rest)?;
        return Ok((LabelRequirement::In(key, values), rest));
    }
    if let Some(rest) = rest.strip_prefix("notin").filter(|rest| rest.trim_start().starts_with('(')) {
        let (values, rest) = parse_set(rest)?;
        return Ok((LabelRequirement::NotIn(key, values), rest));
    }
    Ok((LabelRequirement::Exists(key), rest))
}

fn parse_key(text: &str) -> Result<(String, &str), String> {
    let end = text.find(|c: char| c.is_whitespace() || "=!,()".contains(c)).unwrap_or(text.len());
    let (key, rest) = text.split_at(end);
    match qualified_name_fault(key) {
        None => Ok((key.to_owned(), rest)),
        Some(fault) => Err(format!("key {key:?}: {fault}")),
    }
}

fn parse_value(text: &str) -> Result<(String, &str), String> {
    let text = text.trim_start();
    let end = text.find(',').unwrap_or(text.len());
    let (value, rest) = text.split_at(end);
    checked_value(value.trim()).map(|value| (value, rest))
}

fn parse_set(text: &str) -> Result<(Vec<String>, &str), String> {
    let inner = text.trim_start().strip_prefix('(').ok_or("a set begins with '('")?;
    let (inner, rest) = inner.split_once(')').ok_or("a set ends with ')'")?;
    let values = inner.split(',').map(|value| checked_value(value.trim())).collect::<Result<_, _>>()?;
    Ok((values, rest))
}

fn checked_value(value: &str) -> Result<String, String> {
    match label_value_fault(value) {
        None => Ok(value.to_owned()),
        Some(fault) => Err(format!("value {value:?}: {fault}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn check(labels: &str, fields: &str) -> Result<bool, ApiError> {
        let catalog = crate::catalog::for_tests();
        let pods = catalog.stored("pods").expect("pods");
        let pod = json!({
            "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web", "tier": "front", "empty": ""}},
            "spec": {"nodeName": "node-1"},
            "status": {"phase": "Running"},
        });
        Ok(Selector::parse(pods, labels, fields)?.matches(&pod))
    }

    #[test]
    fn selectors_choose() {
        for (labels, fields, expected) in [
            ("", "", true),
            ("app=web", "", true),
            ("app==web,tier!=back", "", true),
            ("app in (web, api), tier notin (back)", "", true),
            ("app notin (web)", "", false),
            ("!app", "", false),
            ("!missing,empty", "", true),
            ("empty=", "", true),
            ("in", "", false),
            ("missing!=x", "", true),
            ("", "metadata.name=web,status.phase!=Failed", true),
            ("", "spec.nodeName==node-2", false),
            ("", "spec.nodeName!=", true),
            ("", "status.podIP=", true),
        ] {
            assert_eq!(check(labels, fields), Ok(expected), "{labels} {fields}");
        }
        for (labels, fields) in [
            ("a b", ""),
            ("a in", ""),
            ("a in (b", ""),
            ("=x", ""),
            ("a=b c", ""),
            ("", "spec.color=x"),
            ("", "metadata.name"),
        ] {
            assert_eq!(check(labels, fields).map_err(|error| error.status.as_u16()), Err(400), "{labels} {fields}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(labels in "[a-c=!,() inot/.]{0,24}", fields in "[a-z.=!,\\\\]{0,24}") {
            drop(check(&labels, &fields));
        }
    }
}
