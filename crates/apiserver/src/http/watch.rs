//! Watches: changes as a stream of JSON documents, one a line.
//!
//! Without a resource version (or with `0`) the current objects come first, as additions. `sendInitialEvents=true` ends
//! them with a bookmark annotated `k8s.io/initial-events-end`, as informers demand. A watcher that falls behind the
//! kept history gets an ERROR event with 410 and lists again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use sampan_store::{Change, Object, Watch, WatchEvent};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use crate::body::{Body, BodyError};
use crate::error::ApiError;
use crate::http::Front;
use crate::http::negotiate::{Format, Shape, negotiate};
use crate::http::query::Query;
use crate::http::respond;
use crate::http::route::Target;
use crate::http::table::{Include, metadata_only, table};
use crate::limits::{BOOKMARK_INTERVAL, WATCH_DEADLINE, WATCH_FRAMES_MAX, WATCH_STALL_DEADLINE};
use crate::resources::Resource;
use crate::selector::Selector;

/// One open watch. It owns what it needs, since it outlives its request.
struct Watcher {
    front: Arc<Front>,
    resource: String,
    selector: Selector,
    shape: Shape,
    include: Include,
    bookmarks: bool,
    /// Table columns have been sent.
    headed: bool,
    frames: mpsc::Sender<Result<Frame<Bytes>, BodyError>>,
    _permit: OwnedSemaphorePermit,
}

/// The reader of a watch has gone away.
struct ClientGone;

/// Where a watch begins.
struct Beginning {
    initial: Vec<Arc<Object>>,
    /// The initial objects are followed by this bookmark.
    end_mark: bool,
    changes: Watch,
    revision: u64,
}

impl Front {
    pub(crate) fn watch(
        self: Arc<Self>,
        target: &Target<'_>,
        query: &Query,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, ApiError> {
        let (format, shape) = negotiate(headers)?;
        if format == Format::Yaml {
            let why = "watches are sent as application/json only";
            return Err(ApiError::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", why));
        }
        let permit = Arc::clone(&self.watches).try_acquire_owned();
        let permit =
            permit.map_err(|_all_taken| ApiError::too_many_requests("too many watches are open, try again later"))?;
        let selector = Selector::parse(target.resource, query.text("labelSelector"), query.text("fieldSelector"))?;
        let beginning = self.beginning(target, query)?;
        let lifetime = query.number("timeoutSeconds")?.map_or(WATCH_DEADLINE, Duration::from_secs).min(WATCH_DEADLINE);
        let (frames, receiver) = mpsc::channel(WATCH_FRAMES_MAX);
        let watcher = Watcher {
            resource: target.resource.store_name(),
            selector,
            shape,
            include: Include::parse(query.text("includeObject")),
            bookmarks: query.flag("allowWatchBookmarks")?,
            headed: false,
            frames,
            _permit: permit,
            front: Arc::clone(&self),
        };
        let stopping = self.stopping.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                _ = watcher.run(beginning, Instant::now() + lifetime) => {}
            }
        });
        let stream = futures_util::stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|frame| (frame, receiver))
        });
        let mut response = respond::with_type(StatusCode::OK, "application/json", Bytes::new());
        *response.body_mut() = StreamBody::new(stream).boxed_unsync();
        Ok(response)
    }

    fn beginning(&self, target: &Target<'_>, query: &Query) -> Result<Beginning, ApiError> {
        let store = &self.api.core.store;
        let resource = target.resource.store_name();
        let namespace = target.namespace.as_deref();
        let version = query.text("resourceVersion");
        let initial = query.optional_flag("sendInitialEvents")?;
        let matching = query.text("resourceVersionMatch");
        if initial.is_some() && matching != "NotOlderThan" {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", why));
        }
        if initial == Some(true) && !query.flag("allowWatchBookmarks")? {
            let why = "sendInitialEvents requires setting allowWatchBookmarks to true";
            return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", why));
        }
        let asked: u64 = match version {
            "" => 0,
            text => text
                .parse()
                .map_err(|error| ApiError::bad_request(format!("invalid resource version {text:?}: {error}")))?,
        };
        let end_mark = initial == Some(true);
        if asked != 0 && !end_mark {
            let changes = store.watch(&resource, namespace, asked)?;
            return Ok(Beginning { initial: Vec::new(), end_mark, changes, revision: asked });
        }
        let (objects, revision) = store.snapshot(&resource, namespace);
        if asked > revision {
            return Err(sampan_store::StoreError::Future { asked, current: revision }.into());
        }
        let initial = if initial == Some(false) { Vec::new() } else { objects };
        Ok(Beginning { initial, end_mark, changes: store.watch(&resource, namespace, revision)?, revision })
    }
}

