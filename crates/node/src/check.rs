//! Asking a container how it is, and running its hooks: what a probe or a lifecycle handler says, done.
//!
//! Requests go to the pod's own address from the host, as the kubelet's do; commands run inside. Nothing here decides
//! anything: answers go to [`crate::probe`]. Answers come from the container and are hostile: they are read up to
//! [`ANSWER_BYTES_MAX`] and for no longer than the probe's own timeout.
//!
//! Sources: `pkg/kubelet/prober/prober.go`, `pkg/probe/{exec,http,tcp,grpc}`, `pkg/kubelet/lifecycle/handlers.go`.

mod exec;
mod grpc;
mod http;

use std::sync::Weak;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sampan_runtime::pod::Pod;
use tokio::net::TcpStream;

use self::http::HttpCall;
#[cfg(doc)]
use crate::limits::ANSWER_BYTES_MAX;
use crate::limits::ANSWER_QUOTED_MAX;

/// What came of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Good,
    /// The container is not as it should be: what it said.
    Bad(String),
    /// It could not be asked, which says nothing about it.
    Unasked(String),
}

/// Where a container is reached. Whoever waits for an answer does not keep the pod's parts on the host.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) pod: Weak<Pod>,
    /// The pod's address, or the node's where the pod shares its network.
    pub(crate) address: String,
}

/// Asks once.
pub(crate) async fn ask(place: &Place, container: &Container, probe: &Probe) -> Answer {
    let timeout = seconds(probe.timeout_seconds).max(Duration::from_secs(1));
    if let Some(exec) = &probe.exec {
        let Some(pod) = place.pod.upgrade() else { return Answer::Unasked("the pod is gone".to_owned()) };
        return exec::run(&pod, &container.name, exec.command.clone().unwrap_or_default(), timeout).await;
    }
    let asked = async {
        if let Some(get) = &probe.http_get {
            return http::probe(&call(place, container, get)?).await;
        }
        if let Some(socket) = &probe.tcp_socket {
            let port = port_number(container, &socket.port)?;
            return Ok(connect(socket.host.as_deref().unwrap_or(&place.address), port).await);
        }
        if let Some(grpc) = &probe.grpc {
            let port = u16::try_from(grpc.port).map_err(|_large| format!("{} is not a port", grpc.port))?;
            return Ok(grpc::probe(&place.address, port, grpc.service.as_deref().unwrap_or_default()).await);
        }
        Err(format!("missing probe handler for container {}", container.name))
    };
    match tokio::time::timeout(timeout, asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(why)) => Answer::Unasked(why),
        Err(_elapsed) => Answer::Bad(format!("no answer within {} s", timeout.as_secs())),
    }
}

/// Runs a hook to its end; why it failed.
pub(crate) async fn hook(
    place: &Place,
    container: &Container,
    handler: &LifecycleHandler,
    at_most: Duration,
) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let pod = place.pod.upgrade().ok_or("the pod is gone")?;
        let command = exec.command.clone().unwrap_or_default();
        return match exec::run(&pod, &container.name, command, at_most).await {
            Answer::Good => Ok(()),
            Answer::Bad(why) | Answer::Unasked(why) => Err(why),
        };
    }
    let done = async {
        if let Some(get) = &handler.http_get {
            // Whatever it answers, it was told.
            return http::fetch(&call(place, container, get)?).await.map(drop);
        }
        if let Some(sleep) = &handler.sleep {
            tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
            return Ok(());
        }
        // `tcpSocket` is a field that every version of Kubernetes accepts and none runs.
        Err("invalid handler: a hook is one of exec, httpGet and sleep".to_owned())
    };
    let given_up = |_elapsed| Err(format!("it did not end within {} s", at_most.as_secs()));
    tokio::time::timeout(at_most, done).await.unwrap_or_else(given_up)
}

fn call(place: &Place, container: &Container, get: &HTTPGetAction) -> Result<HttpCall, String> {
    let path = get.path.as_deref().unwrap_or("/");
    Ok(HttpCall {
        host: get.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| place.address.clone()),
        port: port_number(container, &get.port)?,
        tls: get.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
        path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
        headers: get.http_headers.iter().flatten().map(|one| (one.name.clone(), one.value.clone())).collect(),
    })
}

/// A port by its number or by the name that the container gives it.
fn port_number(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = |number: i32| u16::try_from(number).ok().filter(|port| *port > 0);
    let found = match port {
        IntOrString::Int(port) => number(*port),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_ref() == Some(name));
            named.map_or_else(|| name.parse().ok().filter(|port| *port > 0), |port| number(port.container_port))
        }
    };
    found.ok_or_else(|| format!("{port:?} is neither a port nor the name of one of container {}", container.name))
}

async fn connect(host: &str, port: u16) -> Answer {
    match TcpStream::connect((host, port)).await {
        Ok(_) => Answer::Good,
        Err(error) => Answer::Bad(unreachable(host, port, &error)),
    }
}

/// As Go says it, which is what people search for.
fn unreachable(host: &str, port: u16, error: &std::io::Error) -> String {
    let why = match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {}: connect: {why}", authority(host, port))
}

/// Host and port; an IPv6 address in brackets.
fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// What a message quotes: one line, bounded, printable.
fn quoted(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let printable = text.trim().chars().map(|letter| if letter.is_control() { ' ' } else { letter });
    printable.take(ANSWER_QUOTED_MAX).collect()
}

fn seconds(value: Option<i32>) -> Duration {
    Duration::from_secs(u64::try_from(value.unwrap_or(0)).unwrap_or(0))
}

#[cfg(test)]
mod tests;
