//! Entries for fuzzing: everything here takes any bytes and must neither panic nor grow without bound.

use serde_json::Value;

use crate::catalog::Catalog;
use crate::decode::decode;
use crate::defaults::{fill, fill_dependent};
use crate::selector::Selector;
use crate::validate::validate;

/// The embedded data, loaded once for all runs.
pub struct Fuzzer(Catalog);

impl Fuzzer {
    /// Loads the data.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn new() -> Result<Self, crate::CatalogError> {
        Catalog::load().map(Self)
    }

    /// A pod in JSON or protobuf: decoded, completed, validated.
    pub fn body(&self, bytes: &[u8]) {
        let Some(pods) = self.0.stored("pods") else { return };
        let value = self.0.messages.decode(&pods.schema, bytes).ok().or_else(|| serde_json::from_slice(bytes).ok());
        let Some(mut value) = value.filter(Value::is_object) else { return };
        if decode(&self.0.schemas, pods.object_type, &mut value).wrong.is_empty() {
            fill(&self.0.schemas, pods.object_type, &mut value);
            fill_dependent("Pod", &mut value);
            drop(validate(&self.0.schemas, pods, &value));
        }
    }

    /// A JSON array of a pod and a patch, in each format.
    pub fn patch(&self, bytes: &[u8]) {
        let Some(pods) = self.0.stored("pods") else { return };
        let Ok((target, patch)) = serde_json::from_slice::<(Value, Value)>(bytes) else { return };
        for patch in
            [crate::Patch::Merge(patch.clone()), crate::Patch::StrategicMerge(patch.clone()), crate::Patch::Json(patch)]
        {
            drop(patch.apply(&self.0.schemas, pods.object_type, &target));
        }
    }

    /// A label selector and, after a line feed, a field selector.
    pub fn selector(&self, bytes: &[u8]) {
        let Some(pods) = self.0.stored("pods") else { return };
        if let Some((labels, fields)) = std::str::from_utf8(bytes).ok().and_then(|text| text.split_once('\n')) {
            drop(Selector::parse(pods, labels, fields).map(|selector| selector.matches(&Value::Null)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Documents whose keys are those of pods, so that they get past the first check.
    fn podlike() -> impl Strategy<Value = Value> {
        let key = prop::sample::select(vec![
            "metadata",
            "spec",
            "status",
            "containers",
            "name",
            "image",
            "resources",
            "limits",
            "requests",
            "ports",
            "containerPort",
            "volumes",
            "volumeMounts",
            "labels",
            "env",
            "tolerations",
            "initContainers",
            "$patch",
            "$setElementOrder/containers",
            "hostNetwork",
        ]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z0-9.$]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 48, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                prop::collection::vec((key.clone(), inner), 0..6).prop_map(|pairs| Value::Object(
                    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
                )),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_document_is_survived(target in podlike(), patch in podlike()) {
            static FUZZER: std::sync::LazyLock<Fuzzer> = std::sync::LazyLock::new(|| Fuzzer::new().expect("embedded data"));
            let fuzzer = &*FUZZER;
            fuzzer.body(target.to_string().as_bytes());
            fuzzer.patch(serde_json::json!([target, patch]).to_string().as_bytes());
        }
    }
}
