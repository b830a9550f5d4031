//! What people type.

use crate::fixture::{Fixture, pod};

async fn with_kubectl() -> Option<Fixture> {
    let fixture = Fixture::start().await;
    if fixture.has_kubectl() {
        return Some(fixture);
    }
    fixture.stop().await;
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn get_describe_and_delete() {
    let Some(fixture) = with_kubectl().await else { return };
    fixture.kubectl_with("create -f -", &pod("web", "")).await.ok();
    fixture.kubectl("wait --for=condition=Ready pod/web --timeout=10s").await.ok();
    let table = fixture.kubectl("get pods").await.ok();
    assert!(table.starts_with("NAME   READY   STATUS    RESTARTS   AGE\nweb    1/1     Running   0"), "{table}");
    let wide = fixture.kubectl("get po -o wide -A").await.ok();
    assert!(wide.contains("NAMESPACE") && wide.contains("10.88.0.2") && wide.contains("node-1"), "{wide}");
    let yaml = fixture.kubectl("get pod web -o yaml").await.ok();
    assert!(yaml.contains("restartPolicy: Always") && yaml.contains("terminationGracePeriodSeconds: 30"), "{yaml}");
    let path = fixture.run(&["get", "pods", "-o", "jsonpath={.items[*].metadata.name}"], "").await.ok();
    assert_eq!(path, "web");
    let described = fixture.kubectl("describe pod web").await.ok();
    assert!(described.contains("Started container") && described.contains("node-1"), "{described}");
    let events = fixture.kubectl("events").await.ok();
    assert!(events.contains("Started") && events.contains("Pod/web"), "{events}");
    assert!(fixture.kubectl("get events --field-selector involvedObject.name=web").await.ok().contains("pod/web"));
    assert!(fixture.kubectl("get nodes").await.ok().contains("Ready"));
    assert!(fixture.kubectl("describe node node-1").await.ok().contains("Ready"));
    assert!(fixture.kubectl("get ns").await.ok().contains("kube-system   Active"));
    assert!(fixture.kubectl("get all").await.ok().contains("web"));
    assert!(fixture.kubectl("api-resources").await.ok().contains("configmaps"));
    assert!(fixture.kubectl("explain pod.spec.containers").await.ok().contains("image"));
    assert!(fixture.kubectl("delete pod web").await.ok().contains("deleted"));
    let missing = fixture.kubectl("get pod web").await.refused();
    assert_eq!(missing.trim(), r#"Error from server (NotFound): pods "web" not found"#);
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_label_annotate_and_select() {
    let Some(fixture) = with_kubectl().await else { return };
    assert_eq!(fixture.kubectl_with("apply -f -", &pod("a", "")).await.ok().trim(), "pod/a created");
    assert_eq!(fixture.kubectl_with("apply -f -", &pod("a", "")).await.ok().trim(), "pod/a unchanged");
    let changed = pod("a", "").replace("image:1", "image:2").replace("{app: a}", "{app: a, tier: front}");
    assert_eq!(fixture.kubectl_with("apply -f -", &changed).await.ok().trim(), "pod/a configured");
    let shown = fixture
        .run(&["get", "pod", "a", "-o", "jsonpath={.spec.containers[0].image} {.metadata.labels.tier}"], "")
        .await
        .ok();
    assert_eq!(shown, "registry.local/image:2 front");
    // Applying without the label takes it away: a three-way merge.
    assert_eq!(fixture.kubectl_with("apply -f -", &pod("a", "")).await.ok().trim(), "pod/a configured");
    let shown = fixture
        .run(&["get", "pod", "a", "-o", "jsonpath={.spec.containers[0].image}{.metadata.labels.tier}"], "")
        .await
        .ok();
    assert_eq!(shown, "registry.local/image:1");
    let refused = fixture.kubectl_with("apply -f -", &pod("a", "    command: [sh]\n")).await.refused();
    assert!(refused.contains("pod updates may not change fields other than"), "{refused}");

    fixture.kubectl_with("apply -f -", &pod("b", "")).await.ok();
    fixture.kubectl("label pod b tier=back").await.ok();
    fixture.kubectl("annotate pod b note=yes").await.ok();
    assert_eq!(fixture.kubectl("get pods -l tier=back -o name").await.ok(), "pod/b\n");
    assert_eq!(fixture.run(&["get", "pods", "-l", "app in (a,c),!tier", "-o", "name"], "").await.ok(), "pod/a\n");
    assert_eq!(fixture.kubectl("get pods --field-selector metadata.name!=a -o name").await.ok(), "pod/b\n");
    fixture.kubectl("label pod b tier-").await.ok();
    assert_eq!(fixture.kubectl("get pods -l tier -o name").await.ok(), "");
    let patched = fixture
        .run(
            &["patch", "pod", "b", "--type=json", "-p", r#"[{"op":"add","path":"/metadata/labels/x","value":"y"}]"#],
            "",
        )
        .await;
    assert!(patched.ok().contains("patched"));
    assert_eq!(fixture.kubectl("delete pods -l app --wait=true").await.ok().lines().count(), 2);
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn run_logs_exec_and_attach() {
    let Some(fixture) = with_kubectl().await else { return };
    fixture.kubectl("run web --image=registry.local/image:1").await.ok();
    fixture.kubectl("wait --for=condition=Ready pod/web --timeout=10s").await.ok();
    assert_eq!(fixture.kubectl("logs web --tail=3").await.ok(), "hello from web/web tail Some(3)\n");
    assert_eq!(fixture.kubectl("exec web -- echo some output").await.ok(), "some output\n");
    assert_eq!(fixture.kubectl_with("exec -i web -- cat", "some input").await.ok(), "some input");
    let big = "0123456789abcdef".repeat(40_000);
    assert_eq!(fixture.kubectl_with("exec -i web -- cat", &big).await.ok(), big);
    let failed = fixture.run(&["exec", "web", "--", "sh", "-c", "echo to stderr >&2; exit 7"], "").await;
    assert_eq!(failed.code, 7);
    assert!(failed.err.contains("to stderr"), "{}", failed.err);
    let refused = fixture.kubectl("exec web -- /no/such/program").await.refused();
    assert!(refused.contains("command not found: /no/such/program"), "{refused}");
    let spdy = fixture.run_over_spdy(&["exec", "-i", "web", "--", "cat"], &big).await.ok();
    assert_eq!(spdy, big);
    let failed =
        fixture.run_over_spdy(&["exec", "web", "--", "sh", "-c", "echo out; echo to stderr >&2; exit 9"], "").await;
    assert_eq!((failed.code, failed.out.as_str()), (9, "out\n"));
    assert!(failed.err.contains("to stderr"), "{}", failed.err);
    let attached = fixture.kubectl_with("attach -i web", "hello").await.ok();
    assert!(attached.contains("attached\nhello"), "{attached}");
    let unknown = fixture.kubectl("logs web -c other").await.refused();
    assert!(unknown.contains("container other is not valid for pod web"), "{unknown}");
    let once = fixture.kubectl("run once --image=registry.local/image:1 --restart=Never --command -- true").await.ok();
    assert!(once.contains("pod/once created"));
    fixture.run(&["wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/once", "--timeout=10s"], "").await.ok();
    assert!(fixture.kubectl("get pods").await.ok().contains("Completed"));
    assert!(fixture.kubectl("get --raw /api/v1/nodes/node-1/proxy/images?x=1").await.ok().contains("GET /images?x=1"));
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_config_and_secrets() {
    let Some(fixture) = with_kubectl().await else { return };
    let missing = fixture.kubectl_with("create -n team -f -", &pod("a", "")).await.refused();
    assert!(missing.contains(r#"namespaces "team" not found"#), "{missing}");
    fixture.kubectl("create namespace team").await.ok();
    fixture.kubectl_with("create -n team -f -", &pod("a", "")).await.ok();
    fixture.kubectl("create -n team configmap settings --from-literal=a=1 --from-literal=b=2").await.ok();
    assert!(fixture.kubectl("get -n team cm").await.ok().contains("settings   2"));
    fixture.kubectl("create -n team secret generic key --from-literal=password=x").await.ok();
    assert!(fixture.kubectl("get -n team secrets").await.ok().contains("key    Opaque   1"));
    let edited =
        fixture.run(&["patch", "-n", "team", "cm", "settings", "-p", r#"{"data":{"a":null,"c":"3"}}"#], "").await;
    edited.ok();
    assert_eq!(
        fixture.run(&["get", "-n", "team", "cm", "settings", "-o", "jsonpath={.data}"], "").await.ok(),
        r#"{"b":"2","c":"3"}"#
    );
    fixture.kubectl("delete namespace team --timeout=10s").await.ok();
    assert!(fixture.kubectl("get pods -A").await.err.contains("No resources found"));
    let kept = fixture.kubectl("delete namespace default").await.refused();
    assert!(kept.contains("this namespace may not be deleted"), "{kept}");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_named() {
    let Some(fixture) = with_kubectl().await else { return };
    let check = async |text: String, expected: &str| {
        let refused = fixture.kubectl_with("create -f -", &text).await.refused();
        assert!(refused.contains(expected), "{refused}");
    };
    check(pod("Upper", ""), "metadata.name: Invalid value: \"Upper\": a lowercase RFC 1123 subdomain").await;
    check(pod("a", "    imagePulPolicy: Always\n"), "unknown field \"spec.containers[0].imagePulPolicy\"").await;
    check(
        pod("a", "    resources: {limits: {memory: lots}}\n"),
        "spec.containers[0].resources.limits[memory]: Invalid value: \"lots\"",
    )
    .await;
    check(
        pod("a", "    imagePullPolicy: Sometimes\n"),
        "Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
    )
    .await;
    check(
        pod("a", "    ports: [{containerPort: 99999}]\n"),
        "spec.containers[0].ports[0].containerPort: Invalid value: 99999",
    )
    .await;
    check(
        pod("a", "    ports: [{containerPort: web}]\n"),
        "spec.containers[0].ports[0].containerPort: expected a whole number, found \"web\"",
    )
    .await;
    check(
        pod("a", "    volumeMounts: [{name: v, mountPath: /v}]\n"),
        "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
    )
    .await;
    check(pod("a", "  - name: main\n    image: x\n"), "spec.containers[1].name: Duplicate value: \"main\"").await;
    check(pod("a", "  - name: other\n"), "spec.containers[1].image: Required value").await;
    check("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {}\n".to_owned(), "spec.containers: Required value")
        .await;
    assert_eq!(fixture.kubectl("get pods -o name").await.ok(), "", "a refused object leaves nothing behind");
    let dry = fixture.kubectl_with("create --dry-run=server -o name -f -", &pod("a", "")).await.ok();
    assert_eq!(dry, "pod/a\n");
    assert_eq!(fixture.kubectl("get pods -o name").await.ok(), "");
    let selector = fixture.kubectl("get pods --field-selector spec.color=red").await.refused();
    assert!(selector.contains("field label not supported: spec.color"), "{selector}");
    let applied = fixture.kubectl_with("apply --server-side -f -", &pod("a", "")).await.refused();
    assert!(applied.contains("server-side apply is not served"), "{applied}");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_shows_changes_as_they_happen() {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let Some(fixture) = with_kubectl().await else { return };
    fixture.kubectl_with("create -f -", &pod("a", "")).await.ok();
    fixture.kubectl("wait --for=condition=Ready pod/a --timeout=10s").await.ok();
    let mut watching = fixture.command(&["get", "pods", "-w"]).spawn().expect("kubectl");
    let mut lines = BufReader::new(watching.stdout.take().expect("stdout")).lines();
    let mut seen = async |wanted: &str| {
        let found = tokio::time::timeout(std::time::Duration::from_secs(10), async {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.contains(wanted) {
                    return true;
                }
            }
            false
        });
        assert!(found.await.unwrap_or(false), "{wanted} was not shown");
    };
    seen("Running").await;
    fixture.kubectl("delete pod a").await.ok();
    seen("Terminating").await;
    watching.start_kill().expect("kill");
    fixture.stop().await;
}
