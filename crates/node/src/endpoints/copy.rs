//! Copying files out of and into a running container, as tar streams that the pod's own agent reads and writes.

use bytes::Bytes;
use futures_util::StreamExt;
use http::StatusCode;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::Frame;
use sampan_apiserver::{Body, PodRef};
use sampan_kit::error_chain::ErrorChain;
use sampan_sandbox::{Input, Output};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio_util::io::ReaderStream;

use super::{Answer, json_response, response};
use crate::link::{refuse, sandbox_refusal};
use crate::node::Node;

impl Node {
    pub(super) async fn copy_out(&self, pod: &PodRef, container: &str, path: &str) -> Answer {
        let live = self.running(pod, container).await?;
        let archive = live.sandbox().copy_out(container, path).await.map_err(|error| sandbox_refusal(&error))?;
        let output = Output::new(archive).map_err(|error| unreadable(&error))?;
        let frames = ReaderStream::new(output).map(|chunk| match chunk {
            Ok(bytes) => Ok(Frame::data(bytes)),
            Err(error) => Err(Box::new(error) as sampan_apiserver::body::BodyError),
        });
        Ok(response(StatusCode::OK, "application/x-tar", StreamBody::new(frames.boxed()).boxed_unsync()))
    }

    pub(super) async fn copy_in(&self, pod: &PodRef, container: &str, directory: &str, body: Body) -> Answer {
        let live = self.running(pod, container).await?;
        let (archive, done) =
            live.sandbox().copy_in(container, directory).await.map_err(|error| sandbox_refusal(&error))?;
        let mut input = Input::new(archive).map_err(|error| unreadable(&error))?;
        let feed = async move {
            let mut frames = BodyStream::new(body);
            while let Some(frame) = frames.next().await {
                let frame = frame.map_err(|error| std::io::Error::other(error.to_string()))?;
                let bytes: Bytes = frame.into_data().unwrap_or_default();
                input.write_all(&bytes).await?;
            }
            input.shutdown().await
        };
        let (fed, done) = tokio::join!(feed, done);
        done.map_err(|error| {
            refuse(StatusCode::BAD_REQUEST, "BadRequest", format!("cannot copy to {directory}: {}", ErrorChain(&error)))
        })?;
        fed.map_err(|error| unreadable(&error))?;
        Ok(json_response(StatusCode::OK, &json!({})))
    }
}

fn unreadable(error: &std::io::Error) -> sampan_apiserver::NodeLinkError {
    refuse(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", format!("the archive cannot be passed on: {error}"))
}
