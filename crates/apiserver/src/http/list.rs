//! Reading one object, or a list of them.

use std::sync::Arc;

use base64::Engine as _;
use http::{HeaderMap, Response, StatusCode};
use sampan_store::{Key, Object};
use serde::Serialize;
use serde_json::{Value, json};

use crate::body::Body;
use crate::error::ApiError;
use crate::http::Front;
use crate::http::negotiate::{Shape, negotiate};
use crate::http::query::Query;
use crate::http::respond;
use crate::http::route::Target;
use crate::http::table::{Include, metadata_only, table};
use crate::selector::Selector;

/// A list without a copy of its items.
#[derive(Serialize)]
struct List<'a> {
    kind: String,
    #[serde(rename = "apiVersion")]
    api_version: String,
    metadata: Value,
    items: Vec<&'a Value>,
}

/// Where a list in pages goes on: the first page's revision, so that a watch after the last page misses nothing,
/// and the last key sent.
struct Continue {
    revision: u64,
    after: (String, String),
}

const TOKEN: base64::engine::GeneralPurpose = base64::engine::general_purpose::URL_SAFE_NO_PAD;

impl Continue {
    fn encode(&self) -> String {
        TOKEN.encode(json!({"v": 1, "rv": self.revision, "ns": self.after.0, "name": self.after.1}).to_string())
    }

    fn decode(text: &str) -> Result<Self, ApiError> {
        let invalid = || ApiError::bad_request("continue key is not valid");
        let bytes = TOKEN.decode(text).ok().ok_or_else(invalid)?;
        let token: Value = serde_json::from_slice(&bytes).ok().ok_or_else(invalid)?;
        let text = |field: &str| token[field].as_str().map(str::to_owned).ok_or_else(invalid);
        Ok(Self { revision: token["rv"].as_u64().ok_or_else(invalid)?, after: (text("ns")?, text("name")?) })
    }
}

fn place(key: &Key) -> (String, String) {
    (key.namespace.clone().unwrap_or_default(), key.name.clone())
}

impl Front {
    /// GET of an object, its status, or a list.
    pub(crate) async fn read(
        &self,
        target: &Target<'_>,
        query: &Query,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, ApiError> {
        let wanted = negotiate(headers)?;
        let pretty = query.flag("pretty")?;
        if let Some(name) = &target.name {
            let object = self.api.core.get(target.resource, target.namespace.as_deref(), name).await?;
            return respond::object(target.resource, StatusCode::OK, wanted, pretty, &object.value);
        }
        let resource = target.resource;
        let (objects, metadata) = self.select(target, query).await?;
        let values = objects.iter().map(|object| &object.value);
        match wanted.1 {
            Shape::Table => {
                let include = Include::parse(query.text("includeObject"));
                respond::document(StatusCode::OK, wanted.0, pretty, &table(resource, metadata, values, include, true))
            }
            Shape::Metadata => {
                let items: Vec<Value> = values.map(metadata_only).collect();
                let list = json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items});
                respond::document(StatusCode::OK, wanted.0, pretty, &list)
            }
            Shape::Object => {
                let kind = format!("{}List", resource.kind);
                let list = List { kind, api_version: resource.api_version(), metadata, items: values.collect() };
                respond::document(StatusCode::OK, wanted.0, pretty, &list)
            }
        }
    }

    /// The page of objects that a list request wants, and the list's metadata.
    async fn select(&self, target: &Target<'_>, query: &Query) -> Result<(Vec<Arc<Object>>, Value), ApiError> {
        let selector = Selector::parse(target.resource, query.text("labelSelector"), query.text("fieldSelector"))?;
        let store = &self.api.core.store;
        let (mut objects, mut revision) =
            store.list(&target.resource.store_name(), target.namespace.as_deref()).await?;
        check_version(query, revision)?;
        objects.retain(|object| selector.matches(&object.value));
        if !query.text("continue").is_empty() {
            let token = Continue::decode(query.text("continue"))?;
            objects.retain(|object| place(&object.key) > token.after);
            revision = token.revision.min(revision);
        }
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        let limit = query.number("limit")?.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(0);
        if limit > 0 && objects.len() > limit {
            if selector.is_everything() {
                metadata["remainingItemCount"] = json!(objects.len() - limit);
            }
            objects.truncate(limit);
            if let Some(last) = objects.last() {
                metadata["continue"] = json!(Continue { revision, after: place(&last.key) }.encode());
            }
        }
        Ok((objects, metadata))
    }
}

/// Lists answer from the newest state, which is never older than what a client asks for, unless it asks for the future
/// or for exactly one moment.
fn check_version(query: &Query, current: u64) -> Result<(), ApiError> {
    let text = query.text("resourceVersion");
    let exact = query.text("resourceVersionMatch") == "Exact";
    if text.is_empty() {
        return Ok(());
    }
    let asked: u64 =
        text.parse().map_err(|error| ApiError::bad_request(format!("invalid resource version {text:?}: {error}")))?;
    if asked > current {
        return Err(sampan_store::StoreError::Future { asked, current }.into());
    }
    if exact && asked != current {
        return Err(ApiError::expired(format!(
            "The provided resource version {asked} is too old: only the current {current} is served"
        )));
    }
    Ok(())
}
