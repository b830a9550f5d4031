//! What kubectl does not show: who may ask, forms of answers, watches to the letter.

use std::sync::Arc;

use sampan_apiserver::{ApiHandle, DeleteOptions, Preconditions};
use serde_json::{Value, json};

use crate::fixture::{Fixture, pod};
use crate::wire::Wire;

async fn config_map(api: &ApiHandle, name: &str, labels: Value) {
    let object = json!({"metadata": {"name": name, "labels": labels}, "data": {"a": "1"}});
    api.create("configmaps", Some("default"), object).await.expect("a config map");
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test(flavor = "multi_thread")]
async fn files_are_for_the_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let fixture = Fixture::start().await;
    for (name, mode) in
        [("sampan.sock", 0o600), ("kubeconfig", 0o600), ("pki", 0o700), ("pki/ca.key", 0o600), ("pki/token", 0o600)]
    {
        let found = std::fs::metadata(fixture.path().join(name)).expect(name).permissions().mode() & 0o777;
        assert_eq!(found, mode, "{name}");
    }
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_lets_in_who_has_a_certificate_or_the_token() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let fixture = Fixture::start().await;
    let token = std::fs::read_to_string(fixture.path().join("pki/token")).expect("a token");
    let authority = std::fs::read(fixture.path().join("pki/ca.crt")).expect("a certificate");
    let authority = rustls::pki_types::pem::PemObject::from_pem_slice(&authority).expect("PEM");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let connector =
        tokio_rustls::TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()));
    let address = fixture.running.tls_address().expect("an address");
    let ask = async |path: &str, head: &str| {
        let stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
        let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
        let mut stream = connector.connect(name, stream).await.expect("TLS");
        let text = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{head}\r\n");
        stream.write_all(text.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("an answer");
        String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(ask("/api/v1/pods", "").await, "HTTP/1.1 401 Unauthorized");
    assert_eq!(ask("/metrics", "").await, "HTTP/1.1 401 Unauthorized");
    assert_eq!(ask("/api/v1/pods", "Authorization: Bearer wrong\r\n").await, "HTTP/1.1 401 Unauthorized");
    assert_eq!(ask("/api/v1/pods", &format!("Authorization: Bearer {token}\r\n")).await, "HTTP/1.1 200 OK");
    assert_eq!(ask("/readyz", "").await, "HTTP/1.1 200 OK");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_goes_the_same_way_as_http() {
    let fixture = Fixture::start().await;
    let api = fixture.api();
    let bad = api.create("pods", Some("default"), json!({"metadata": {"name": "x"}, "spec": {"containers": []}})).await;
    assert_eq!(bad.expect_err("no containers").reason, "Invalid");
    let value = serde_saphyr::from_str(&pod("x", "")).expect("YAML");
    let made = api.create("pods", Some("default"), value).await.expect("a pod");
    assert_eq!(made.value["spec"]["nodeName"], "node-1");
    assert_eq!(made.value["spec"]["containers"][0]["imagePullPolicy"], "IfNotPresent");
    assert_eq!(made.value["status"]["qosClass"], "BestEffort");
    let other = DeleteOptions { preconditions: Preconditions::uid("another"), ..DeleteOptions::default() };
    assert!(api.delete("pods", Some("default"), "x", &other).await.expect_err("another pod").is_conflict());
    let wrong = api
        .patch_status(
            "pods",
            Some("default"),
            "x",
            json!({"metadata": {"uid": "another"}, "status": {"phase": "Failed"}}),
        )
        .await;
    assert!(wrong.expect_err("another pod").is_conflict());
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_begins_goes_on_and_ends_as_informers_expect() {
    let fixture = Fixture::start().await;
    let (api, wire) = (fixture.api(), Wire::new(fixture.path()));
    config_map(api, "a", json!({"tier": "front"})).await;
    let path = format!("{MAPS}?watch=true&labelSelector=tier%3Dfront");
    let mut watch = wire
        .watch(&format!("{path}&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"))
        .await;
    assert_eq!(watch.line().await, "ADDED a");
    let mark = watch.next().await.expect("a bookmark");
    assert_eq!((&mark["type"], &mark["object"]["kind"]), (&json!("BOOKMARK"), &json!("ConfigMap")));
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let version = mark["object"]["metadata"]["resourceVersion"].as_str().expect("a version").to_owned();

    config_map(api, "b", json!({})).await;
    let patch = |labels: Value| sampan_apiserver::Patch::Merge(json!({"metadata": {"labels": labels}}));
    api.patch("configmaps", Some("default"), "b", &patch(json!({"tier": "front"}))).await.expect("a label");
    api.patch("configmaps", Some("default"), "b", &patch(json!({"more": "x"}))).await.expect("a label");
    api.patch("configmaps", Some("default"), "b", &patch(json!({"tier": null}))).await.expect("no label");
    api.delete("configmaps", Some("default"), "a", &DeleteOptions::default()).await.expect("gone");
    let expected = ["ADDED b", "MODIFIED b", "DELETED b", "DELETED a"];
    for line in expected {
        assert_eq!(watch.line().await, line);
    }
    // The same again by replay, until the time is over.
    let mut watch = wire.watch(&format!("{path}&resourceVersion={version}&timeoutSeconds=1")).await;
    for line in expected.into_iter().chain(["end"]) {
        assert_eq!(watch.line().await, line);
    }
    for (path, status) in [
        (format!("{MAPS}?watch=1&resourceVersion=99999999"), 504),
        (format!("{MAPS}?watch=1&resourceVersion=x"), 400),
        (format!("{MAPS}?watch=1&sendInitialEvents=true"), 422),
        (format!("{MAPS}?resourceVersion=1&resourceVersionMatch=Exact"), 410),
    ] {
        let answer = wire.get(&path).await;
        assert_eq!(answer.status.as_u16(), status, "{path}: {}", answer.text);
        assert_eq!(answer.json()["kind"], "Status");
    }
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages_and_shapes() {
    let fixture = Fixture::start().await;
    let (api, wire) = (fixture.api(), Wire::new(fixture.path()));
    for name in ["a", "b", "c", "d", "e"] {
        config_map(api, name, json!({"name": name})).await;
    }
    let mut names = Vec::new();
    let mut token = String::new();
    loop {
        let page = wire.get(&format!("{MAPS}?limit=2&continue={token}")).await.json();
        names.extend(page["items"].as_array().expect("items").iter().map(|one| one["metadata"]["name"].clone()));
        match page["metadata"]["continue"].as_str() {
            Some(next) => token = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    assert_eq!(wire.get(&format!("{MAPS}?continue=rubbish")).await.status, 400);
    let accept = |text: &'static str| async { wire.ask(&format!("GET {MAPS}/a"), &[text], "").await };
    let table = accept("accept: application/json;as=Table;v=v1;g=meta.k8s.io, application/json").await.json();
    assert_eq!((&table["kind"], &table["rows"][0]["cells"][0]), (&json!("Table"), &json!("a")));
    let bare = accept("accept: application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1").await.json();
    assert_eq!((&bare["kind"], bare.get("data")), (&json!("PartialObjectMetadata"), None));
    let yaml = accept("accept: application/yaml").await;
    assert!(
        yaml.text.contains("kind: ConfigMap") && yaml.headers["content-type"] == "application/yaml",
        "{}",
        yaml.text
    );
    assert_eq!(accept("accept: application/vnd.kubernetes.protobuf").await.status, 406);
    assert!(wire.get("/openapi/v2").await.text.contains("Kubernetes"));
    let index = wire.get("/openapi/v3").await.json();
    let schema = wire.get(index["paths"]["api/v1"]["serverRelativeURL"].as_str().expect("a path")).await.json();
    assert!(schema["components"]["schemas"].get("io.k8s.api.core.v1.Pod").is_some());
    assert!(
        wire.get("/metrics")
            .await
            .text
            .contains("sampan_apiserver_requests_total{verb=\"list\",resource=\"configmaps\",code=\"200\"}")
    );
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_read_with_care() {
    let fixture = Fixture::start().await;
    let wire = Wire::new(fixture.path());
    let post = async |kind: &str, body: String| {
        wire.ask(&format!("POST {MAPS}"), &[&format!("content-type: {kind}")], body).await
    };
    let yaml = post("application/yaml", "metadata: {name: yam}\ndata: {a: b}\nextra: 1\n".to_owned()).await;
    assert_eq!(yaml.status, 201, "{}", yaml.text);
    assert_eq!(yaml.headers["warning"], r#"299 - "unknown field \"extra\"""#);
    assert_eq!(yaml.json().get("extra"), None);
    for (kind, body, status, words) in [
        ("application/yaml", "a: [".to_owned(), 400, "is not YAML"),
        ("application/json", "{".to_owned(), 400, "is not JSON"),
        ("application/json", "[]".to_owned(), 400, "is not an object"),
        ("application/cbor", "{}".to_owned(), 415, "unknown format"),
        ("application/json", json!({"kind": "Pod"}).to_string(), 400, "does not match the expected kind"),
        ("application/json", json!({"metadata": {"name": "yam"}}).to_string(), 409, "already exists"),
        (
            "application/json",
            json!({"metadata": {"name": "z", "namespace": "other"}}).to_string(),
            400,
            "does not match the namespace",
        ),
        ("application/json", json!({"metadata": {}}).to_string(), 422, "name or generateName is required"),
        ("application/json", format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)), 400, "not JSON"),
        ("application/json", format!("\"{}\"", "x".repeat(4 << 20)), 413, "too large"),
    ] {
        let answer = post(kind, body).await;
        assert_eq!(answer.status.as_u16(), status, "{}", answer.text);
        assert!(answer.text.contains(words), "{}", answer.text);
    }
    let generated = post("application/json", json!({"metadata": {"generateName": "g-"}}).to_string()).await.json();
    assert!(generated["metadata"]["name"].as_str().is_some_and(|name| name.len() == 7 && name.starts_with("g-")));
    let patch = wire.ask(&format!("PATCH {MAPS}/yam"), &["content-type: text/plain"], "{}").await;
    assert_eq!(patch.status, 415);
    let method = wire.ask("PUT /api/v1/pods", &[], "").await;
    assert_eq!(method.status, 405);
    assert_eq!(wire.get("/api/v1/unicorns").await.status, 404);
    let collection = wire.ask(&format!("DELETE {MAPS}"), &[], "").await;
    assert_eq!(collection.json()["items"].as_array().map(Vec::len), Some(2));
    fixture.stop().await;
}

/// Counts what is reserved by name, as a scheduler does.
#[derive(Default)]
struct Reservations(std::sync::Mutex<std::collections::HashMap<String, i32>>);

#[async_trait::async_trait]
impl sampan_apiserver::Admission for Reservations {
    async fn admit(
        &self,
        request: &sampan_apiserver::AdmissionRequest<'_>,
        _: &mut Value,
    ) -> Result<(), sampan_apiserver::ApiError> {
        *self.0.lock().expect("unpoisoned").entry(request.name.to_owned()).or_default() += 1;
        tokio::task::yield_now().await;
        Ok(())
    }

    async fn settled(&self, request: &sampan_apiserver::AdmissionRequest<'_>, committed: bool) {
        if !committed {
            *self.0.lock().expect("unpoisoned").entry(request.name.to_owned()).or_default() -= 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_name_is_reserved_once_however_many_want_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = sampan_apiserver::Store::open(&directory.path().join("store.db")).expect("a store");
    let reservations = Arc::new(Reservations::default());
    let api = ApiHandle::new(store, Arc::clone(&reservations) as _).expect("an API");
    api.create("namespaces", None, json!({"metadata": {"name": "default"}})).await.expect("a namespace");
    let wishes = (0..40).map(|number| {
        let api = api.clone();
        tokio::spawn(async move {
            let object = json!({"metadata": {"name": format!("m{}", number % 4)}});
            let creation = api.create("configmaps", Some("default"), object);
            if number % 3 == 0 {
                // A caller that gives up at once: the change runs on and is settled.
                drop(tokio::time::timeout(std::time::Duration::ZERO, creation).await);
                return false;
            }
            creation.await.is_ok()
        })
    });
    let made = futures_util::future::join_all(wishes).await;
    assert!(made.into_iter().filter(|made| *made.as_ref().expect("no panic")).count() <= 4);
    let (maps, _) = api.list("configmaps", None).await.expect("a list");
    assert_eq!(maps.len(), 4);
    // Those that were given up may still be on their way to their refusal.
    let settled = async {
        while !reservations.0.lock().expect("unpoisoned").values().all(|count| *count == 1) {
            tokio::task::yield_now().await;
        }
    };
    let settled = tokio::time::timeout(std::time::Duration::from_secs(10), settled).await;
    assert!(settled.is_ok(), "{:?}", reservations.0.lock());
}
