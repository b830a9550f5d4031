//! Patches against reference semantics: examples of Kubernetes' documentation, and properties.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{merge, strategic_merge};
use crate::catalog::for_tests;

fn strategic(target: Value, patch: &Value) -> Value {
    let catalog = for_tests();
    let pods = catalog.stored("pods").expect("pods");
    let mut value = target;
    strategic_merge(&catalog.schemas, pods.object_type, &mut value, patch).expect("a good patch");
    value
}

fn spec(spec: Value) -> Value {
    json!({"spec": spec})
}

#[test]
fn lists_are_merged_as_the_schema_says() {
    let containers = |list: Value| spec(json!({"containers": list}));
    for (target, patch, expected) in [
        // By name: changed in place, added at the end.
        (
            containers(json!([{"name": "a", "image": "1", "tty": true}, {"name": "b"}])),
            containers(json!([{"name": "c"}, {"name": "a", "image": "2"}])),
            containers(json!([{"name": "a", "image": "2", "tty": true}, {"name": "b"}, {"name": "c"}])),
        ),
        (
            containers(json!([{"name": "a"}, {"name": "b"}])),
            containers(json!([{"$patch": "delete", "name": "a"}])),
            containers(json!([{"name": "b"}])),
        ),
        (
            containers(json!([{"name": "a"}, {"name": "b"}])),
            containers(json!([{"$patch": "replace"}, {"name": "c"}])),
            containers(json!([{"name": "c"}])),
        ),
        // Nested lists by their own keys; atomic lists are replaced.
        (
            containers(json!([{"name": "a", "env": [{"name": "X", "value": "1"}], "args": ["p", "q"]}])),
            containers(json!([{"name": "a", "env": [{"name": "Y", "value": "2"}], "args": ["r"]}])),
            containers(
                json!([{"name": "a", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}], "args": ["r"]}]),
            ),
        ),
        (
            spec(json!({"tolerations": [{"key": "a"}]})),
            spec(json!({"tolerations": [{"key": "b"}]})),
            spec(json!({"tolerations": [{"key": "b"}]})),
        ),
        // Sets of texts.
        (
            json!({"metadata": {"finalizers": ["a", "b"]}}),
            json!({"metadata": {"finalizers": ["b", "c"], "$deleteFromPrimitiveList/finalizers": ["a"]}}),
            json!({"metadata": {"finalizers": ["b", "c"]}}),
        ),
        // What only the server has keeps its place before what stood behind it.
        (
            containers(json!([{"name": "s"}, {"name": "a"}, {"name": "b"}])),
            json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "a", "image": "2"}]}}),
            containers(json!([{"name": "s"}, {"name": "b"}, {"name": "a", "image": "2"}])),
        ),
        // A volume that becomes another kind of volume.
        (
            spec(json!({"volumes": [{"name": "v", "emptyDir": {}}]})),
            spec(json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}, "$retainKeys": ["name", "hostPath"]}]})),
            spec(json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]})),
        ),
        (
            spec(json!({"hostname": "a", "subdomain": "b"})),
            spec(json!({"$patch": "replace", "hostname": "c"})),
            spec(json!({"hostname": "c"})),
        ),
        (
            spec(json!({"hostname": "a"})),
            spec(json!({"hostname": null, "nodeSelector": {"x": "y"}})),
            spec(json!({"nodeSelector": {"x": "y"}})),
        ),
        // A patch into nothing leaves no nulls and no directives behind.
        (
            json!({}),
            containers(json!([{"name": "a", "tty": null, "resources": {"limits": {"cpu": null}}}])),
            containers(json!([{"name": "a", "resources": {"limits": {}}}])),
        ),
    ] {
        assert_eq!(strategic(target, &patch), expected, "{patch}");
    }
}

#[test]
fn a_patch_that_makes_no_sense_is_refused() {
    let catalog = for_tests();
    let pods = catalog.stored("pods").expect("pods");
    for patch in [
        json!([]),
        json!({"$patch": "explode"}),
        spec(json!({"containers": [{"image": "x"}]})),
        spec(json!({"$retainKeys": 1})),
    ] {
        let mut value = spec(json!({"containers": [{"name": "a"}]}));
        assert!(strategic_merge(&catalog.schemas, pods.object_type, &mut value, &patch).is_err(), "{patch}");
    }
}

/// Documents without lists and nulls.
fn document() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-c]{0,2}".prop_map(Value::from)
    ];
    let inner = leaf.prop_recursive(4, 24, 4, |inner| {
        proptest::collection::btree_map("[a-d]", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect()))
    });
    proptest::collection::btree_map("[a-d]", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect()))
}

/// The merge patch that makes `to` of `from`.
fn difference(from: &Value, to: &Value) -> Value {
    let (Some(before), Some(after)) = (from.as_object(), to.as_object()) else { return to.clone() };
    let mut patch = Map::new();
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in after {
        match before.get(key) {
            Some(old) if old == value => {}
            Some(old) if old.is_object() && value.is_object() => {
                drop(patch.insert(key.clone(), difference(old, value)))
            }
            Some(_) | None => drop(patch.insert(key.clone(), value.clone())),
        }
    }
    Value::Object(patch)
}

proptest! {
    #[test]
    fn a_merge_patch_makes_the_one_of_the_other(from in document(), to in document()) {
        let mut value = from.clone();
        merge(&mut value, &difference(&from, &to));
        prop_assert_eq!(&value, &to);
    }

    #[test]
    fn without_lists_the_strategic_is_the_plain_merge(target in document(), patch in document()) {
        let mut plain = target.clone();
        merge(&mut plain, &patch);
        prop_assert_eq!(&strategic(target, &patch), &plain);
    }

    #[test]
    fn a_strategic_merge_done_twice_is_done_once(names in proptest::collection::vec(("[a-e]", "[x-z]"), 0..6), patch in proptest::collection::vec(("[a-e]", "[x-z]"), 0..6)) {
        let list = |pairs: &[(String, String)]| {
            let unique: std::collections::BTreeMap<_, _> = pairs.iter().cloned().collect();
            spec(json!({"containers": unique.iter().map(|(name, image)| json!({"name": name, "image": image})).collect::<Vec<_>>()}))
        };
        let (target, change) = (list(&names), list(&patch));
        let once = strategic(target.clone(), &change);
        prop_assert_eq!(&strategic(once.clone(), &change), &once);
        // Against the model: a map that the patch overlays.
        let as_map = |value: &Value| {
            let items = value["spec"]["containers"].as_array().cloned().unwrap_or_default();
            items.into_iter().map(|one| (one["name"].to_string(), one["image"].to_string())).collect::<std::collections::BTreeMap<_, _>>()
        };
        let mut model = as_map(&target);
        model.extend(as_map(&change));
        prop_assert_eq!(as_map(&once), model);
    }
}
