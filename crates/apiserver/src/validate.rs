//! Second look at an object: complete, of the right types, is what it says permitted?
//!
//! The rules of `data/rules.json` are checked for every kind alike; what ties several fields together follows by kind.

use std::collections::HashSet;

use sampan_kit::quantity::Quantity;
use serde_json::Value;

use crate::decode::Path;
use crate::error::Fault;
use crate::limits::FAULTS_MAX;
use crate::names::{dns_label_fault, dns_subdomain_fault, entries_faults, format_fault};
use crate::resources::Resource;
use crate::schema::{Field, Schemas, Type, TypeId};

/// Every fault of a complete object.
pub(crate) fn validate(schemas: &Schemas, resource: &Resource, value: &Value) -> Vec<Fault> {
    let mut faults = Vec::new();
    metadata(resource, value, &mut faults);
    walk(schemas, resource.object_type, value, Path::Root, &mut faults);
    if resource.kind == "Pod" {
        crate::pod::validate(value, &mut faults);
    }
    faults.truncate(FAULTS_MAX);
    faults
}

fn metadata(resource: &Resource, value: &Value, faults: &mut Vec<Fault>) {
    let name = value["metadata"]["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        faults.push(Fault::required("metadata.name", "name or generateName is required"));
        return;
    }
    // A namespace's name becomes a DNS label; all other names may have dots.
    let fault = if resource.kind == "Namespace" { dns_label_fault(name) } else { dns_subdomain_fault(name) };
    if let Some(fault) = fault {
        faults.push(Fault::invalid("metadata.name", &value["metadata"]["name"], fault));
    }
}

fn walk(schemas: &Schemas, id: TypeId, value: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    if faults.len() >= FAULTS_MAX {
        return;
    }
    match (schemas.get(id), value) {
        (Type::Object(object), Value::Object(map)) => {
            for (name, field) in &object.fields {
                let path = Path::Field(&path, name);
                match map.get(name) {
                    Some(value) => {
                        check(field, value, path, faults);
                        walk(schemas, field.value, value, path, faults);
                    }
                    None if field.required || field.rule.non_empty => {
                        faults.push(Fault::required(path.to_string(), ""))
                    }
                    None => {}
                }
            }
        }
        (Type::Map(values), Value::Object(map)) => {
            for (key, value) in map {
                walk(schemas, *values, value, Path::Key(&path, key), faults);
            }
        }
        (Type::List(items), Value::Array(list)) => {
            for (index, value) in list.iter().enumerate() {
                walk(schemas, *items, value, Path::Index(&path, index), faults);
            }
        }
        (Type::Quantity, Value::String(text)) => match Quantity::parse(text) {
            Err(error) => faults.push(Fault::invalid(path.to_string(), value, error)),
            Ok(quantity) if quantity.millis() < 0 => {
                faults.push(Fault::invalid(path.to_string(), value, "must be greater than or equal to 0"));
            }
            Ok(_) => {}
        },
        _ => {}
    }
}

/// Checks one value against its field's rule.
fn check(field: &Field, value: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let rule = &field.rule;
    if rule.non_empty {
        let empty = match value {
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        if empty {
            faults.push(Fault::required(path.to_string(), ""));
            return;
        }
    }
    if !rule.permitted.is_empty()
        && let Some(text) = value.as_str()
        && !rule.permitted.iter().any(|one| one == text)
    {
        let allowed = rule.permitted.iter().map(String::as_str).filter(|one| !one.is_empty()).collect::<Vec<_>>();
        faults.push(Fault::unsupported(path.to_string(), value, &allowed));
    }
    if let Some(number) = value.as_i64() {
        if let Some(minimum) = rule.minimum
            && number < minimum
        {
            faults.push(Fault::invalid(
                path.to_string(),
                value,
                format_args!("must be greater than or equal to {minimum}"),
            ));
        }
        if let Some(maximum) = rule.maximum
            && number > maximum
        {
            faults.push(Fault::invalid(
                path.to_string(),
                value,
                format_args!("must be less than or equal to {maximum}"),
            ));
        }
    }
    if let (Some(format), Some(text)) = (rule.format, value.as_str())
        && let Some(fault) = format_fault(format, text)
    {
        faults.push(Fault::invalid(path.to_string(), value, fault));
    }
    if let Some(entries) = rule.entries {
        entries_faults(entries, &path.to_string(), value, faults);
    }
    if let (Some(key), Some(list)) = (&rule.unique, value.as_array()) {
        let mut seen = HashSet::new();
        for (index, item) in list.iter().enumerate() {
            if let Some(text) = item[key].as_str()
                && !seen.insert(text)
            {
                let path = Path::Index(&path, index);
                faults.push(Fault::duplicate(Path::Field(&path, key).to_string(), &item[key]));
            }
        }
    }
}
