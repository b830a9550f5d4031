//! Images in depth: details, indexes, start packs, traces, and the keys that sign them.
//!
//! | request | answer |
//! |---|---|
//! | `GET image?reference=R[&touches=true]` | everything that is known of one image |
//! | `POST image/prefetch`, `image/index`, `image/push-index`, `image/pack`, `image/verify`, with `{"reference": R, "command": […]}` | JSON lines: progress, then `done` or `error` |
//! | `POST image/gc`, with `{"keep": QUANTITY}` | what was removed |
//! | `GET image-keys` | every key that is believed |
//! | `POST image-keys`, with `{"name": N, "key": K}` or `{"fleet": true}` | the key that was added or made |
//! | `DELETE image-keys?name=N` | nothing |

use http::{Request, StatusCode};
use sampan_apiserver::{Body, NodeLinkError};
use sampan_image::ProgressSender;
use sampan_image::keys::{KeyError, KnownKey};
use sampan_image::publish::PublishError;
use sampan_image::trace::shape_of;
use sampan_kit::error_chain::ErrorChain;
use sampan_kit::quantity::Quantity;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::images::refused;
use super::{Answer, json_response, lines_response, read_json};
use crate::limits::PROGRESS_QUEUE;
use crate::link::refuse;
use crate::node::Node;

/// What is to be done with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ImageWork {
    /// Bring it here, whole, and tell about it.
    Prefetch,
    /// The same, for the indexes that this makes.
    Index,
    PushIndex,
    Pack,
    /// Read it against its digests.
    Verify,
}

#[derive(Debug, Deserialize)]
struct WorkRequest {
    reference: String,
    /// The command whose starts a pack is made of.
    #[serde(default)]
    command: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct TrimRequest {
    /// What all images may take, as a quantity.
    keep: String,
}

#[derive(Debug, Deserialize)]
struct KeyRequest {
    #[serde(default)]
    name: String,
    #[serde(default)]
    key: String,
    #[serde(default)]
    fleet: bool,
}

impl Node {
    pub(super) async fn image_details(&self, reference: &str, with_touches: bool) -> Answer {
        let details = self.services.images.details(reference, with_touches).await.map_err(|error| refused(&error))?;
        Ok(json_response(StatusCode::OK, &serde_json::to_value(details).unwrap_or_default()))
    }

    /// Does something that may take long, and streams what happens, a JSON object a line.
    pub(super) async fn image_work(&self, work: ImageWork, request: Request<Body>) -> Answer {
        let wanted: WorkRequest = read_json(request).await?;
        let (lines, answer) = mpsc::channel::<String>(PROGRESS_QUEUE);
        let node = self.clone();
        tokio::spawn(async move {
            let last = match node.do_image_work(work, wanted, &lines).await {
                Ok(done) => json!({"done": done}),
                Err(error) => json!({"error": ErrorChain(&error).to_string()}),
            };
            if lines.send(format!("{last}\n")).await.is_err() {
                tracing::trace!("the client went away before the end");
            }
        });
        Ok(lines_response(answer))
    }

    async fn do_image_work(
        &self,
        work: ImageWork,
        wanted: WorkRequest,
        lines: &mpsc::Sender<String>,
    ) -> Result<Value, PublishError> {
        let images = &self.services.images;
        let done = match work {
            ImageWork::Prefetch | ImageWork::Index => {
                let (progress, mut reports) = ProgressSender::channel();
                let forward = async {
                    while let Some(report) = reports.recv().await {
                        let line = serde_json::to_string(&report).unwrap_or_default();
                        if lines.send(format!("{line}\n")).await.is_err() {
                            tracing::trace!("the client went away; the work goes on");
                        }
                    }
                };
                let (indexed, ()) = tokio::join!(images.index(&wanted.reference, progress), forward);
                serde_json::to_value(indexed?)
            }
            ImageWork::PushIndex => serde_json::to_value(images.push_index(&wanted.reference).await?),
            ImageWork::Pack => {
                let image = images.find(&wanted.reference);
                let entrypoint = image.map(|image| image.config.config.entrypoint.clone()).unwrap_or_default();
                // As a start has it: the image's entrypoint, then what was asked for.
                let command = [entrypoint, wanted.command.clone()].concat();
                let shape = (!wanted.command.is_empty()).then(|| shape_of(&command));
                serde_json::to_value(images.make_pack(&wanted.reference, shape).await?)
            }
            ImageWork::Verify => {
                let layers = images.verify(&wanted.reference).await?;
                serde_json::to_value(layers).map(|layers| json!({"layers": layers}))
            }
        };
        Ok(done.unwrap_or_default())
    }

