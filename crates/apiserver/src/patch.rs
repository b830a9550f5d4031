//! The patch formats: JSON merge (RFC 7386), JSON patch (RFC 6902), strategic merge (Kubernetes).

mod json_patch;
mod merge;
mod strategic;
#[cfg(test)]
mod tests;

use serde_json::Value;

use crate::error::ApiError;
use crate::schema::{Schemas, TypeId};

pub(crate) use merge::merge;
pub(crate) use strategic::strategic_merge;

/// A patch in one of the formats, as its media type says.
#[derive(Debug, Clone, PartialEq)]
pub enum Patch {
    /// `application/merge-patch+json`.
    Merge(Value),
    /// `application/strategic-merge-patch+json`.
    StrategicMerge(Value),
    /// `application/json-patch+json`.
    Json(Value),
}

impl Patch {
    /// The object after the patch.
    pub(crate) fn apply(&self, schemas: &Schemas, id: TypeId, current: &Value) -> Result<Value, ApiError> {
        match self {
            Self::Merge(patch) => {
                let mut patched = current.clone();
                merge(&mut patched, patch);
                Ok(patched)
            }
            Self::StrategicMerge(patch) => {
                let mut patched = current.clone();
                strategic_merge(schemas, id, &mut patched, patch).map_err(ApiError::bad_request)?;
                Ok(patched)
            }
            Self::Json(patch) => json_patch::apply(current, patch),
        }
    }
}
