//! Which login fits which image, in docker's, the containers tools' and Kubernetes' spellings.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;

fn file(json: &str) -> AuthFile {
    AuthFile::parse(json.as_bytes(), "test.json").unwrap()
}

fn user(file: &AuthFile, registry: &str, repository: &str) -> Option<String> {
    match file.login(registry, repository).unwrap() {
        Some(Login::Password { username, password }) => Some(format!("{username}/{password}")),
        Some(other) => Some(format!("{other:?}")),
        None => None,
    }
}

#[test]
fn dockers_urls_mean_hosts() {
    let file = file(
        r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnNlY3JldA=="},
            "http://plain.example:5000": {"username": "plain", "password": "p:w"},
            "quay.io": {},
            "ghcr.io": {"identitytoken": "refresh"}}}"#,
    );
    assert_eq!(user(&file, "docker.io", "library/nginx").as_deref(), Some("hub/secret"));
    assert_eq!(user(&file, "plain.example:5000", "a").as_deref(), Some("plain/p:w"));
    assert_eq!(user(&file, "plain.example", "a"), None);
    assert_eq!(user(&file, "quay.io", "a"), None);
    assert_eq!(user(&file, "ghcr.io", "a").as_deref(), Some("IdentityToken(…)"));
}

#[test]
fn the_longest_path_prefix_wins() {
    let file = file(
        r#"{"auths": {
            "r.io": {"username": "host"}, "r.io/team": {"username": "team"}, "r.io/team/app": {"username": "app"},
            "r.io/old/v1": {"username": "old"}, "*.r.io": {"username": "glob"}}}"#,
    );
    let who = |registry, repository| user(&file, registry, repository);
    assert_eq!(who("r.io", "other/x").as_deref(), Some("host/"));
    assert_eq!(who("r.io", "team/x").as_deref(), Some("team/"));
    assert_eq!(who("r.io", "teamwork/x").as_deref(), Some("host/"));
    assert_eq!(who("r.io", "team/app").as_deref(), Some("app/"));
    assert_eq!(who("r.io", "old/v1/x").as_deref(), Some("old/"));
    assert_eq!(who("r.io", "old/x").as_deref(), Some("host/"));
    assert_eq!(who("eu.r.io", "x").as_deref(), Some("glob/"));
    assert_eq!(who("a.eu.r.io", "x"), None);
}

#[test]
fn bad_files_are_errors_and_passwords_stay_hidden() {
    let error = AuthFile::parse(b"{", "/root/.docker/config.json").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the credentials in /root/.docker/config.json are not valid; log in again or remove them"
    );
    let error = file(r#"{"auths": {"r.io": {"auth": "%%"}}}"#).login("r.io", "x").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the credentials for r.io in test.json are not base64 of user:password; log in again"
    );
    let login = Login::Password { username: "u".into(), password: "hidden".into() };
    assert!(!format!("{:?} {login:?}", Credentials::login(login.clone())).contains("hidden"));
}

#[tokio::test]
async fn sources_are_searched_in_order_and_missing_files_skipped() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("auth.json");
    fs::write(&path, r#"{"auths": {"r.io": {"username": "host-file"}}}"#).unwrap();
    let files = [directory.path().join("missing.json"), path];
    let secret = AuthFile::parse_dockercfg(br#"{"r.io": {"username": "secret"}}"#, "secret").unwrap();
    assert_eq!(format!("{:?}", find_in_files(&files, "r.io", "x").await.unwrap()), r#"Some(Password("host-file", …))"#);
    let given = |credentials: Credentials, own| format!("{:?}", credentials.find_given("r.io", "x", own).unwrap());
    let secrets = Credentials::secrets(vec![Arc::new(secret)]);
    assert_eq!(given(Credentials::anonymous(), true), "None");
    assert_eq!(given(secrets, false), r#"Some(Password("secret", …))"#);
    // An explicit login is for the registry that was named, not for whoever mirrors it.
    let explicit = || Credentials::login(Login::RegistryToken("t".into())).or_host();
    assert_eq!(given(explicit(), true), "Some(RegistryToken(…))");
    assert_eq!(given(explicit(), false), "None");
}

#[tokio::test]
async fn programs_are_asked_and_their_failures_told() {
    let error = program::get("sampan-test-missing", "r.io").await.unwrap_err();
    assert!(matches!(error, CredentialsError::Spawn { .. }), "{error}");
    assert!(program::get("../x", "r.io").await.unwrap_err().to_string().contains("has a path in its name"));

    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("docker-credential-test");
    fs::write(
        &script,
        "#!/bin/sh\nread server\ncase $server in\n\
         known) echo '{\"Username\":\"u\",\"Secret\":\"s\"}';;\n\
         token) echo '{\"Username\":\"<token>\",\"Secret\":\"s\"}';;\n\
         none) echo credentials not found in native keychain; exit 1;;\n\
         *) echo keyring is locked; exit 1;;\nesac\n",
    )
    .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let ask = async |server| program::ask(script.to_str().unwrap(), server).await;
    let known = Login::Password { username: "u".into(), password: "s".into() };
    assert_eq!(ask("known").await.unwrap(), Some(known));
    assert_eq!(ask("token").await.unwrap(), Some(Login::IdentityToken("s".into())));
    assert_eq!(ask("none").await.unwrap(), None);
    assert!(ask("other").await.unwrap_err().to_string().contains("keyring is locked"));
}

proptest! {
    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), key in "\\PC{0,20}") {
        AuthFile::parse(&bytes, "x").ok();
        key_fits(&key, "r.io", "a/b");
    }

    #[test]
    fn an_image_never_gets_another_registrys_login(key in "[a-z.*/:]{1,20}") {
        if key_fits(&key, "r.io", "a/b").is_some() && !key.contains('*') {
            prop_assert!(key.contains("r.io"));
        }
    }
}
