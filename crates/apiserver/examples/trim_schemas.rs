//! Makes `data/openapi/api__v1.json` from the specification that Kubernetes publishes.
//!
//! The source is `api/openapi-spec/v3/api__v1_openapi.json` of the Go module k8s.io/kubernetes at v1.34.4, Apache-2.0,
//! Copyright The Kubernetes Authors. Kept are the paths of the resources in `data/resources.json`, the schemas that
//! they reach, and every description; left out are other kinds and the CBOR and protobuf variants of bodies.
//!
//! ```text
//! DIR=$(go mod download -json k8s.io/kubernetes@v1.34.4 | jq -r .Dir)
//! cargo run -p sampan-apiserver --example trim_schemas -- $DIR/api/openapi-spec/v3/api__v1_openapi.json crates/apiserver/data/openapi/api__v1.json
//! ```

use std::collections::BTreeSet;

use serde_json::{Map, Value};

const RESOURCES: &str = include_str!("../data/resources.json");
const DROPPED_MEDIA: [&str; 5] = ["cbor", "cbor-seq", "protobuf", "protobuf;stream=watch", "apply-patch+cbor"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(source), Some(target)) = (arguments.next(), arguments.next()) else {
        return Err("usage: trim_schemas SOURCE TARGET".into());
    };
    let mut document: Value = serde_json::from_slice(&std::fs::read(source)?)?;
    let table: Value = serde_json::from_str(RESOURCES)?;

    let served = served_paths(&table);
    let paths = document["paths"].as_object_mut().ok_or("the source has no paths")?;
    paths.retain(|path, _| served.contains(path));
    let missing: Vec<_> = served.iter().filter(|path| !paths.contains_key(*path)).collect();
    if !missing.is_empty() {
        return Err(format!("the source lacks {missing:?}").into());
    }
    drop_media(&mut document["paths"]);

    let mut wanted = BTreeSet::new();
    references(&document["paths"], &mut wanted);
    let mut seen = BTreeSet::new();
    while let Some(name) = wanted.pop_first() {
        if seen.insert(name.clone()) {
            let mut found = BTreeSet::new();
            references(&document["components"]["schemas"][&name], &mut found);
            wanted.extend(found.difference(&seen).cloned());
        }
    }
    let schemas = document["components"]["schemas"].as_object_mut().ok_or("the source has no schemas")?;
    schemas.retain(|name, _| seen.contains(name));
    std::fs::write(target, serde_json::to_vec(&document)?)?;
    Ok(())
}

fn served_paths(table: &Value) -> BTreeSet<String> {
    let mut paths = BTreeSet::from(["/api/v1/".to_owned()]);
    for resource in table.as_array().into_iter().flatten().filter(|one| one["group"] == "") {
        let plural = resource["plural"].as_str().unwrap_or_default();
        let base = if resource["namespaced"] == true {
            paths.insert(format!("/api/v1/{plural}"));
            format!("/api/v1/namespaces/{{namespace}}/{plural}")
        } else {
            format!("/api/v1/{plural}")
        };
        paths.insert(format!("{base}/{{name}}"));
        for subresource in resource["subresources"].as_array().into_iter().flatten() {
            let name = subresource["name"].as_str().unwrap_or_default();
            paths.insert(format!("{base}/{{name}}/{name}"));
            if name == "proxy" {
                paths.insert(format!("{base}/{{name}}/{name}/{{path}}"));
            }
        }
        paths.insert(base);
    }
    paths
}

/// Removes bodies in formats that are not spoken here.
fn drop_media(value: &mut Value) {
    match value {
        Value::Object(object) => {
            if let Some(content) = object.get_mut("content").and_then(Value::as_object_mut) {
                content.retain(|media, _| !DROPPED_MEDIA.iter().any(|dropped| media.ends_with(dropped)));
            }
            object.values_mut().for_each(drop_media);
        }
        Value::Array(array) => array.iter_mut().for_each(drop_media),
        _ => {}
    }
}

fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => references_of_object(object, found),
        Value::Array(array) => array.iter().for_each(|one| references(one, found)),
        _ => {}
    }
}

fn references_of_object(object: &Map<String, Value>, found: &mut BTreeSet<String>) {
    if let Some(name) = object.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next()) {
        found.insert(name.to_owned());
    }
    object.values().for_each(|one| references(one, found));
}
