//! kubectl's commands, one after the other.

use std::time::Duration;

use anyhow::{Result, ensure};
use sampan_e2e::harness::pod::text;
use sampan_e2e::service::Service;

const PATIENCE: Duration = Duration::from_secs(30);

fn sleeper(service: &Service, name: &str) -> Result<()> {
    let busybox = service.busybox()?;
    let image = format!("--image={busybox}");
    service.kubectl(["run", name, &image, "--restart=Never", "--command", "--", "sleep", "1000"]).ok()?;
    service.kubectl(["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=30s"]).ok().map(drop)
}

fn delete(service: &Service, name: &str) -> Result<()> {
    service.kubectl(["delete", "pod", name, "--grace-period=1"]).ok().map(drop)
}

pub(crate) fn pods_are_shown_in_every_form(service: &Service) -> Result<()> {
    sleeper(service, "shown")?;
    let get = |form: &[&str]| service.kubectl(["get", "pod", "shown"].into_iter().chain(form.iter().copied())).ok();
    let table = get(&[])?;
    ensure!(table.starts_with("NAME") && table.contains("1/1") && table.contains("Running"), "{table}");
    let wide = get(&["-o", "wide"])?;
    ensure!(wide.contains("NODE") && wide.contains(&service.prefix4), "{wide}");
    ensure!(get(&["-o", "yaml"])?.contains("kind: Pod"));
    ensure!(get(&["-o", "jsonpath={.status.phase}"])? == "Running");
    ensure!(get(&["-o", "name"])? == "pod/shown");
    let described = service.kubectl(["describe", "pod", "shown"]).ok()?;
    for part in ["Name:", "Status:", "Running", "Events:", "Started", "Image:", "sleep"] {
        ensure!(described.contains(part), "no {part}: {described}");
    }
    let events = service.kubectl(["get", "events", "--field-selector", "involvedObject.name=shown"]).ok()?;
    ensure!(events.contains("Started") && events.contains("pod/shown"), "{events}");
    ensure!(service.kubectl(["explain", "pod.spec.containers"]).ok()?.contains("image"));
    delete(service, "shown")?;
    let gone = service.kubectl(["get", "pod", "shown"]).finish()?.expect(1)?;
    ensure!(gone.complaint().contains("not found"), "{}", gone.complaint());
    Ok(())
}

pub(crate) fn a_watch_sees_a_pod_come_and_go(service: &Service) -> Result<()> {
    let watcher = service.kubectl(["get", "pods", "-w", "--field-selector", "metadata.name=watched"]).start()?;
    let events = service.kubectl(["get", "pods", "-w", "--output-watch-events", "--field-selector"]);
    let events = events.args(["metadata.name=watched"]).start()?;
    sleeper(service, "watched")?;
    watcher.output.wait_for("Running")?;
    delete(service, "watched")?;
    events.output.wait_for("DELETED")?;
    let seen = String::from_utf8_lossy(&events.output.so_far()).into_owned();
    ensure!(seen.contains("ADDED") && seen.contains("MODIFIED"), "{seen}");
    Ok(())
}

pub(crate) fn logs_and_exec_work(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let image = format!("--image={busybox}");
    let script = "echo before; until test -e /go; do sleep 0.05; done; echo after";
    service.kubectl(["run", "talker", &image, "--restart=Never", "--command", "--", "sh", "-c", script]).ok()?;
    service.kubectl(["wait", "--for=condition=Ready", "pod/talker", "--timeout=30s"]).ok()?;
    let follower = service.kubectl(["logs", "-f", "talker"]).start()?;
    follower.output.wait_for("before\n")?;
    let input = vec![7_u8; 3 << 20];
    let sum = service.kubectl(["exec", "-i", "talker", "--", "sha256sum"]).input(input.clone()).ok()?;
    ensure!(format!("sha256:{sum}").starts_with(&sampan_e2e::fixtures::image::digest(&input)), "{sum}");
    let failed = service.kubectl(["exec", "talker", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]).finish()?;
    let failed = failed.expect(7)?;
    assert_eq!(failed.text(), "out");
    ensure!(failed.complaint().starts_with("err"), "{}", failed.complaint());
    service.kubectl(["exec", "talker", "--", "touch", "/go"]).ok()?;
    assert_eq!(follower.finish(PATIENCE)?.expect(0)?.text(), "before\nafter");
    assert_eq!(service.kubectl(["logs", "talker", "--tail=1"]).ok()?, "after");
    ensure!(service.kubectl(["logs", "talker", "--timestamps", "--tail=1"]).ok()?.starts_with("20"));
    delete(service, "talker")
}

