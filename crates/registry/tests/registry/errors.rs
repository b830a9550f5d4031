//! What a user is told: one line with the thing, the reason and the way out; and what is tried again before.

use std::sync::atomic::{AtomicUsize, Ordering};

use expect_test::{Expect, expect};
use sampan_oci::digest::Digest;
use sampan_oci::platform::Platform;
use sampan_registry::{Credentials, FailureClass, FetchError};

use crate::server::{Reply, Seen, Server, TestImage, client, line, read_all};

/// Pulls `app:1` from a server with these answers and gives the error.
async fn failure(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> (FetchError, Server) {
    let server = Server::start(answer).await;
    let resolved = client().resolve(&server.source("app:1"), &Platform::host(), &Credentials::anonymous()).await;
    (resolved.unwrap_err(), server)
}

async fn check(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static, class: FailureClass, expected: Expect) {
    let (error, server) = failure(answer).await;
    expected.assert_eq(&line(&error, &server));
    assert_eq!(error.class(), class);
}

/// Answers the ping, and everything else as told.
fn always(reply: impl Fn() -> Reply + Send + Sync + 'static) -> impl Fn(&Seen) -> Reply + Send + Sync + 'static {
    move |seen| if seen.path == "/v2/" { Reply::status(200) } else { reply() }
}

#[tokio::test]
async fn statuses_are_explained() {
    check(
        always(|| {
            Reply::status(404).body(r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest\u0007 unknown"}]}"#)
        }),
        FailureClass::Permanent,
        expect![[r#"cannot fetch HOST/app:1: HOST has no such image ("manifest  unknown"); check name and tag"#]],
    )
    .await;
    check(
        always(|| Reply::status(403).body("<html>")),
        FailureClass::Permanent,
        expect!["cannot fetch HOST/app:1: HOST denies access; check the name, or log in (docker login HOST): images that do not exist are often answered so"],
    )
    .await;
    check(
        always(|| Reply::status(401)),
        FailureClass::Permanent,
        expect![
            "cannot fetch HOST/app:1: HOST asks for authentication in a way that is not supported; Basic and Bearer are"
        ],
    )
    .await;
    check(
        always(|| Reply::status(418)),
        FailureClass::Permanent,
        expect!["cannot fetch HOST/app:1: HOST answers with unexpected status 418; check that it is a registry"],
    )
    .await;
    check(
        always(|| Reply::status(429).header("retry-after", 7200)),
        FailureClass::Transient,
        expect!["cannot fetch HOST/app:1: HOST limits the rate of requests for another 7200 s; wait, or log in for a higher limit"],
    )
    .await;
    check(
        always(|| Reply::status(307).header("location", "/v2/again")),
        FailureClass::Permanent,
        expect!["cannot fetch HOST/app:1: HOST redirects in a circle; correct the registry, or name the right one"],
    )
    .await;
    check(
        always(|| Reply::status(302).header("location", "file:///etc/passwd")),
        FailureClass::Permanent,
        expect!["cannot fetch HOST/app:1: HOST redirects to something that is not HTTP; correct the registry, or name the right one"],
    )
    .await;
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_then_told() {
    let (error, server) = failure(always(|| Reply::status(503))).await;
    expect!["cannot fetch HOST/app:1: HOST answers with status 503; try again later, or ask who runs the registry"]
        .assert_eq(&line(&error, &server));
    assert_eq!((error.class(), server.count("/manifests/")), (FailureClass::Transient, 5));

    let (image, count) = (TestImage::new(10), AtomicUsize::new(0));
    let server = Server::start(move |seen| match count.fetch_add(1, Ordering::Relaxed) % 3 {
        _ if seen.path == "/v2/" => Reply::status(200),
        0 => Reply::status(500),
        1 => Reply::status(429).header("retry-after", 0),
        _ => image.answer(seen),
    })
    .await;
    let resolved =
        client().resolve(&server.source("app:1"), &Platform::host(), &Credentials::anonymous()).await.unwrap();
    assert_eq!(resolved.config.config.cmd, ["true"]);
}

#[tokio::test]
async fn hosts_that_are_not_there_are_told_at_once() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let pull = async |name: &str| {
        let source = name.parse().unwrap();
        client().resolve(&source, &Platform::host(), &Credentials::anonymous()).await.unwrap_err()
    };
    let refused = pull(&format!("{gone}/app:1")).await;
    expect![
        "cannot fetch HOST/app:1: HOST refuses connections; check that a registry runs there and that the port is right"
    ]
    .assert_eq(&refused.to_string().replace(&gone.to_string(), "HOST"));
    let unknown = pull("no-such-host.invalid/app:1").await;
    expect!["cannot fetch no-such-host.invalid/app:1: the registry's host no-such-host.invalid is unknown; check its spelling, or this machine's DNS"]
        .assert_eq(&unknown.to_string());
}

#[tokio::test]
async fn every_document_is_checked_against_its_digest() {
    let image = TestImage::new(10);
    let (config, named) = (Digest::of(&image.config), image.manifest.clone());
    let bend = |bytes: &[u8]| {
        let mut bent = bytes.to_vec();
        bent.push(b' ');
        bent
    };
    check(
        {
            let named = named.clone();
            always(move || Reply::ok(bend(&named)).header("docker-content-digest", Digest::of(&named)))
        },
        FailureClass::Permanent,
        expect!["cannot fetch HOST/app:1: the manifest from HOST has digest sha256:4186403a8bab8e0505d3d3e68679e13c31fd5e67e9ccf4e861968f4d62760fb1, not sha256:04b31d62b5dd32af60c2705c579e3579ef7f16ee05dd21c8259a8e9281ed683e; the registry or something between is damaged or hostile: push the image again"],
    )
    .await;
    let (error, _server) =
        failure(
            move |seen| {
                if seen.path.ends_with(&config.hex()) { Reply::ok(bend(&image.config)) } else { image.answer(seen) }
            },
        )
        .await;
    assert!(matches!(error, FetchError::DigestMismatch { what: "the image configuration", .. }), "{error}");
}

#[tokio::test]
async fn a_damaged_blob_is_told_before_its_last_bytes_are_handed_over() {
    let image = TestImage::new(200_000);
    let (descriptor, layer) = (image.layer_descriptor(), image.layer.clone());
    let server = Server::start(move |seen| {
        let mut bent = image.layer.to_vec();
        bent[100] ^= 1;
        if seen.path.contains("/blobs/") { crate::server::ranged(&bent.into(), seen) } else { image.answer(seen) }
    })
    .await;
    let mut reader = client().open_blob(&server.source("app:1"), &descriptor, &Credentials::anonymous()).await.unwrap();
    let mut bytes = 0;
    let error = loop {
        match reader.next().await {
            Ok(chunk) => bytes += chunk.expect("an error comes first").len(),
            Err(error) => break error,
        }
    };
    assert!(bytes < layer.len());
    let FetchError::DigestMismatch { digests, .. } = &error else { panic!("{error}") };
    assert_eq!(digests.expected, descriptor.digest);
    assert!(error.to_string().contains(&digests.actual.to_string()));
    assert_eq!(error.class(), FailureClass::Permanent);
}

#[tokio::test]
async fn images_that_cannot_run_are_named() {
    check(
        always(|| Reply::ok(r#"{"schemaVersion":1,"fsLayers":[]}"#)),
        FailureClass::Permanent,
        expect!["cannot use HOST/app:1: the image has a Docker schema 1 manifest, a form withdrawn since 2019; pull and push it again with a current docker or skopeo"],
    )
    .await;
    check(
        always(|| Reply::ok("hello, I am a captive portal").header("content-type", "text/html")),
        FailureClass::Permanent,
        expect!["cannot use HOST/app:1: the manifest is not valid; rebuild or re-push the image: expected value at line 1 column 1"],
    )
    .await;
    check(
        always(|| Reply::ok(vec![b' '; 5 << 20])),
        FailureClass::Permanent,
        expect!["cannot fetch HOST/app:1: HOST answers a manifest request with more than 4194304 bytes; check that it is a registry"],
    )
    .await;
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [
        {"digest": Digest::of(b""), "size": 1, "mediaType": sampan_oci::media_type::OCI_MANIFEST, "platform": {"os": "plan9", "architecture": "mips"}}]});
    let (error, _server) = failure(always(move || Reply::ok(index.to_string()))).await;
    let chain = sampan_kit::error_chain::ErrorChain(&error).to_string();
    assert!(chain.contains("it offers plan9/mips, this machine is linux/"), "{chain}");
}

#[tokio::test]
async fn a_blob_of_another_size_is_refused() {
    let image = TestImage::new(5000);
    let mut descriptor = image.layer_descriptor();
    descriptor.size = 4000;
    let server = Server::start(move |seen| image.answer(seen)).await;
    let opened = client().open_blob(&server.source("app:1"), &descriptor, &Credentials::anonymous()).await;
    let Err(FetchError::SizeMismatch { expected: 4000, actual: 5000, .. }) = opened.map(|_| ()) else { panic!() };
    let empty = crate::server::descriptor(b"", "application/vnd.oci.image.layer.v1.tar");
    let mut reader = client().open_blob(&server.source("app:1"), &empty, &Credentials::anonymous()).await.unwrap();
    assert!(read_all(&mut reader).await.unwrap().is_empty());
}
