//! What is served, as data: the table in `data/resources.json`.

use serde::Deserialize;

use crate::catalog::CatalogError;
use crate::schema::TypeId;

/// One kind of object and everything generic code needs to know about it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Resource {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) namespaced: bool,
    pub(crate) short_names: Vec<String>,
    pub(crate) categories: Vec<String>,
    /// The name of its schema.
    pub(crate) schema: String,
    /// Fields that a field selector may name, besides `metadata.name` and `metadata.namespace`.
    pub(crate) fields: Vec<String>,
    pub(crate) subresources: Vec<Subresource>,
    pub(crate) columns: Vec<Column>,
    /// The schema, once found.
    #[serde(skip)]
    pub(crate) object_type: TypeId,
}

/// `pods/log` and its like.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Subresource {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) verbs: Vec<String>,
}

/// One column of the table that `kubectl get` prints.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Column {
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) column_type: String,
    #[serde(default)]
    pub(crate) format: String,
    #[serde(default)]
    pub(crate) description: String,
    /// 0 is always shown, 1 only with `-o wide`.
    #[serde(default)]
    pub(crate) priority: u8,
    /// A path (`.status.podIP`), `age PATH`, `count PATH…`, or the name of a printer in `columns.rs`.
    pub(crate) value: String,
    /// Shown in place of nothing.
    #[serde(default)]
    pub(crate) empty: String,
}

/// The verbs of every resource.
pub(crate) const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl Resource {
    /// Reads the table.
    pub(crate) fn table(json: &str) -> Result<Vec<Self>, CatalogError> {
        serde_json::from_str(json).map_err(|source| CatalogError::Data { file: "resources.json", source })
    }

    /// `v1`, `apps/v1`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The store's name of it: `pods`, `apps/deployments`.
    pub(crate) fn store_name(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}/{}", self.group, self.plural) }
    }

    /// `pods`, `deployments.apps`: as messages have it.
    pub(crate) fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    pub(crate) fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|one| one.name == name)
    }

    /// Whether spec and status are changed apart from each other.
    pub(crate) fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }
}