pub(crate) fn exec_gives_a_terminal(service: &Service) -> Result<()> {
    sleeper(service, "terminal")?;
    let mut terminal = service.kubectl(["exec", "-it", "terminal", "--", "sh"]).on_terminal((88, 22))?;
    terminal.screen.wait_for("# ")?;
    terminal.keys(b"until stty size | grep -q '22 88'; do sleep 0.05; done; echo mark-$((1 + 1))\n")?;
    terminal.screen.wait_for("mark-2")?;
    terminal.resize((99, 33))?;
    terminal.keys(b"until stty size | grep -q '33 99'; do sleep 0.05; done; exit 3\n")?;
    assert_eq!(terminal.finish()?, 3);
    delete(service, "terminal")
}

pub(crate) fn run_wait_and_delete_work(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let image = format!("--image={busybox}");
    let run = ["run", "once", &image, "--restart=Never", "--rm", "-i", "--quiet", "--", "sh", "-c", "cat; exit 0"];
    let printed = service.kubectl(run).input("given\n").ok()?;
    ensure!(printed.contains("given"), "{printed}");
    service.wait_until_gone("once")?;
    service.kubectl(["run", "ends", &image, "--restart=Never", "--", "sh", "-c", "exit 0"]).ok()?;
    service.kubectl(["wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/ends", "--timeout=30s"]).ok()?;
    ensure!(service.kubectl(["get", "pod", "ends"]).ok()?.contains("Completed"));
    delete(service, "ends")?;
    // Without waiting, and waiting for it afterwards.
    sleeper(service, "going")?;
    service.kubectl(["delete", "pod", "going", "--grace-period=1", "--wait=false"]).ok()?;
    service.kubectl(["wait", "--for=delete", "pod/going", "--timeout=30s"]).ok().map(drop)
}

pub(crate) fn apply_changes_what_may_change(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let manifest = |labels: &str, extra: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: applied\n  labels: {labels}\nspec:\n  containers:\n  - name: \
             main\n    image: \"{busybox}\"\n    command: [sleep, \"1000\"]\n{extra}"
        )
    };
    ensure!(service.apply(&manifest("{a: one, b: two}", ""))?.contains("created"));
    ensure!(service.apply(&manifest("{a: one, b: two}", ""))?.contains("unchanged"));
    ensure!(service.apply(&manifest("{a: three}", ""))?.contains("configured"));
    let labels = service.pod("applied")?["metadata"]["labels"].clone();
    assert_eq!((text(&labels, "/a"), labels.get("b")), ("three", None));
    let patch = r#"{"metadata":{"labels":{"c":"four"}},"spec":{"containers":[{"name":"main","image":"IMAGE"}]}}"#;
    let patch = patch.replace("IMAGE", &busybox);
    service.kubectl(["patch", "pod", "applied", "--type=strategic", "-p", &patch]).ok()?;
    let pod = service.pod("applied")?;
    assert_eq!(text(&pod, "/metadata/labels/c"), "four");
    assert_eq!(pod["spec"]["containers"].as_array().map(Vec::len), Some(1), "a strategic merge replaced the list");
    service.kubectl(["label", "pod", "applied", "d=five"]).ok()?;
    service.kubectl(["annotate", "pod", "applied", "note=words"]).ok()?;
    assert_eq!(text(&service.pod("applied")?, "/metadata/labels/d"), "five");
    let refused =
        service.kubectl(["apply", "-f", "-"]).input(manifest("{a: three}", "    workingDir: /tmp\n")).finish()?;
    ensure!(refused.code != 0, "a running pod's working directory can be changed");
    ensure!(service.apply(&manifest("{a: three}", "")).is_ok(), "a refused change spoils the next");
    delete(service, "applied")
}

