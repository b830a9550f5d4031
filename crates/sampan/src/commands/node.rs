//! The node behind the API, and our own endpoints on it.

use http::Method;
use serde_json::Value;

use super::Context;
use crate::client::{Client, ClientError, path};
use crate::failure::Failure;
use crate::pods::{items, text};

/// The name of the node whose images and machine commands mean: there is one as yet.
pub(crate) async fn name(context: &Context, thing: &str) -> Result<String, Failure> {
    let nodes = context.client.get("/api/v1/nodes").await.map_err(|error| error.about(thing))?;
    let first = items(&nodes).first().map(|node| text(node, "/metadata/name")).filter(|name| !name.is_empty());
    first.map(ToOwned::to_owned).ok_or_else(|| {
        Failure::explain(thing, "the service has no node yet", "wait a moment, or look at the service's log")
    })
}

/// The node an instance is on.
pub(crate) fn of(pod: &Value) -> Result<&str, Failure> {
    match text(pod, "/spec/nodeName") {
        "" => Err(Failure::explain(
            text(pod, "/metadata/name"),
            "it is on no machine yet",
            "see why with: sampan inspect",
        )),
        name => Ok(name),
    }
}

/// Sends a signal to a container's main process.
pub(crate) async fn signal(client: &Client, pod: &Value, container: &str, signal: &str) -> Result<Value, ClientError> {
    let (namespace, name) = (text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
    let endpoint = format!(
        "signal/{}/{}/{}{}",
        path::encode(namespace),
        path::encode(name),
        path::encode(container),
        path::query([("signal", signal.to_owned())])
    );
    client.call(Method::POST, &path::node(text(pod, "/spec/nodeName"), &endpoint), None).await
}
