//! Tables and bare metadata: shapes of answers that leave most of an object out.

use serde_json::{Map, Value, json};

use crate::columns::cell;
use crate::resources::Resource;

/// What of each object comes with its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Include {
    Nothing,
    Metadata,
    Object,
}

impl Include {
    pub(crate) fn parse(text: &str) -> Self {
        match text {
            "None" => Self::Nothing,
            "Object" => Self::Object,
            _ => Self::Metadata,
        }
    }
}

/// An object's metadata as a `PartialObjectMetadata`.
pub(crate) fn metadata_only(value: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": value["metadata"]})
}

/// Rows and, unless they were sent before (watches), the columns.
pub(crate) fn table<'a>(
    resource: &Resource,
    metadata: Value,
    objects: impl Iterator<Item = &'a Value>,
    include: Include,
    with_columns: bool,
) -> Value {
    let now = jiff::Timestamp::now();
    let rows: Vec<Value> = objects
        .map(|object| {
            let cells: Vec<Value> = resource.columns.iter().map(|column| cell(column, object, now)).collect();
            let mut row = Map::new();
            row.insert("cells".to_owned(), Value::Array(cells));
            match include {
                Include::Nothing => None,
                Include::Metadata => row.insert("object".to_owned(), metadata_only(object)),
                Include::Object => row.insert("object".to_owned(), object.clone()),
            };
            Value::Object(row)
        })
        .collect();
    let columns: Vec<Value> = resource
        .columns
        .iter()
        .filter(|_| with_columns)
        .map(|column| {
            json!({
                "name": column.name,
                "type": column.column_type,
                "format": column.format,
                "description": column.description,
                "priority": column.priority,
            })
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns,
        "rows": rows,
    })
}
