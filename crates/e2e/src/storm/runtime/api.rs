//! A client of the Kubernetes API that repeats what is not answered.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::flights::Flights;
use super::script::{SHARED, Script};
use super::wires::ApiWire;
use super::wires::Request::{Change, Look};
use crate::harness::pod::{first_status, text};
use crate::harness::wait::DEADLINE;
use crate::service::Service;

const PAUSE: Duration = Duration::from_millis(20);
const PODS: &str = "/api/v1/namespaces/default/pods";

/// One client.
#[derive(Debug)]
pub(super) struct Api {
    wire: ApiWire,
    image: String,
}

impl Api {
    pub(super) fn new(service: &Service, flights: &Flights) -> Result<Self> {
        let wire = ApiWire::new(service.run_dir().join("sampan.sock"), flights.clone());
        Ok(Self { wire, image: service.busybox()? })
    }

    pub(super) async fn create(&mut self, name: &str, script: &Script, shared: Option<&Path>) -> Result<()> {
        let mounts: Vec<Value> = shared.iter().map(|_| json!({"name": "shared", "mountPath": SHARED})).collect();
        let volumes: Vec<Value> =
            shared.iter().map(|folder| json!({"name": "shared", "hostPath": {"path": folder}})).collect();
        let container =
            json!({"name": "main", "image": self.image, "command": script.command(), "volumeMounts": mounts});
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"restartPolicy": "Never", "containers": [container], "volumes": volumes},
        });
        let told = self.wire.ask(Change("create a Pod"), Method::POST, PODS, Some(&pod)).await?;
        let (said, repeated) = (told.answer, told.repeated);
        let made = said.status.is_success() || repeated && said.status == StatusCode::CONFLICT;
        ensure!(made, "create {name}: {}: {}", said.status, String::from_utf8_lossy(&said.body));
        Ok(())
    }

    /// The pod, if it is there.
    pub(super) async fn pod(&mut self, name: &str) -> Result<Option<Value>> {
        let said = self.wire.ask(Look("get a Pod"), Method::GET, &format!("{PODS}/{name}"), None).await?.answer;
        if said.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        ensure!(said.status.is_success(), "get {name}: {}", String::from_utf8_lossy(&said.body));
        said.json().map(Some)
    }

    /// Waits until it is in one of these phases.
    pub(super) async fn reaches(&mut self, name: &str, phases: &[&str]) -> Result<Value> {
        let began = Instant::now();
        loop {
            let pod = self.pod(name).await?.with_context(|| format!("{name} is lost"))?;
            if phases.contains(&text(&pod, "/status/phase")) {
                return Ok(pod);
            }
            ensure!(began.elapsed() < DEADLINE, "{name} is not in any of {phases:?}: {}", pod["status"]);
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Waits for its end and insists on how it ended.
    pub(super) async fn ended(&mut self, name: &str, code: i32) -> Result<()> {
        let pod = self.reaches(name, &["Succeeded", "Failed"]).await?;
        let status = first_status(&pod);
        let (found, restarts) = (&status["state"]["terminated"]["exitCode"], &status["restartCount"]);
        ensure!((found, restarts) == (&code.into(), &0.into()), "{name} ends with {code}, but: {}", pod["status"]);
        Ok(())
    }

    pub(super) async fn logs(&mut self, name: &str) -> Result<String> {
        let path = format!("{PODS}/{name}/log");
        let said = self.wire.ask(Look("get a log"), Method::GET, &path, None).await?.answer;
        let body = String::from_utf8_lossy(&said.body).into_owned();
        ensure!(said.status.is_success(), "the log of {name}: {}: {body}", said.status);
        Ok(body)
    }

    /// Deletes it and waits until it is gone.
    pub(super) async fn delete(&mut self, name: &str, grace_seconds: u64) -> Result<()> {
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": grace_seconds});
        let path = format!("{PODS}/{name}");
        let said = self.wire.ask(Change("delete a Pod"), Method::DELETE, &path, Some(&options)).await?.answer;
        let taken = said.status.is_success() || said.status == StatusCode::NOT_FOUND;
        ensure!(taken, "delete {name}: {}: {}", said.status, String::from_utf8_lossy(&said.body));
        let began = Instant::now();
        while let Some(pod) = self.pod(name).await? {
            ensure!(began.elapsed() < DEADLINE, "{name} is not deleted: {pod}");
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }
}
