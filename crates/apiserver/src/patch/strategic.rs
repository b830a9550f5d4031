//! Strategic merge patch: JSON merge patch that knows which lists are maps in disguise.
//!
//! The rules are those of Kubernetes' documentation ("Strategic Merge Patch" in the API conventions):
//!
//! - a list whose schema says `x-kubernetes-patch-strategy: merge` is merged, element by element along its
//!   `x-kubernetes-patch-merge-key`, or as a set when it holds scalars; any other list is replaced;
//! - `$patch: delete` in an element removes the one with its key, `$patch: replace` in an object or list replaces the whole,
//!   `$patch: merge` is what happens anyway;
//! - `$deleteFromPrimitiveList/FIELD` takes values out, `$setElementOrder/FIELD` orders the result, `$retainKeys` drops the others.

use serde_json::{Map, Value};

use crate::schema::{Merge, Schemas, Type, TypeId};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

/// Merges `patch` into `target`. On an error `target` is half done and to be thrown away.
pub(crate) fn strategic_merge(schemas: &Schemas, id: TypeId, target: &mut Value, patch: &Value) -> Result<(), String> {
    let Some(patch) = patch.as_object() else { return Err("a strategic merge patch is an object".to_owned()) };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    match target.as_object_mut() {
        Some(target) => merge_object(schemas, id, target, patch),
        None => Ok(()),
    }
}

