//! Logins and tokens: asked for once, renewed when they end, and shown to nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use expect_test::expect;
use http::Method;
use sampan_oci::platform::Platform;
use sampan_registry::{AuthFile, Credentials, FetchError, Login};

use crate::server::{Reply, Seen, Server, TestImage, client, config, line, read_all};

fn challenge(realm: &str) -> Reply {
    Reply::status(401).header(
        "www-authenticate",
        format!(r#"Bearer realm="{realm}",service="registry.test",scope="repository:app:pull""#),
    )
}

/// A registry whose token service is on the same server, under `/token`, and takes what `judge` lets through.
async fn token_registry(judge: impl Fn(&Seen) -> Option<String> + Send + Sync + 'static) -> (Server, Arc<TestImage>) {
    let image = Arc::new(TestImage::new(300_000));
    let served = Arc::clone(&image);
    let server = Server::start(move |seen| {
        if seen.path == "/token" {
            return match judge(seen) {
                Some(token) => Reply::ok(format!(r#"{{"token":"{token}","expires_in":300}}"#)),
                None => Reply::status(401).body(r#"{"details":"incorrect username or password"}"#),
            };
        }
        match seen.header("authorization") {
            Some("Bearer good") => served.answer(seen),
            _ => challenge("/token"),
        }
    })
    .await;
    (server, image)
}

#[tokio::test]
async fn one_anonymous_token_serves_a_whole_pull() {
    let (server, image) = token_registry(|seen| {
        assert_eq!(seen.header("authorization"), None);
        assert_eq!(seen.query, "service=registry.test&scope=repository%3Aapp%3Apull");
        Some("good".to_owned())
    })
    .await;
    let (client, source) = (client(), server.source("app:1"));
    let anonymous = Credentials::anonymous();
    client.resolve(&source, &Platform::host(), &anonymous).await.unwrap();
    let layer = image.layer_descriptor();
    let open = || client.open_blob(&source, &layer, &anonymous);
    let (mut one, mut two) = tokio::try_join!(open(), open()).unwrap();
    assert_eq!(read_all(&mut one).await.unwrap(), image.layer);
    assert_eq!(read_all(&mut two).await.unwrap(), image.layer);
    assert_eq!(server.count("/token"), 1);
}

#[tokio::test]
async fn passwords_go_to_the_token_service_alone() {
    let (server, _image) = token_registry(|seen| {
        let right =
            seen.header("authorization") == Some("Basic dXNlcjpzZWNyZXQ=") && seen.query.ends_with("&account=user");
        right.then(|| "good".to_owned())
    })
    .await;
    let pull = async |password: &str| {
        let login = Login::Password { username: "user".into(), password: password.into() };
        client().resolve(&server.source("app:1"), &Platform::host(), &Credentials::login(login)).await
    };
    pull("secret").await.unwrap();
    let error = pull("wrong").await.unwrap_err();
    expect![[r#"cannot fetch HOST/app:1: HOST rejects the credentials given for it ("incorrect username or password"); log in again (docker login HOST)"#]]
        .assert_eq(&line(&error, &server));
    let error =
        client().resolve(&server.source("app:1"), &Platform::host(), &Credentials::anonymous()).await.unwrap_err();
    assert!(matches!(error, FetchError::LoginNeeded { .. }), "{error}");
    let outside = |seen: &Seen| {
        seen.path != "/token" && seen.header("authorization").is_some_and(|value| value.starts_with("Basic"))
    };
    assert!(!server.seen().iter().any(outside));
}

#[tokio::test]
async fn identity_tokens_are_exchanged_by_post() {
    let (server, _image) = token_registry(|seen| {
        let expected = "grant_type=refresh_token&client_id=sampan&refresh_token=refresh%26me&service=registry.test&scope=repository%3Aapp%3Apull";
        (seen.method == Method::POST && seen.body == expected).then(|| "good".to_owned())
    })
    .await;
    let login = Login::IdentityToken("refresh&me".into());
    client().resolve(&server.source("app:1"), &Platform::host(), &Credentials::login(login)).await.unwrap();
}

#[tokio::test]
async fn a_token_that_is_no_longer_taken_is_renewed_half_way() {
    let image = Arc::new(TestImage::new(500_000));
    let (served, given, used) = (Arc::clone(&image), AtomicUsize::new(0), AtomicUsize::new(0));
    let server = Server::start(move |seen| match seen.path.as_str() {
        "/token" => Reply::ok(format!(r#"{{"access_token":"t{}"}}"#, given.fetch_add(1, Ordering::SeqCst))),
        "/v2/" => Reply::status(200),
        // The first token is good for four requests.
        _ => match seen.header("authorization") {
            Some("Bearer t0") if used.fetch_add(1, Ordering::SeqCst) < 4 => served.answer(seen),
            Some("Bearer t1") => served.answer(seen),
            _ => challenge("/token"),
        },
    })
    .await;
    let opened =
        client().open_blob(&server.source("app:1"), &image.layer_descriptor(), &Credentials::anonymous()).await;
    assert_eq!(read_all(&mut opened.unwrap()).await.unwrap(), image.layer);
    assert_eq!(server.count("/token"), 2);
}

#[tokio::test]
async fn basic_logins_come_from_the_auth_file() {
    let image = TestImage::new(10);
    let server = Server::start(move |seen| match seen.header("authorization") {
        Some("Basic dXNlcjpzZWNyZXQ=") => image.answer(seen),
        _ => Reply::status(401).header("www-authenticate", "Basic realm=x"),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    std::fs::write(&path, format!(r#"{{"auths":{{"{}":{{"auth":"dXNlcjpzZWNyZXQ="}}}}}}"#, server.address)).unwrap();
    let client =
        sampan_registry::RegistryClient::new(sampan_registry::RegistryConfig { auth_files: vec![path], ..config() });
    let pull =
        async |credentials: Credentials| client.resolve(&server.source("app:1"), &Platform::host(), &credentials).await;
    pull(Credentials::host()).await.unwrap();
    assert!(matches!(pull(Credentials::anonymous()).await, Err(FetchError::LoginNeeded { .. })));
    let secret = AuthFile::parse(br#"{"auths":{"other.test":{"username":"x"}}}"#, "secret").unwrap();
    assert!(matches!(pull(Credentials::secrets(vec![Arc::new(secret)])).await, Err(FetchError::LoginNeeded { .. })));
}

#[tokio::test]
async fn no_authorization_follows_a_redirect_to_another_host() {
    let image = Arc::new(TestImage::new(300_000));
    let stored = Arc::clone(&image);
    let storage = Server::start(move |seen| match seen.query.as_str() {
        "signature=1" => crate::server::ranged(&stored.layer, seen),
        _ => Reply::status(403),
    })
    .await;
    let (served, location) =
        (Arc::clone(&image), format!("http://user:pw@{}/bucket/blob?signature=1", storage.address));
    let server = Server::start(move |seen| match seen.header("authorization") {
        Some(_) if seen.path.contains("/blobs/") => Reply::status(307).header("location", &location),
        Some(_) => served.answer(seen),
        None => Reply::status(401).header("www-authenticate", "Basic realm=x"),
    })
    .await;
    let login = Credentials::login(Login::Password { username: "user".into(), password: "secret".into() });
    let mut reader = client().open_blob(&server.source("app:1"), &image.layer_descriptor(), &login).await.unwrap();
    assert_eq!(read_all(&mut reader).await.unwrap(), image.layer);
    assert_eq!(storage.seen().iter().filter(|seen| seen.header("authorization").is_some()).count(), 0);
    // The signed address is kept for the other parts.
    assert_eq!((storage.seen().len(), server.count("/blobs/")), (5, 2));
}
