//! What is in volumes, source by source.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Volume};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{ProjectionError, project, references};
use crate::environment::{Live, Values};

fn pod(volume: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "labels": {"b": "2", "a": "say \"hi\""}},
        "spec": {
            "containers": [{"name": "main", "resources": {"limits": {"cpu": "1500m"}}}],
            "volumes": [volume],
        },
    }))
    .unwrap()
}

fn lookup(kind: &'static str, name: &str) -> Option<Values> {
    let values = |list: &[(&str, &[u8])]| list.iter().map(|(key, value)| ((*key).to_owned(), value.to_vec())).collect();
    match (kind, name) {
        ("configmap", "settings") => Some(values(&[("colour", b"blue"), ("size", b"large")])),
        ("secret", "login") => Some(values(&[("password", b"\xff\x00")])),
        _ => None,
    }
}

/// The files as `path mode content`.
fn files(volume: Value) -> Result<Vec<String>, ProjectionError> {
    let pod = pod(&volume);
    let volume: Volume = serde_json::from_value(volume).unwrap();
    let files = project(&pod, &volume, &Live::default(), &lookup)?;
    let shown =
        |(path, file): (&String, &super::File)| format!("{path} {:o} {}", file.mode, file.content.escape_ascii());
    Ok(files.iter().map(shown).collect())
}

#[test]
fn every_key_is_a_file_unless_items_choose() {
    assert_eq!(
        files(json!({"name": "v", "configMap": {"name": "settings"}})).unwrap(),
        ["colour 644 blue", "size 644 large"]
    );
    let items = json!([{"key": "colour", "path": "deep/er/c", "mode": 0o400}, {"key": "colour", "path": "again"}]);
    assert_eq!(
        files(json!({"name": "v", "configMap": {"name": "settings", "items": items, "defaultMode": 0o600}})).unwrap(),
        ["again 600 blue", "deep/er/c 400 blue"]
    );
    let secret = json!({"name": "v", "secret": {"secretName": "login", "defaultMode": 0o440}});
    assert_eq!(files(secret).unwrap(), ["password 440 \\xff\\x00"]);
}

#[test]
fn what_is_missing_is_named_unless_it_is_optional() {
    let missing = files(json!({"name": "v", "secret": {"secretName": "nothing"}})).unwrap_err();
    assert!(missing.to_string().starts_with("volume \"v\": secret \"nothing\" not found"), "{missing}");
    assert_eq!(files(json!({"name": "v", "secret": {"secretName": "nothing", "optional": true}})), Ok(vec![]));
    let items = json!([{"key": "weight", "path": "w"}]);
    let missing = files(json!({"name": "v", "configMap": {"name": "settings", "items": items}})).unwrap_err();
    assert!(missing.to_string().contains("has no key \"weight\""), "{missing}");
    assert_eq!(
        files(json!({"name": "v", "configMap": {"name": "settings", "items": items, "optional": true}})),
        Ok(vec![])
    );
}

#[test]
fn the_pod_tells_of_itself() {
    let items = json!([
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}, "mode": 0o400},
        {"path": "cpu", "resourceFieldRef": {"containerName": "main", "resource": "limits.cpu", "divisor": "1m"}},
    ]);
    assert_eq!(
        files(json!({"name": "v", "downwardAPI": {"items": items}})).unwrap(),
        ["cpu 644 1500", "labels 644 a=\\\"say \\\\\\\"hi\\\\\\\"\\\"\\nb=\\\"2\\\"", "name 400 web"]
    );
    let bad = json!([{"path": "x", "fieldRef": {"fieldPath": "spec.secret"}}]);
    assert!(matches!(files(json!({"name": "v", "downwardAPI": {"items": bad}})), Err(ProjectionError::Field { .. })));
}

#[test]
fn projected_volumes_join_their_sources() {
    let sources = json!([
        {"configMap": {"name": "settings", "items": [{"key": "size", "path": "x"}]}},
        {"secret": {"name": "login", "items": [{"key": "password", "path": "x"}]}},
        {"downwardAPI": {"items": [{"path": "y", "fieldRef": {"fieldPath": "metadata.name"}}]}},
    ]);
    let volume = json!({"name": "v", "projected": {"sources": sources, "defaultMode": 0o444}});
    assert_eq!(files(volume.clone()).unwrap(), ["x 444 \\xff\\x00", "y 444 web"]);
    let pod = pod(&volume);
    let named: Vec<_> = references(pod.spec.as_ref().unwrap()).into_iter().collect();
    assert_eq!(named, [("configmap", "settings".to_owned()), ("secret", "login".to_owned())]);
}

proptest! {
    /// Whatever a path is, a file never lies outside its volume, nor among the inner works.
    #[test]
    fn no_path_leads_out(path in "[./a]{0,8}") {
        let items = json!([{"key": "colour", "path": path}]);
        let volume: Volume =
            serde_json::from_value(json!({"name": "v", "configMap": {"name": "settings", "items": items}})).unwrap();
        let pod = Pod::default();
        if let Ok(files) = project(&pod, &volume, &Live::default(), &lookup) {
            let paths: BTreeMap<_, _> = files;
            for path in paths.keys() {
                prop_assert!(!path.starts_with("..") && !path.starts_with('/'));
                prop_assert!(path.split('/').all(|part| !matches!(part, "" | "." | "..")));
            }
        }
    }
}