fn merge_object(
    schemas: &Schemas,
    id: TypeId,
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<(), String> {
    match patch.get(DIRECTIVE).map(|directive| directive.as_str()) {
        None | Some(Some("merge")) => {}
        Some(Some("replace")) => {
            *target = without_directives(patch);
            return Ok(());
        }
        Some(Some("delete")) => {
            target.clear();
            return Ok(());
        }
        Some(other) => return Err(format!("unknown {DIRECTIVE} directive {other:?}")),
    }
    if let Some(kept) = patch.get(RETAIN_KEYS) {
        let kept = kept.as_array().ok_or_else(|| format!("{RETAIN_KEYS} is a list of names"))?;
        target.retain(|name, _| kept.iter().any(|one| one == name));
    }
    for (name, change) in patch {
        if name == DIRECTIVE || name == RETAIN_KEYS || name.starts_with(ELEMENT_ORDER) {
            continue;
        }
        if let Some(list) = name.strip_prefix(DELETE_FROM) {
            delete_values(target, list, change)?;
            continue;
        }
        if change.is_null() {
            target.shift_remove(name);
            continue;
        }
        let order = patch.get(&format!("{ELEMENT_ORDER}{name}")).and_then(Value::as_array);
        merge_field(schemas, id, target, name, change, order)?;
    }
    // An order may come without a change of the list itself.
    for (name, order) in patch {
        if let Some(list) = name.strip_prefix(ELEMENT_ORDER)
            && !patch.contains_key(list)
            && let (Some(order), Some(Value::Array(items))) = (order.as_array(), target.get_mut(list))
        {
            let merge = schemas.field(id, list).map(|field| field.merge.clone()).unwrap_or_default();
            let before = items.clone();
            reorder(items, &before, order, merge.key.as_deref());
        }
    }
    Ok(())
}

fn merge_field(
    schemas: &Schemas,
    id: TypeId,
    target: &mut Map<String, Value>,
    name: &str,
    change: &Value,
    order: Option<&Vec<Value>>,
) -> Result<(), String> {
    let field = schemas.field(id, name);
    let value_type = field.map_or_else(|| map_values(schemas, id), |field| field.value);
    let merge = field.map(|field| field.merge.clone()).unwrap_or_default();
    match change {
        Value::Object(change) => {
            let current = target.entry(name.to_owned()).or_insert(Value::Null);
            if merge.replace || !current.is_object() {
                *current = Value::Object(Map::new());
            }
            match current.as_object_mut() {
                Some(current) => merge_object(schemas, value_type, current, change),
                None => Ok(()),
            }
        }
        Value::Array(change) if merge.lists => {
            let current = target.entry(name.to_owned()).or_insert_with(|| Value::Array(Vec::new()));
            if !current.is_array() {
                *current = Value::Array(Vec::new());
            }
            let items = match schemas.get(value_type) {
                Type::List(items) => *items,
                _ => TypeId::default(),
            };
            match current.as_array_mut() {
                Some(current) => merge_list(schemas, items, &merge, name, current, change, order),
                None => Ok(()),
            }
        }
        other => {
            target.insert(name.to_owned(), other.clone());
            Ok(())
        }
    }
}

fn map_values(schemas: &Schemas, id: TypeId) -> TypeId {
    match schemas.get(id) {
        Type::Map(values) => *values,
        _ => TypeId::default(),
    }
}

fn merge_list(
    schemas: &Schemas,
    items: TypeId,
    merge: &Merge,
    name: &str,
    current: &mut Vec<Value>,
    change: &[Value],
    order: Option<&Vec<Value>>,
) -> Result<(), String> {
    let before = current.clone();
    if change.iter().any(|item| item.get(DIRECTIVE).is_some_and(|directive| directive == "replace")) {
        let kept = change.iter().filter(|item| item.get(DIRECTIVE).is_none());
        *current = kept.map(clean).collect();
        return Ok(());
    }
    for item in change {
        let (Value::Object(item), Some(key)) = (item, merge.key.as_deref()) else {
            if !current.contains(item) {
                current.push(item.clone());
            }
            continue;
        };
        let wanted = item.get(key).ok_or_else(|| {
            format!("map: {} does not contain declared merge key: {key}", Value::Object(item.clone()))
        })?;
        let place = current.iter().position(|one| one.get(key) == Some(wanted));
        match item.get(DIRECTIVE).map(|directive| directive.as_str()) {
            Some(Some("delete")) => current.retain(|one| one.get(key) != Some(wanted)),
            None | Some(Some("merge")) => {
                let mut fresh = Value::Object(Map::new());
                let existing = place.and_then(|place| current.get_mut(place));
                let is_new = existing.is_none();
                if let Some(object) = existing.unwrap_or(&mut fresh).as_object_mut() {
                    merge_object(schemas, items, object, item)?;
                }
                if is_new {
                    current.push(fresh);
                }
            }
            Some(other) => return Err(format!("unknown {DIRECTIVE} directive {other:?} in {name}")),
        }
    }
    if let Some(order) = order {
        reorder(current, &before, order, merge.key.as_deref());
    }
    Ok(())
}

fn delete_values(target: &mut Map<String, Value>, list: &str, values: &Value) -> Result<(), String> {
    let values = values.as_array().ok_or_else(|| format!("{DELETE_FROM}{list} is a list"))?;
    if let Some(Value::Array(items)) = target.get_mut(list) {
        items.retain(|item| !values.contains(item));
    }
    Ok(())
}

/// Puts the elements named in `order` into that order; those that only the server has keep their places before the
/// first named element that stood behind them.
fn reorder(items: &mut Vec<Value>, before: &[Value], order: &[Value], key: Option<&str>) {
    let same = |one: &Value, other: &Value| match key {
        Some(key) => one.get(key).is_some() && one.get(key) == other.get(key),
        None => one == other,
    };
    let rank = |item: &Value| order.iter().position(|one| same(one, item));
    let (mut named, unnamed): (Vec<_>, Vec<_>) = items.drain(..).partition(|item| rank(item).is_some());
    named.sort_by_key(|item| rank(item));
    let stood = |item: &Value| before.iter().position(|one| same(one, item));
    let mut unnamed = unnamed.into_iter().peekable();
    for item in named {
        while let Some(other) = unnamed.peek()
            && let (Some(left), Some(right)) = (stood(other), stood(&item))
            && left < right
        {
            items.extend(unnamed.next());
        }
        items.push(item);
    }
    items.extend(unnamed);
}

fn without_directives(patch: &Map<String, Value>) -> Map<String, Value> {
    let plain = |name: &str| {
        !(name == DIRECTIVE || name == RETAIN_KEYS || name.starts_with(DELETE_FROM) || name.starts_with(ELEMENT_ORDER))
    };
    patch
        .iter()
        .filter(|(name, value)| plain(name) && !value.is_null())
        .map(|(name, value)| (name.clone(), clean(value)))
        .collect()
}

/// A copy without directives at any depth.
fn clean(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(without_directives(map)),
        Value::Array(list) => Value::Array(list.iter().map(clean).collect()),
        other => other.clone(),
    }
}
