//! JSON patch, RFC 6902, on JSON pointers, RFC 6901.

use serde_json::Value;

use crate::error::ApiError;
use crate::limits::{JSON_PATCH_OPERATIONS_MAX, REQUEST_BYTES_MAX};

/// Applies all operations in order, or none.
pub(crate) fn apply(current: &Value, patch: &Value) -> Result<Value, ApiError> {
    let operations = patch.as_array().ok_or_else(|| ApiError::bad_request("a JSON patch is a list of operations"))?;
    if operations.len() > JSON_PATCH_OPERATIONS_MAX {
        return Err(ApiError::new(
            http::StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            format!("a JSON patch may have {JSON_PATCH_OPERATIONS_MAX} operations, this one has {}", operations.len()),
        ));
    }
    let mut value = current.clone();
    // `copy` can double what is there with each operation: its growth is counted.
    let mut copied = 0;
    for (index, operation) in operations.iter().enumerate() {
        step(&mut value, operation, &mut copied).map_err(|why| {
            let status = http::StatusCode::UNPROCESSABLE_ENTITY;
            ApiError::new(
                status,
                "Invalid",
                format!("the server rejected our request: operation {index} of the JSON patch: {why}"),
            )
        })?;
    }
    Ok(value)
}

fn step(value: &mut Value, operation: &Value, copied: &mut usize) -> Result<(), String> {
    let text = |name: &str| operation[name].as_str().ok_or_else(|| format!("{name} is missing"));
    let argument = || operation.get("value").cloned().ok_or_else(|| "value is missing".to_owned());
    let path = text("path")?;
    match text("op")? {
        "add" => add(value, path, argument()?),
        "remove" => remove(value, path).map(drop),
        "replace" => {
            let new = argument()?;
            let place = find(value, path)?;
            *place = new;
            Ok(())
        }
        "move" => {
            let from = text("from")?;
            if path.strip_prefix(from).is_some_and(|rest| rest.starts_with('/')) {
                return Err(format!("{from} cannot be moved into itself"));
            }
            let moved = remove(value, from)?;
            add(value, path, moved)
        }
        "copy" => {
            let new = find(value, text("from")?)?.clone();
            *copied += new.to_string().len();
            if *copied > REQUEST_BYTES_MAX {
                return Err("it copies too much".to_owned());
            }
            add(value, path, new)
        }
        "test" => {
            let expected = operation.get("value").unwrap_or(&Value::Null);
            if find(value, path)? == expected { Ok(()) } else { Err(format!("testing value {path} failed")) }
        }
        other => Err(format!("unknown operation {other:?}")),
    }
}

fn find<'a>(value: &'a mut Value, path: &str) -> Result<&'a mut Value, String> {
    value.pointer_mut(path).ok_or_else(|| format!("there is nothing at {path:?}"))
}

/// The container that holds the last part of a path, and that part.
fn parent<'a>(value: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), String> {
    let (head, last) = path.rsplit_once('/').ok_or_else(|| format!("{path:?} is not a path below the object"))?;
    Ok((find(value, head)?, last.replace("~1", "/").replace("~0", "~")))
}

fn add(value: &mut Value, path: &str, new: Value) -> Result<(), String> {
    if path.is_empty() {
        *value = new;
        return Ok(());
    }
    let (holder, last) = parent(value, path)?;
    match holder {
        Value::Object(map) => {
            map.insert(last, new);
            Ok(())
        }
        Value::Array(list) if last == "-" => {
            list.push(new);
            Ok(())
        }
        Value::Array(list) => {
            let index = index(&last).filter(|index| *index <= list.len());
            let index = index.ok_or_else(|| format!("{path:?} is beyond the end of the list"))?;
            list.insert(index, new);
            Ok(())
        }
        _ => Err(format!("nothing can be added at {path:?}")),
    }
}

fn remove(value: &mut Value, path: &str) -> Result<Value, String> {
    let (holder, last) = parent(value, path)?;
    let removed = match holder {
        Value::Object(map) => map.shift_remove(&last),
        Value::Array(list) => index(&last).filter(|index| *index < list.len()).map(|index| list.remove(index)),
        _ => None,
    };
    removed.ok_or_else(|| format!("there is nothing at {path:?}"))
}

/// Digits without leading zeros.
fn index(text: &str) -> Option<usize> {
    let plain = text == "0" || !text.starts_with('0');
    (plain && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn examples_of_the_rfc() {
        // RFC 6902, appendix A; None where it says that the patch fails.
        for (target, patch, expected) in [
            (
                json!({"foo":"bar"}),
                json!([{"op":"add","path":"/baz","value":"qux"}]),
                Some(json!({"baz":"qux","foo":"bar"})),
            ),
            (
                json!({"foo":["bar","baz"]}),
                json!([{"op":"add","path":"/foo/1","value":"qux"}]),
                Some(json!({"foo":["bar","qux","baz"]})),
            ),
            (json!({"baz":"qux","foo":"bar"}), json!([{"op":"remove","path":"/baz"}]), Some(json!({"foo":"bar"}))),
            (
                json!({"foo":["bar","qux","baz"]}),
                json!([{"op":"remove","path":"/foo/1"}]),
                Some(json!({"foo":["bar","baz"]})),
            ),
            (json!({"baz":"qux"}), json!([{"op":"replace","path":"/baz","value":"boo"}]), Some(json!({"baz":"boo"}))),
            (
                json!({"foo":{"bar":"baz","waldo":"fred"},"qux":{}}),
                json!([{"op":"move","from":"/foo/waldo","path":"/qux/thud"}]),
                Some(json!({"foo":{"bar":"baz"},"qux":{"thud":"fred"}})),
            ),
            (
                json!({"foo":["all","grass","cows","eat"]}),
                json!([{"op":"move","from":"/foo/1","path":"/foo/3"}]),
                Some(json!({"foo":["all","cows","eat","grass"]})),
            ),
            (json!({"baz":"qux"}), json!([{"op":"test","path":"/baz","value":"bar"}]), None),
            (json!({"foo":"bar"}), json!([{"op":"add","path":"/baz/bat","value":"qux"}]), None),
            (json!({"/":9,"~1":10}), json!([{"op":"test","path":"/~01","value":10}]), Some(json!({"/":9,"~1":10}))),
            (
                json!({"foo":["bar"]}),
                json!([{"op":"add","path":"/foo/-","value":["abc"]}]),
                Some(json!({"foo":["bar",["abc"]]})),
            ),
            (json!({"foo":["bar"]}), json!([{"op":"add","path":"/foo/2","value":1}]), None),
            (json!({"foo":["bar"]}), json!([{"op":"remove","path":"/foo/00"}]), None),
        ] {
            assert_eq!(apply(&target, &patch).ok(), expected, "{patch}");
        }
    }
}
