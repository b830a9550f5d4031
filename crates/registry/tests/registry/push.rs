//! Writing to registries, and finding what refers to an image: against servers of both kinds.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::Method;
use sampan_oci::digest::Digest;
use sampan_oci::media_type::OCI_MANIFEST;
use sampan_oci::reference::{ImageSource, Reference};
use sampan_registry::limits::PUSH_PIECE_BYTES;
use sampan_registry::{Content, Credentials, Login, PushError, Referrer};

use crate::server::{Reply, Seen, Server, client, noise};

const KIND: &str = "application/vnd.test";

/// What a registry has: manifests by name, blobs by digest, uploads under way.
#[derive(Default)]
struct Stored {
    manifests: HashMap<String, Bytes>,
    blobs: HashMap<String, Bytes>,
    uploads: HashMap<String, Vec<u8>>,
}

/// A registry that can be written to; with the referrers API or without.
async fn registry(with_api: bool) -> (Server, Arc<Mutex<Stored>>) {
    let stored = Arc::new(Mutex::new(Stored::default()));
    let kept = Arc::clone(&stored);
    let server = Server::start(move |seen| answer(seen, &mut kept.lock().unwrap(), with_api)).await;
    (server, stored)
}

fn answer(seen: &Seen, stored: &mut Stored, with_api: bool) -> Reply {
    let missing = || Reply::status(404).body(r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#);
    let path = seen.path.strip_prefix("/v2/team/app/").unwrap_or_default();
    match (seen.method.clone(), path.split_once('/')) {
        (Method::POST, Some(("blobs", "uploads/"))) => {
            let id = stored.uploads.len().to_string();
            stored.uploads.insert(id.clone(), Vec::new());
            Reply::status(202).header("location", format!("/v2/team/app/up/{id}?state=x"))
        }
        (Method::PATCH, Some(("up", id))) => {
            let upload = stored.uploads.get_mut(id).unwrap();
            let begins = seen.header("content-range").unwrap().split('-').next().unwrap().parse::<usize>().unwrap();
            assert_eq!(begins, upload.len(), "pieces come in order");
            upload.extend_from_slice(&seen.body);
            Reply::status(202).header("location", format!("/v2/team/app/up/{id}?state=y"))
        }
        (Method::PUT, Some(("up", id))) => {
            assert!(seen.query.starts_with("state="), "what the registry gave is kept: {}", seen.query);
            let mut upload = stored.uploads.remove(id).unwrap();
            upload.extend_from_slice(&seen.body);
            let digest = Digest::of(&upload).to_string();
            assert!(seen.query.replace("%3A", ":").ends_with(&format!("digest={digest}")), "{}", seen.query);
            stored.blobs.insert(digest, upload.into());
            Reply::status(201)
        }
        (Method::HEAD, Some(("blobs", digest))) => match stored.blobs.get(digest) {
            Some(blob) => Reply::status(200).header("content-length", blob.len()),
            None => missing(),
        },
        (Method::PUT, Some(("manifests", name))) => {
            let digest = Digest::of(&seen.body).to_string();
            stored.manifests.insert(digest.clone(), seen.body.clone());
            stored.manifests.insert(name.to_owned(), seen.body.clone());
            let reply = Reply::status(201).header("docker-content-digest", digest);
            if with_api { reply.header("oci-subject", Digest::of(b"subject")) } else { reply }
        }
        (Method::GET, Some(("manifests", name))) => {
            stored.manifests.get(name).map_or_else(missing, |bytes| Reply::ok(bytes.clone()))
        }
        (Method::GET, Some(("referrers", _))) if with_api => {
            assert_eq!(seen.query, "artifactType=application%2Fvnd.test");
            let entries: Vec<_> = stored.manifests.values().map(|bytes| serde_json::json!(referrer(bytes))).collect();
            Reply::ok(serde_json::json!({"schemaVersion": 2, "manifests": entries}).to_string())
        }
        _ => missing(),
    }
}

fn referrer(bytes: &[u8]) -> Referrer {
    Referrer {
        media_type: OCI_MANIFEST.to_owned(),
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        artifact_type: KIND.to_owned(),
        annotations: BTreeMap::new(),
    }
}

fn reference(server: &Server) -> Reference {
    let ImageSource::Registry(reference) = server.source("team/app:1") else { panic!("a registry's name") };
    reference
}

#[tokio::test]
async fn blobs_go_whole_or_in_pieces_and_only_once() {
    let (server, stored) = registry(false).await;
    let (client, reference, anonymous) = (client(), reference(&server), Credentials::anonymous());
    let file = tempfile::NamedTempFile::new().unwrap();
    let large = noise(PUSH_PIECE_BYTES as usize * 2 + 5);
    std::fs::write(file.path(), &large).unwrap();
    let contents = [
        (Digest::of(b"small"), Content::Bytes(Bytes::from_static(b"small"))),
        (Digest::of(&large), Content::File(file.path().to_owned(), large.len() as u64)),
        (Digest::of(b""), Content::Bytes(Bytes::new())),
    ];
    for _ in 0..2 {
        for (digest, content) in &contents {
            client.push_blob(&reference, digest, content, &anonymous).await.unwrap();
        }
    }
    assert_eq!(stored.lock().unwrap().blobs[&Digest::of(&large).to_string()], large);
    assert_eq!(stored.lock().unwrap().blobs.len(), 3);
    assert_eq!(
        server.seen().iter().filter(|seen| seen.method == Method::POST).count(),
        3,
        "what is there is not sent again"
    );
    assert_eq!(server.seen().iter().filter(|seen| seen.method == Method::PATCH).count(), 3);
}

#[tokio::test]
async fn artifacts_are_found_by_the_api_and_by_the_tag_that_stands_for_it() {
    for with_api in [true, false] {
        let (server, _stored) = registry(with_api).await;
        let (client, reference, anonymous) = (client(), reference(&server), Credentials::anonymous());
        let subject = Digest::of(b"subject");
        let find = async || client.referrers(&reference, &subject, KIND, &anonymous).await.unwrap();
        assert_eq!(find().await, []);
        let asked = server.seen().len();
        assert_eq!(find().await, []);
        assert_eq!(server.seen().len(), asked + 1, "what kind of registry it is was found out once");
        for artifact in [&b"{\"first\":1}"[..], b"{\"second\":2}"] {
            let bytes = Bytes::from_static(artifact);
            let pushed = client.push_manifest(&reference, None, OCI_MANIFEST, bytes, &anonymous).await.unwrap();
            assert_eq!((pushed.digest, pushed.knows_subjects), (Digest::of(artifact), with_api));
            if !with_api {
                client.tag_referrer(&reference, &subject, referrer(artifact), &anonymous).await.unwrap();
                assert_eq!(find().await, [referrer(artifact)], "a newer one takes the older one's place");
            }
        }
        assert!(find().await.contains(&referrer(b"{\"second\":2}")));
        let digest = Digest::of(b"{\"second\":2}");
        assert_eq!(client.artifact(&reference, &digest, &anonymous).await.unwrap(), &b"{\"second\":2}"[..]);
    }
}

#[tokio::test]
async fn a_token_for_writing_is_asked_for_apart() {
    let (server, stored) = registry(false).await;
    let inner = server.address;
    // A registry in front, whose tokens say what they are for.
    let kept = Arc::clone(&stored);
    let front = Server::start(move |seen| {
        if seen.path == "/token" {
            let scope = seen.query.replace("%3A", ":").replace("%2C", ",");
            let token = if scope.contains(":pull,push") { "writes" } else { "reads" };
            return Reply::ok(format!("{{\"token\":\"{token}\"}}"));
        }
        let wanted = if seen.method == Method::GET || seen.method == Method::HEAD { "reads" } else { "writes" };
        let shown = seen.header("authorization").and_then(|header| header.strip_prefix("Bearer ")).unwrap_or_default();
        if seen.path.starts_with("/v2/team") && shown != wanted && shown != "writes" {
            let actions = if wanted == "writes" { "pull,push" } else { "pull" };
            let challenge = format!("Bearer realm=\"/token\",service=\"s\",scope=\"repository:team/app:{actions}\"");
            return Reply::status(401).header("www-authenticate", challenge);
        }
        answer(seen, &mut kept.lock().unwrap(), false)
    })
    .await;
    assert_ne!(front.address, inner);
    let (client, reference) = (client(), reference(&front));
    let login = Credentials::login(Login::Password { username: "u".into(), password: "p".into() });
    assert_eq!(client.referrers(&reference, &Digest::of(b"x"), KIND, &login).await.unwrap(), []);
    let content = Content::Bytes(Bytes::from_static(b"blob"));
    client.push_blob(&reference, &Digest::of(b"blob"), &content, &login).await.unwrap();
    client.push_manifest(&reference, Some("2"), OCI_MANIFEST, Bytes::from_static(b"{}"), &login).await.unwrap();
    assert_eq!(stored.lock().unwrap().blobs.len(), 1);
}

#[tokio::test]
async fn who_may_not_write_is_told_so() {
    let server = Server::start(|seen| match seen.method {
        Method::GET => Reply::status(200),
        Method::HEAD => Reply::status(404),
        _ => Reply::status(403).body(r#"{"errors":[{"code":"DENIED","message":"read only"}]}"#),
    })
    .await;
    let reference = reference(&server);
    let content = Content::Bytes(Bytes::from_static(b"blob"));
    let error =
        client().push_blob(&reference, &Digest::of(b"blob"), &content, &Credentials::anonymous()).await.unwrap_err();
    assert!(matches!(error, PushError::Denied { .. }), "{error}");
    let line = error.to_string();
    assert!(line.contains("read only") && line.contains("docker login"), "{line}");
}

#[tokio::test]
async fn plain_files_are_read_in_whole_and_in_part() {
    let server = Server::start(|seen| match (seen.path.as_str(), seen.range()) {
        ("/file", None) => Reply::ok(&b"0123456789"[..]),
        ("/file", Some(range)) if range.end <= 10 => {
            Reply::status(206).body(Bytes::copy_from_slice(&b"0123456789"[range]))
        }
        ("/moved", _) => Reply::status(302).header("location", "/file"),
        ("/deaf", _) => Reply::ok(&b"0123456789"[..]),
        _ => Reply::status(404),
    })
    .await;
    let client = client();
    let url = |path: &str| format!("http://{}{path}", server.address);
    assert_eq!(client.read_url(&url("/file"), None, 10).await.unwrap().unwrap(), "0123456789");
    assert_eq!(client.read_url(&url("/file"), Some(3..5), 10).await.unwrap().unwrap(), "34");
    assert_eq!(client.read_url(&url("/moved"), None, 10).await.unwrap().unwrap(), "0123456789");
    assert_eq!(client.read_url(&url("/none"), None, 10).await.unwrap(), None);
    assert!(client.read_url(&url("/file"), None, 9).await.is_err(), "longer than wanted");
    assert!(client.read_url(&url("/deaf"), Some(3..5), 10).await.is_err(), "ranges are not served");
    assert!(client.read_url("file:///etc/passwd", None, 10).await.is_err());
}