pub(crate) fn selectors_choose(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    for (name, tier) in [("chosen-1", "front"), ("chosen-2", "back")] {
        let labels = format!("--labels=set=chosen,tier={tier}");
        let image = format!("--image={busybox}");
        service.kubectl(["run", name, &image, &labels, "--restart=Never", "--", "sleep", "1000"]).ok()?;
    }
    let names = |options: &[&str]| {
        service.kubectl(["get", "pods", "-o", "name"].into_iter().chain(options.iter().copied())).ok()
    };
    assert_eq!(names(&["-l", "set=chosen,tier=front"])?, "pod/chosen-1");
    assert_eq!(names(&["-l", "set=chosen,tier!=front"])?, "pod/chosen-2");
    assert_eq!(names(&["-l", "tier in (front, back),set"])?, "pod/chosen-1\npod/chosen-2");
    assert_eq!(names(&["-l", "set=chosen", "--field-selector", "metadata.name=chosen-2"])?, "pod/chosen-2");
    service.kubectl(["wait", "--for=condition=Ready", "pod", "-l", "set=chosen", "--timeout=30s"]).ok()?;
    assert_eq!(names(&["-l", "set=chosen", "--field-selector", "status.phase=Running"])?, "pod/chosen-1\npod/chosen-2");
    service.kubectl(["delete", "pods", "-l", "set=chosen", "--grace-period=1"]).ok()?;
    assert_eq!(names(&["-l", "set=chosen"])?, "");
    Ok(())
}

pub(crate) fn namespaces_keep_pods_apart(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let image = format!("--image={busybox}");
    service.kubectl(["create", "namespace", "apart"]).ok()?;
    ensure!(service.kubectl(["get", "namespaces"]).ok()?.contains("apart"));
    for namespace in ["default", "apart"] {
        service.kubectl(["-n", namespace, "run", "twin", &image, "--restart=Never", "--", "sleep", "1000"]).ok()?;
    }
    let all = service.kubectl(["get", "pods", "-A", "-o", "name", "--field-selector", "metadata.name=twin"]).ok()?;
    assert_eq!(all, "pod/twin\npod/twin");
    ensure!(service.sampan(["-n", "apart", "ps", "-q"]).ok()? == "twin");
    service.kubectl(["delete", "namespace", "apart", "--timeout=40s"]).ok()?;
    let gone = service.kubectl(["-n", "apart", "get", "pod", "twin"]).finish()?;
    ensure!(gone.code != 0, "a pod outlives its namespace");
    delete(service, "twin")
}

pub(crate) fn the_node_is_described(service: &Service) -> Result<()> {
    let nodes = service.kubectl(["get", "nodes"]).ok()?;
    ensure!(nodes.contains("Ready"), "{nodes}");
    let described = service.kubectl(["describe", "node"]).ok()?;
    for part in ["Capacity:", "Allocatable:", "cpu:", "memory:", "Container Runtime Version:", "sampan"] {
        ensure!(described.contains(part), "no {part}: {described}");
    }
    service.kubectl(["api-resources"]).ok()?;
    service.kubectl(["version"]).ok().map(drop)
}

pub(crate) fn bad_manifests_are_refused_with_a_reason(service: &Service) -> Result<()> {
    let pod = |spec: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: refused}}\nspec: {spec}\n");
    for (manifest, words) in [
        (pod("{containers: []}"), ["containers", "equired"]),
        (pod("{containers: [{name: Main, image: x}]}"), ["name", "Main"]),
        (pod("{containers: [{name: a, image: x}, {name: a, image: z}]}"), ["name", "uplicate"]),
        (pod("{containers: [{name: a, image: x, resources: {limits: {memory: lots}}}]}"), ["memory", "lots"]),
        (pod("{containers: [{name: a, image: x, volumeMounts: [{name: v, mountPath: /v}]}]}"), ["volumeMounts", "v"]),
        (pod("{containers: [{name: a, image: x, colour: red}]}"), ["colour", "unknown"]),
        (pod("{restartPolicy: Sometimes, containers: [{name: a, image: x}]}"), ["restartPolicy", "Sometimes"]),
    ] {
        let refused = service.kubectl(["apply", "-f", "-"]).input(manifest.clone()).finish()?;
        ensure!(refused.code != 0, "this is accepted: {manifest}");
        let complaint = refused.complaint();
        ensure!(words.iter().all(|word| complaint.contains(word)), "{words:?} are not in {complaint:?}");
    }
    ensure!(service.kubectl(["get", "pod", "refused"]).finish()?.code != 0);
    Ok(())
}
