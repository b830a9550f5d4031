//! The client against Debian's docker-registry: the one that our users run locally, and the code behind Docker Hub.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use reqwest::{Client, Method};
use sampan_oci::digest::Digest;
use sampan_oci::platform::Platform;
use sampan_oci::reference::ImageSource;
use sampan_registry::{Content, Credentials, FetchError, Login, PushError, Referrer};

use crate::server::{TestImage, client, read_all};

/// bcrypt of `secret`, made by Apache's htpasswd.
const HTPASSWD: &str = "tester:$2y$05$ciA/WarSUIZyx0Sqb38..O0yxCesg6i0aEDA5fKdFENCwL4M5.FPO\n";

struct Registry {
    process: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

impl Registry {
    /// `None`, after saying so, where it is not installed.
    fn start(protected: bool) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().display();
        fs::write(directory.path().join("htpasswd"), HTPASSWD).unwrap();
        let mut config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {root}/data}}}}\nhttp: {{addr: '127.0.0.1:0'}}\n"
        );
        if protected {
            config += &format!("auth: {{htpasswd: {{realm: test, path: {root}/htpasswd}}}}\n");
        }
        let file = directory.path().join("config.yml");
        fs::write(&file, config).unwrap();
        let spawned = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        let Ok(mut process) = spawned else {
            eprintln!(
                "SKIPPED: docker-registry is not installed (apt install docker-registry), so the client is not tested against it"
            );
            return None;
        };
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let listening = log.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, port) = line.split_once("listening on 127.0.0.1:")?;
            port.split('"').next()?.parse().ok()
        });
        let port = listening.expect("docker-registry says where it listens");
        // Its log must go somewhere, or it blocks when the pipe is full.
        std::thread::spawn(move || log.for_each(drop));
        Some(Self { process, port, _directory: directory })
    }

    fn source(&self) -> ImageSource {
        format!("localhost:{}/team/app:1", self.port).parse().unwrap()
    }

    async fn push(&self, image: &TestImage) {
        let base = format!("http://127.0.0.1:{}/v2/team/app", self.port);
        let http = Client::builder().no_proxy().build().unwrap();
        let send = async |method: Method, url: String, body: Bytes, media_type: &str| {
            let request =
                http.request(method, url).basic_auth("tester", Some("secret")).header("content-type", media_type);
            request.body(body).send().await.unwrap().error_for_status().unwrap()
        };
        for blob in [&image.layer, &image.config] {
            let begun = send(Method::POST, format!("{base}/blobs/uploads/"), Bytes::new(), "text/plain").await;
            let location = begun.headers()["location"].to_str().unwrap().to_owned();
            let target = format!("{location}&digest={}", Digest::of(blob));
            send(Method::PUT, target, blob.clone(), "application/octet-stream").await;
        }
        let manifest = image.manifest.clone();
        send(Method::PUT, format!("{base}/manifests/1"), manifest, sampan_oci::media_type::OCI_MANIFEST).await;
    }
}

#[tokio::test]
async fn an_image_is_pulled_whole() {
    let Some(registry) = Registry::start(false) else { return };
    let image = TestImage::new(700_000);
    registry.push(&image).await;
    let (client, anonymous) = (client(), Credentials::anonymous());
    let resolved = client.resolve(&registry.source(), &Platform::host(), &anonymous).await.unwrap();
    assert_eq!(resolved.digest, Digest::of(&image.manifest));
    assert_eq!(client.current_digest(&registry.source(), &anonymous).await.unwrap(), resolved.digest);
    let layer = &resolved.manifest.layers[0].descriptor;
    let mut reader = client.open_blob(&registry.source(), layer, &anonymous).await.unwrap();
    assert_eq!(read_all(&mut reader).await.unwrap(), image.layer);
    let range = client.read_range(&registry.source(), layer, 123..456, &anonymous).await.unwrap();
    assert_eq!(range, image.layer[123..456]);
    let missing = format!("localhost:{}/team/other:1", registry.port).parse().unwrap();
    let error = client.resolve(&missing, &Platform::host(), &anonymous).await.unwrap_err();
    assert!(matches!(error, FetchError::ImageNotFound { .. }), "{error}");
}

#[tokio::test]
async fn an_artifact_is_written_beside_an_image_and_found() {
    let Some(registry) = Registry::start(true) else { return };
    let image = TestImage::new(100);
    registry.push(&image).await;
    let ImageSource::Registry(reference) = registry.source() else { panic!("a registry's name") };
    let login = Credentials::login(Login::Password { username: "tester".into(), password: "secret".into() });
    let (client, subject) = (client(), Digest::of(&image.manifest));
    let kind = "application/vnd.sampan.test";
    assert_eq!(client.referrers(&reference, &subject, kind, &login).await.unwrap(), []);
    // Large enough to go in pieces.
    let large = crate::server::noise(sampan_registry::limits::PUSH_PIECE_BYTES as usize + 77);
    for bytes in [large.clone(), Bytes::from_static(b"{}")] {
        client.push_blob(&reference, &Digest::of(&bytes), &Content::Bytes(bytes), &login).await.unwrap();
    }
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": sampan_oci::media_type::OCI_MANIFEST, "artifactType": kind,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}"), "size": 2},
        "layers": [{"mediaType": kind, "digest": Digest::of(&large), "size": large.len()}],
        "subject": {"mediaType": sampan_oci::media_type::OCI_MANIFEST, "digest": subject, "size": image.manifest.len()},
    });
    let bytes = Bytes::from(manifest.to_string());
    let media_type = sampan_oci::media_type::OCI_MANIFEST;
    let pushed = client.push_manifest(&reference, None, media_type, bytes.clone(), &login).await.unwrap();
    assert_eq!(pushed.digest, Digest::of(&bytes));
    let referrer = Referrer {
        media_type: media_type.to_owned(),
        digest: pushed.digest,
        size: bytes.len() as u64,
        artifact_type: kind.to_owned(),
        annotations: Default::default(),
    };
    if !pushed.knows_subjects {
        client.tag_referrer(&reference, &subject, referrer.clone(), &login).await.unwrap();
    }
    let found = client.referrers(&reference, &subject, kind, &login).await.unwrap();
    assert_eq!(found.iter().map(|found| found.digest).collect::<Vec<_>>(), [referrer.digest]);
    assert_eq!(client.artifact(&reference, &found[0].digest, &login).await.unwrap(), bytes);
    let wrong = Credentials::login(Login::Password { username: "tester".into(), password: "wrong".into() });
    let error = client.push_manifest(&reference, None, media_type, bytes, &wrong).await.unwrap_err();
    assert!(matches!(error, PushError::Denied { .. }), "{error}");
}

#[tokio::test]
async fn a_protected_registry_takes_the_right_login_only() {
    let Some(registry) = Registry::start(true) else { return };
    let image = TestImage::new(100);
    registry.push(&image).await;
    let pull =
        async |credentials: Credentials| client().resolve(&registry.source(), &Platform::host(), &credentials).await;
    let login =
        |password: &str| Credentials::login(Login::Password { username: "tester".into(), password: password.into() });
    pull(login("secret")).await.unwrap();
    assert!(matches!(pull(login("wrong")).await, Err(FetchError::LoginRejected { .. })));
    assert!(matches!(pull(Credentials::anonymous()).await, Err(FetchError::LoginNeeded { .. })));
}
