//! What kubectl does not show: who may ask, forms of answers, watches to the letter.

use crate::fixture::{Fixture, pod};

#[tokio::test(flavor = "multi_thread")]
async fn files_are_for_the_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let fixture = Fixture::start().await;
    for (name, mode) in [("sampan.sock", 0o600), ("kubeconfig", 0o600), ("pki", 0o700), ("pki/ca.key", 0o600), ("pki/token", 0o600)] {
        let found = std::fs::metadata(fixture.path().join(name)).expect(name).permissions().mode() & 0o777;
        assert_eq!(found, mode, "{name}");
    }
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_goes_the_same_way_as_http() {
    let fixture = Fixture::start().await;
    let api = fixture.api();
    let bad = api.create("pods", Some("default"), serde_json::json!({"metadata": {"name": "x"}, "spec": {"containers": []}})).await;
    assert_eq!(bad.expect_err("no containers").reason, "Invalid");
    let value = serde_saphyr::from_str(&pod("x", "")).expect("YAML");
    let made = api.create("pods", Some("default"), value).await.expect("a pod");
    assert_eq!(made.value["spec"]["nodeName"], "node-1");
    assert_eq!(made.value["spec"]["containers"][0]["imagePullPolicy"], "IfNotPresent");
    fixture.stop().await;
}
