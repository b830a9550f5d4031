//! Removing an instance, and waiting until it is really gone.

use http::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::node;
use crate::client::watch::{PodChange, PodWatch};
use crate::client::{Client, JSON, path};
use crate::failure::Failure;
use crate::limits::REMOVAL_MAX;
use crate::pods::{is_finished, list, text};

/// How an instance is ended when it is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mercy {
    /// With the time to end that it asks for.
    Grace,
    /// At once.
    Kill,
}

/// Removes `pod` and waits on `watch` until nothing of it is left; one that is already gone is fine.
pub(crate) async fn remove(client: &Client, pod: &Value, mercy: Mercy, watch: &mut PodWatch) -> Result<(), Failure> {
    let (namespace, name) = (text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
    let mut options = json!({"apiVersion": "v1", "kind": "DeleteOptions",
                             "preconditions": {"uid": text(pod, "/metadata/uid")}});
    if mercy == Mercy::Kill {
        // Not 0, which in Kubernetes forgets the object before its processes have ended.
        options["gracePeriodSeconds"] = json!(1);
    }
    let deleted = client.call(Method::DELETE, &path::pod(namespace, name), Some((JSON, &options))).await;
    match deleted {
        Ok(_) => {}
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error.about_pod(namespace, name)),
    }
    if mercy == Mercy::Kill && !is_finished(pod) && !text(pod, "/spec/nodeName").is_empty() {
        for container in list(pod, "/spec/containers") {
            // The grace period ends what this does not: a container may be gone, or not be started yet.
            node::signal(client, pod, text(container, "/name"), "KILL").await.ok();
        }
    }
    let grace = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_u64).unwrap_or(30);
    let patience = REMOVAL_MAX + std::time::Duration::from_secs(grace);
    let gone = timeout(patience, async {
        while !matches!(watch.next().await?, PodChange::Gone) {}
        Ok(())
    });
    match gone.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(crate::client::ClientError::about(error, name)),
        Err(_) => Err(Failure::explain(
            name,
            format_args!("it is still there after {} seconds", patience.as_secs()),
            "look at the service's log",
        )),
    }
}
