//! The store against the simplest model of itself, with reopening in between.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use sampan_store::{Change, Key, Store, StoreError, StoreOptions};
use serde_json::{Value, json};

const HISTORY: usize = 300;
/// Above the parsed part of the history, so that both forms are met.
const STEPS: std::ops::Range<usize> = 1..400;

#[derive(Debug, Clone)]
enum Step {
    Create(u8, u8),
    /// With the right revision, a wrong one, or none.
    Update(u8, u8, Option<bool>),
    Delete(u8, Option<bool>),
    Several(Vec<(u8, u8)>),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6_u8, any::<u8>()).prop_map(|(name, value)| Step::Create(name, value)),
        4 => (0..6_u8, any::<u8>(), any::<Option<bool>>()).prop_map(|(name, value, expected)| Step::Update(name, value, expected)),
        3 => (0..6_u8, any::<Option<bool>>()).prop_map(|(name, expected)| Step::Delete(name, expected)),
        1 => proptest::collection::vec((0..6_u8, any::<u8>()), 1..8).prop_map(Step::Several),
        1 => (0..10_u8).prop_map(|chance| if chance == 0 { Step::Reopen } else { Step::Several(vec![(chance % 6, chance)]) }),
    ]
}

#[derive(Default)]
struct Model {
    objects: BTreeMap<String, (u64, u8)>,
    events: Vec<(u64, Change, String)>,
    revision: u64,
}

impl Model {
    fn change(&mut self, kind: Change, name: String, value: u8) {
        self.revision += 1;
        self.events.push((self.revision, kind, name.clone()));
        match kind {
            Change::Deleted => drop(self.objects.remove(&name)),
            _ => drop(self.objects.insert(name, (self.revision, value))),
        }
    }
}

fn key(name: &str) -> Key {
    Key::namespaced("pods", if name < "n3" { "a" } else { "b" }, name)
}

fn object(value: u8) -> Value {
    json!({"metadata": {"resourceVersion": "nonsense"}, "value": value})
}

fn open(path: &Path) -> Store {
    let options = StoreOptions { history_events_max: HISTORY, ..StoreOptions::default() };
    Store::open_with(path, options).expect("the store opens")
}

async fn apply(store: &Store, model: &mut Model, step: &Step) {
    let expected = |model: &Model, name: &str, expected: Option<bool>| match (expected, model.objects.get(name)) {
        (None, _) => None,
        (Some(true), Some((revision, _))) => Some(*revision),
        _ => Some(u64::MAX),
    };
    match step {
        Step::Create(name, value) => {
            let name = format!("n{name}");
            match store.create(key(&name), object(*value)).await {
                Ok(_) => {
                    assert!(!model.objects.contains_key(&name));
                    model.change(Change::Added, name, *value);
                }
                Err(StoreError::AlreadyExists(_)) => assert!(model.objects.contains_key(&name)),
                Err(error) => panic!("{error}"),
            }
        }
        Step::Update(name, value, expect) => {
            let name = format!("n{name}");
            match store.update(&key(&name), expected(model, &name, *expect), object(*value)).await {
                Ok(_) => model.change(Change::Modified, name, *value),
                Err(StoreError::NotFound(_)) => assert!(!model.objects.contains_key(&name)),
                Err(StoreError::Conflict { .. }) => assert_eq!(*expect, Some(false)),
                Err(error) => panic!("{error}"),
            }
        }
        Step::Delete(name, expect) => {
            let name = format!("n{name}");
            match store.delete(&key(&name), expected(model, &name, *expect)).await {
                Ok(_) => model.change(Change::Deleted, name, 0),
                Err(StoreError::NotFound(_)) => assert!(!model.objects.contains_key(&name)),
                Err(StoreError::Conflict { .. }) => assert_eq!(*expect, Some(false)),
                Err(error) => panic!("{error}"),
            }
        }
        Step::Several(pairs) => {
            // Together, so that they share a commit; each must see those before it.
            let creations = pairs.iter().map(|(name, value)| store.create(key(&format!("n{name}")), object(*value)));
            let results = futures_util::future::join_all(creations).await;
            for ((name, value), result) in pairs.iter().zip(results) {
                let name = format!("n{name}");
                assert_eq!(result.is_ok(), !model.objects.contains_key(&name));
                if result.is_ok() {
                    model.change(Change::Added, name, *value);
                }
            }
        }
        Step::Reopen => {}
    }
}

async fn compare(store: &Store, model: &Model) {
    let (objects, revision) = store.list("pods", None).await.expect("a list");
    assert_eq!(revision, model.revision);
    let found: Vec<_> =
        objects.iter().map(|one| (one.key.name.clone(), one.revision, one.value["value"].clone())).collect();
    let expected: Vec<_> =
        model.objects.iter().map(|(name, (revision, value))| (name.clone(), *revision, json!(value))).collect();
    assert_eq!(found, expected);
    for one in &objects {
        assert_eq!(one.value["metadata"]["resourceVersion"], one.revision.to_string());
    }
    let (in_b, _) = store.list("pods", Some("b")).await.expect("a list");
    assert_eq!(in_b.len(), model.objects.keys().filter(|name| name.as_str() >= "n3").count());

    let stride = usize::try_from(model.revision / 12).expect("small").max(1);
    for after in (1..=model.revision).step_by(stride) {
        let expected: Vec<_> = model.events.iter().filter(|(revision, ..)| *revision > after).cloned().collect();
        match store.watch("pods", None, after) {
            Err(StoreError::Gone { .. }) => assert!(expected.len() > HISTORY, "history went too early"),
            Err(error) => panic!("{error}"),
            Ok(mut watch) => {
                let mut seen = Vec::new();
                while let Some(event) = watch.try_next().expect("an event") {
                    let before = model.events.iter().rev().find(|(revision, _, name)| {
                        *revision < event.object.revision && *name == event.object.key.name
                    });
                    match (&event.previous, event.kind, before) {
                        (None, Change::Added, _) => {}
                        (None, _, before) => assert!(
                            before.is_none_or(|(revision, ..)| store.watch("pods", None, revision - 1).is_err())
                        ),
                        (Some(previous), _, before) => {
                            assert_eq!(Some(previous.revision), before.map(|(revision, ..)| *revision))
                        }
                    }
                    seen.push((event.object.revision, event.kind, event.object.key.name.clone()));
                }
                assert_eq!(seen, expected);
                assert_eq!(watch.progress(), model.revision);
            }
        }
    }
    assert!(matches!(store.watch("pods", None, model.revision + 1), Err(StoreError::Future { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn the_store_is_its_model(steps in proptest::collection::vec(step(), STEPS)) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("store.db");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut store = open(&path);
            let mut model = Model { revision: store.revision(), ..Model::default() };
            for step in &steps {
                if matches!(step, Step::Reopen) {
                    drop(store);
                    store = open(&path);
                }
                apply(&store, &mut model, step).await;
            }
            compare(&store, &model).await;
            drop(store);
            compare(&open(&path), &model).await;
        });
    }
}