impl Watcher {
    async fn run(mut self, beginning: Beginning, end: Instant) -> Result<(), ClientGone> {
        let Beginning { initial, end_mark, mut changes, revision } = beginning;
        for object in &initial {
            if self.selector.matches(&object.value) {
                self.send("ADDED", &object.value).await?;
            }
        }
        if end_mark {
            self.bookmark(revision, true).await?;
        }
        drop(initial);
        let mut next_bookmark = Instant::now() + BOOKMARK_INTERVAL;
        loop {
            tokio::select! {
                change = changes.next() => match change {
                    Ok(change) => self.pass_on(&change).await?,
                    Err(error) => {
                        let status = ApiError::from(error).to_status();
                        self.frame(&json!({"type": "ERROR", "object": status})).await?;
                        return Ok(());
                    }
                },
                () = tokio::time::sleep_until(next_bookmark), if self.bookmarks => {
                    self.bookmark(changes.progress(), false).await?;
                    next_bookmark = Instant::now() + BOOKMARK_INTERVAL;
                }
                () = tokio::time::sleep_until(end) => {
                    // A last bookmark spares the client a long replay when it comes back.
                    return if self.bookmarks { self.bookmark(changes.progress(), false).await } else { Ok(()) };
                }
                () = self.frames.closed() => return Err(ClientGone),
            }
        }
    }

    /// To a watcher with a selector an object comes and goes as it begins and ceases to match.
    async fn pass_on(&mut self, change: &WatchEvent) -> Result<(), ClientGone> {
        let value = &change.object.value;
        let matched = match (&change.previous, change.kind) {
            (Some(previous), _) => self.selector.matches(&previous.value),
            (None, Change::Added) => false,
            // Not known after a restart: a superfluous DELETED or MODIFIED harms nobody.
            (None, Change::Modified | Change::Deleted) => true,
        };
        let matches = change.kind != Change::Deleted && self.selector.matches(value);
        match (matched, matches) {
            (false, false) => Ok(()),
            (false, true) => self.send("ADDED", value).await,
            (true, true) => self.send("MODIFIED", value).await,
            (true, false) => self.send("DELETED", value).await,
        }
    }

    async fn send(&mut self, kind: &str, value: &Value) -> Result<(), ClientGone> {
        let front = Arc::clone(&self.front);
        let Some(resource) = front.api.core.catalog.stored(&self.resource) else { return Err(ClientGone) };
        let object = self.shaped(resource, value);
        self.frame(&json!({"type": kind, "object": object})).await
    }

    fn shaped(&mut self, resource: &Resource, value: &Value) -> Value {
        match self.shape {
            Shape::Object => value.clone(),
            Shape::Metadata => metadata_only(value),
            Shape::Table => {
                let version = json!({"resourceVersion": value["metadata"]["resourceVersion"]});
                let with_columns = !std::mem::replace(&mut self.headed, true);
                table(resource, version, std::iter::once(value), self.include, with_columns)
            }
        }
    }

    async fn bookmark(&mut self, revision: u64, initial_end: bool) -> Result<(), ClientGone> {
        let front = Arc::clone(&self.front);
        let Some(resource) = front.api.core.catalog.stored(&self.resource) else { return Err(ClientGone) };
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": Value::Null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = json!({"kind": resource.kind, "apiVersion": resource.api_version(), "metadata": metadata});
        let object = match self.shape {
            Shape::Object => object,
            Shape::Metadata => metadata_only(&object),
            Shape::Table => {
                let version = json!({"resourceVersion": revision.to_string()});
                table(resource, version, std::iter::once(&object), Include::Metadata, false)
            }
        };
        self.frame(&json!({"type": "BOOKMARK", "object": object})).await
    }

    async fn frame(&mut self, event: &Value) -> Result<(), ClientGone> {
        let mut line = event.to_string();
        line.push('\n');
        let sent = self.frames.send_timeout(Ok(Frame::data(Bytes::from(line))), WATCH_STALL_DEADLINE).await;
        sent.map_err(|_closed_or_stalled| ClientGone)
    }
}
