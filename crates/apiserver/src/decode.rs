//! First look at an object that a client sent: JSON types, unknown fields, nulls.
//!
//! After it every value has the type that its schema says, and no field is there that the schema lacks: unknown ones are
//! taken out and named, so that the caller can refuse them, warn, or stay silent (`fieldValidation`). A null is as good as
//! nothing and is taken out too. Depth is bounded by the parser that made the value.

use serde_json::Value;

use crate::limits::FAULTS_MAX;
use crate::schema::{Schemas, Type, TypeId};

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Paths of fields that no schema knows.
    pub(crate) unknown: Vec<String>,
    /// One text for each value of the wrong type.
    pub(crate) wrong: Vec<String>,
}

/// A position in an object, shared along the walk, rendered only when something is wrong.
#[derive(Clone, Copy)]
pub(crate) enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
    /// Of a map with free keys.
    Key(&'a Path<'a>, &'a str),
}

impl std::fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Field(Path::Root, name) => f.write_str(name),
            Path::Field(parent, name) => write!(f, "{parent}.{name}"),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
            Path::Key(parent, key) => write!(f, "{parent}[{key}]"),
        }
    }
}

/// Prunes `value` to its type and says what was wrong.
pub(crate) fn decode(schemas: &Schemas, id: TypeId, value: &mut Value) -> Findings {
    let mut findings = Findings::default();
    walk(schemas, id, value, Path::Root, &mut findings);
    findings
}

fn walk(schemas: &Schemas, id: TypeId, value: &mut Value, path: Path<'_>, findings: &mut Findings) {
    match (schemas.get(id), &mut *value) {
        (Type::Object(object), Value::Object(map)) => {
            map.retain(|name, value| {
                if value.is_null() {
                    return false;
                }
                let known = object.fields.contains_key(name);
                if !known && findings.unknown.len() < FAULTS_MAX {
                    findings.unknown.push(Path::Field(&path, name).to_string());
                }
                known
            });
            for (name, value) in map.iter_mut() {
                if let Some(field) = object.fields.get(name) {
                    walk(schemas, field.value, value, Path::Field(&path, name), findings);
                }
            }
        }
        (Type::Map(values), Value::Object(map)) => {
            map.retain(|_, value| !value.is_null());
            for (key, value) in map.iter_mut() {
                walk(schemas, *values, value, Path::Field(&path, key), findings);
            }
        }
        (Type::List(items), Value::Array(list)) => {
            for (index, value) in list.iter_mut().enumerate() {
                walk(schemas, *items, value, Path::Index(&path, index), findings);
            }
        }
        (Type::Quantity, Value::Number(number)) => *value = Value::String(number.to_string()),
        (kind, _) => {
            if let Some(expected) = scalar_fault(kind, value)
                && findings.wrong.len() < FAULTS_MAX
            {
                let shown: String = value.to_string().chars().take(64).collect();
                findings.wrong.push(format!("{path}: expected {expected}, found {shown}"));
            }
        }
    }
}

/// What should have been there in place of `value`.
fn scalar_fault(kind: &Type, value: &Value) -> Option<&'static str> {
    match (kind, value) {
        (Type::Any, _) | (Type::Text | Type::Quantity, Value::String(_)) | (Type::Boolean, Value::Bool(_)) => None,
        (Type::Number, Value::Number(_)) | (Type::IntOrString, Value::String(_)) => None,
        (Type::Integer { bits: 32 } | Type::IntOrString, Value::Number(number)) => {
            let fits = number.as_i64().is_some_and(|number| i32::try_from(number).is_ok());
            (!fits).then_some("a whole number of 32 bits")
        }
        (Type::Integer { .. }, Value::Number(number)) => (!number.is_i64()).then_some("a whole number of 64 bits"),
        (Type::Time, Value::String(text)) => text
            .parse::<jiff::Timestamp>()
            .is_err()
            .then_some("a time as RFC 3339 has it, such as 2026-01-31T12:00:00Z"),
        (Type::Bytes, Value::String(text)) => (!is_base64(text)).then_some("base64"),
        (Type::Object(_) | Type::Map(_), _) => Some("an object"),
        (Type::List(_), _) => Some("a list"),
        (Type::Text, _) => Some("a string"),
        (Type::Bytes, _) => Some("a string of base64"),
        (Type::Time, _) => Some("a time"),
        (Type::Integer { .. }, _) => Some("a whole number"),
        (Type::Number, _) => Some("a number"),
        (Type::Boolean, _) => Some("true or false"),
        (Type::IntOrString, _) => Some("a number or a string"),
        (Type::Quantity, _) => Some("a quantity"),
    }
}

/// Whether a text is standard base64 with padding (RFC 4648, section 4); line breaks are allowed, as Go allows them.
fn is_base64(text: &str) -> bool {
    let mut digits = 0_usize;
    let mut padding = 0_usize;
    for byte in text.bytes() {
        match byte {
            b'\r' | b'\n' => {}
            b'=' => padding += 1,
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' if padding == 0 => digits += 1,
            _ => return false,
        }
    }
    padding <= 2 && (digits + padding).is_multiple_of(4)
}
