//! Images: list, pull with progress, remove.

use http::{Request, StatusCode};
use sampan_apiserver::Body;
use sampan_image::{ImageError, ProgressSender, PullPolicy};
use sampan_kit::error_chain::ErrorChain;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Answer, json_response, lines_response, read_json};
use crate::limits::PROGRESS_QUEUE;
use crate::link::refuse;
use crate::node::Node;

#[derive(Debug, Deserialize)]
struct PullRequest {
    reference: String,
    policy: Option<String>,
}

impl Node {
    pub(super) async fn list_images(&self) -> Answer {
        let images = self.services.images.list().await;
        let images = images.map_err(|error| refused(&error))?;
        let list: Vec<Value> = images
            .iter()
            .map(|image| {
                json!({
                    "id": image.id.to_string(), "references": image.references,
                    "digest": image.manifest_digest.to_string(), "createdAt": image.created,
                    "sizeBytes": image.size_bytes, "architecture": image.architecture, "inUse": image.in_use,
                })
            })
            .collect();
        Ok(json_response(StatusCode::OK, &json!({"images": list})))
    }

    /// What the images of an archive of `docker save` are called.
    pub(super) async fn archive_names(&self, file: &str) -> Answer {
        let names = self.services.images.archive_names(file.as_ref()).await.map_err(|error| refused(&error))?;
        Ok(json_response(StatusCode::OK, &json!({"names": names})))
    }

    pub(super) async fn remove_image(&self, reference: &str) -> Answer {
        let removed = self.services.images.remove(reference).await.map_err(|error| refused(&error))?;
        Ok(json_response(StatusCode::OK, &json!({"removed": removed.removed, "freedBytes": removed.freed_bytes})))
    }

    /// Pulls an image and streams what happens, a JSON object a line.
    pub(super) async fn pull_image(&self, request: Request<Body>) -> Answer {
        let wanted: PullRequest = read_json(request).await?;
        let policy = match wanted.policy.as_deref() {
            None | Some("Always") => PullPolicy::Always,
            Some("IfNotPresent") => PullPolicy::IfNotPresent,
            Some(other) => {
                let message = format!("{other:?} is not a policy; use Always or IfNotPresent");
                return Err(refuse(StatusCode::BAD_REQUEST, "BadRequest", message));
            }
        };
        let (lines, answer) = mpsc::channel::<String>(PROGRESS_QUEUE);
        tokio::spawn(pull(self.clone(), wanted.reference, policy, lines));
        Ok(lines_response(answer))
    }
}

async fn pull(node: Node, reference: String, policy: PullPolicy, lines: mpsc::Sender<String>) {
    let (progress, mut reports) = ProgressSender::channel();
    let forward = async {
        while let Some(report) = reports.recv().await {
            let line = serde_json::to_string(&report).unwrap_or_default();
            if lines.send(format!("{line}\n")).await.is_err() {
                tracing::trace!("the client of a pull went away; the pull goes on");
            }
        }
    };
    let (result, ()) = tokio::join!(node.services.images.pull(&reference, policy, progress), forward);
    let last = match result {
        Ok(image) => json!({"done": {
            "id": image.id.to_string(), "digest": image.manifest_digest.to_string(), "reference": image.reference,
        }}),
        Err(error) => json!({"error": ErrorChain(&error).to_string()}),
    };
    if lines.send(format!("{last}\n")).await.is_err() {
        tracing::trace!("the client of a pull went away before its end");
    }
}

pub(super) fn refused(error: &ImageError) -> sampan_apiserver::NodeLinkError {
    let line = ErrorChain(error).to_string();
    match error {
        ImageError::Unknown { .. } => refuse(StatusCode::NOT_FOUND, "NotFound", line),
        ImageError::InUse { .. } => refuse(StatusCode::CONFLICT, "Conflict", line),
        ImageError::Reference { .. } => refuse(StatusCode::BAD_REQUEST, "BadRequest", line),
        _ => refuse(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", line),
    }
}
