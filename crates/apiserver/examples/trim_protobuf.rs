//! Makes `data/protobuf.json`, the field numbers of served types, from the definitions that Kubernetes publishes.
//!
//! The sources are `core/v1/generated.proto` of the Go module k8s.io/api and `pkg/apis/meta/v1/generated.proto` of
//! k8s.io/apimachinery, both v0.34.4, Apache-2.0, Copyright The Kubernetes Authors. Run `trim_schemas` first: what it
//! kept says what is kept here, and which messages are nested on the wire but not in JSON.
//!
//! ```text
//! cargo run -p sampan-apiserver --example trim_protobuf -- crates/apiserver/data/openapi/api__v1.json crates/apiserver/data/protobuf.json \
//!     $API/core/v1/generated.proto $APIMACHINERY/pkg/apis/meta/v1/generated.proto
//! ```

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Name → number, field, type.
type Messages = BTreeMap<String, Vec<(u32, String, String)>>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(openapi), Some(target)) = (arguments.next(), arguments.next()) else {
        return Err("usage: trim_protobuf OPENAPI TARGET PROTO…".into());
    };
    let openapi: Value = serde_json::from_slice(&std::fs::read(openapi)?)?;
    let mut messages = Messages::new();
    for source in arguments {
        read(&std::fs::read_to_string(source)?, &mut messages);
    }
    let schemas = openapi["components"]["schemas"].as_object().ok_or("the specification has no schemas")?;
    let mut wanted: Vec<String> = schemas.keys().filter(|name| messages.contains_key(*name)).cloned().collect();
    let mut kept = BTreeMap::new();
    while let Some(name) = wanted.pop() {
        let Some(fields) = messages.get(&name).filter(|_| !kept.contains_key(&name)) else { continue };
        let properties = schemas.get(&name).map(|schema| &schema["properties"]);
        let mut rows = Vec::new();
        for (number, field, kind) in fields {
            let bare = kind.trim_start_matches(['*', '%']);
            let inline = properties.is_some_and(|properties| properties.is_object() && properties.get(field).is_none());
            let inline = inline && messages.contains_key(bare);
            let mark = if inline { "^" } else { "" };
            rows.push(json!([number, field, format!("{mark}{kind}")]));
            wanted.push(bare.to_owned());
        }
        kept.insert(name, rows);
    }
    let lines: Vec<String> = kept.iter().map(|(name, rows)| format!("{}: {}", json!(name), json!(rows))).collect();
    std::fs::write(target, format!("{{\n{}\n}}\n", lines.join(",\n")))?;
    Ok(())
}

fn read(source: &str, messages: &mut Messages) {
    let mut package = String::new();
    let mut current = None;
    for line in source.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
        if let Some(name) = line.strip_prefix("package ") {
            package = open(name.trim_end_matches(';'));
        } else if let Some(name) = line.strip_prefix("message ") {
            current = Some(format!("{package}.{}", name.trim_end_matches([' ', '{'])));
        } else if line == "}" {
            current = None;
        } else if let (Some(message), Some((declaration, number))) = (&current, line.split_once(" = ")) {
            let number = number.split([';', ' ']).next().and_then(|number| number.parse().ok());
            let Some((kind, name)) = declaration.rsplit_once(' ') else { continue };
            let Some(number) = number else { continue };
            let (mark, kind) = match (kind.strip_prefix("repeated "), kind.strip_prefix("map<string, ")) {
                (Some(kind), _) => ("*", kind),
                (_, Some(kind)) => ("%", kind.trim_end_matches('>')),
                _ => ("", kind.trim_start_matches("optional ")),
            };
            let field = (number, name.to_owned(), format!("{mark}{}", type_name(kind, &package)));
            messages.entry(message.clone()).or_default().push(field);
        }
    }
}

fn type_name(kind: &str, package: &str) -> String {
    match kind {
        "string" | "bytes" | "bool" | "int32" | "int64" | "double" => kind.to_owned(),
        _ if kind.starts_with('.') => open(kind.trim_start_matches('.')),
        _ => format!("{package}.{kind}"),
    }
}

/// `k8s.io.api.core.v1` is `io.k8s.api.core.v1` in OpenAPI.
fn open(name: &str) -> String {
    name.strip_prefix("k8s.io.").map_or_else(|| name.to_owned(), |rest| format!("io.k8s.{rest}"))
}