    /// Removes images that nobody uses.
    pub(super) async fn trim_images(&self, request: Request<Body>) -> Answer {
        let wanted: TrimRequest = read_json(request).await?;
        let bytes = Quantity::parse(&wanted.keep).ok().and_then(|quantity| u64::try_from(quantity.units()).ok());
        let invalid =
            || refuse(StatusCode::BAD_REQUEST, "BadRequest", format!("{:?} is no amount of bytes", wanted.keep));
        let images = &self.services.images;
        let removed = images.gc(bytes.ok_or_else(invalid)?).await.map_err(|error| refused(&error))?;
        let disk = images.disk_bytes().await.map_err(|error| refused(&error))?;
        let answer = json!({"removed": removed.removed, "freedBytes": removed.freed_bytes, "diskBytes": disk});
        Ok(json_response(StatusCode::OK, &answer))
    }

    pub(super) async fn list_image_keys(&self) -> Answer {
        let keys = self.services.images.publications().keys().clone();
        let known = files(move || keys.list()).await?;
        let known: Vec<Value> = known.iter().map(key).collect();
        Ok(json_response(StatusCode::OK, &json!({"keys": known})))
    }

    pub(super) async fn add_image_key(&self, request: Request<Body>) -> Answer {
        let wanted: KeyRequest = read_json(request).await?;
        let keys = self.services.images.publications().keys().clone();
        let added = files(move || {
            if wanted.fleet {
                let (public, path) = keys.generate_fleet()?;
                return Ok(json!({
                    "name": "fleet", "role": "fleet", "id": public.id().to_string(), "key": public.to_string(),
                    "file": path.display().to_string(),
                }));
            }
            let public = wanted.key.parse()?;
            keys.add(&wanted.name, public)?;
            Ok(json!({"name": wanted.name, "role": "trusted", "id": public.id().to_string(), "key": wanted.key}))
        });
        Ok(json_response(StatusCode::CREATED, &added.await?))
    }

    pub(super) async fn remove_image_key(&self, name: String) -> Answer {
        let keys = self.services.images.publications().keys().clone();
        files(move || keys.remove(&name)).await?;
        Ok(json_response(StatusCode::OK, &json!({})))
    }
}

fn key(known: &KnownKey) -> Value {
    json!({
        "name": known.name, "role": known.role.name(), "id": known.public.id().to_string(), "key": known.public.to_string(),
    })
}

/// Runs file work off the async threads.
async fn files<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, KeyError> + Send + 'static,
) -> Result<T, NodeLinkError> {
    let broke_off = |_panic| refuse(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "the work broke off");
    tokio::task::spawn_blocking(work).await.map_err(broke_off)?.map_err(|error| {
        let line = ErrorChain(&error).to_string();
        match error {
            KeyError::Public | KeyError::Name(_) => refuse(StatusCode::BAD_REQUEST, "BadRequest", line),
            KeyError::Unknown(_) => refuse(StatusCode::NOT_FOUND, "NotFound", line),
            KeyError::Taken(_) | KeyError::FleetTaken(_) => refuse(StatusCode::CONFLICT, "Conflict", line),
            _ => refuse(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", line),
        }
    })
}
