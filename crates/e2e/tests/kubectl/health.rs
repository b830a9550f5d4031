//! Probes, hooks, last words and the events about them, as the kubelet has them.

use std::fs;

use anyhow::{Result, ensure};
use sampan_e2e::harness::pod::{first_status, text};
use sampan_e2e::harness::wait::until;
use sampan_e2e::service::Service;
use serde_json::Value;

fn restarts(pod: &Value) -> u64 {
    first_status(pod)["restartCount"].as_u64().unwrap_or(0)
}

pub(crate) fn who_is_not_well_is_killed_and_started_again(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    service.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: unwell}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: "{busybox}"
    command: [sh, -c, "touch /tmp/fine; exec sleep 1000"]
    livenessProbe: {{exec: {{command: [sh, -c, "test -e /tmp/fine || {{ echo not fine; exit 1; }}"]}}, periodSeconds: 1, failureThreshold: 1}}
"#
    ))?;
    service.kubectl(["wait", "--for=condition=Ready", "pod/unwell", "--timeout=30s"]).ok()?;
    assert_eq!(restarts(&service.pod("unwell")?), 0);
    service.inside("unwell", "rm /tmp/fine")?;
    service.wait_for_pod("unwell", "started again", |pod| {
        restarts(pod) == 1 && !first_status(pod)["state"]["running"].is_null()
    })?;
    let unhealthy = service.wait_for_event("unwell", "Unhealthy")?;
    assert_eq!(text(&unhealthy, "/message"), "Liveness probe failed: not fine");
    assert_eq!(text(&unhealthy, "/involvedObject/fieldPath"), "spec.containers{main}");
    let killing = service.wait_for_event("unwell", "Killing")?;
    assert_eq!(text(&killing, "/message"), "Container main failed liveness probe, will be restarted");
    service.remove(["unwell"])
}

pub(crate) fn readiness_follows_an_http_probe(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    service.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: serving}}
spec:
  containers:
  - name: main
    image: "{busybox}"
    command: [sh, -c, "mkdir /www; cd /www; exec httpd -f -p 8080"]
    ports: [{{name: web, containerPort: 8080}}]
    readinessProbe: {{httpGet: {{path: /ready, port: web}}, periodSeconds: 1, failureThreshold: 1}}
"#
    ))?;
    let unhealthy = service.wait_for_event("serving", "Unhealthy")?;
    ensure!(text(&unhealthy, "/message").starts_with("Readiness probe failed: "), "{unhealthy}");
    let pod = service.wait_for_phase("serving", "Running")?;
    ensure!(first_status(&pod)["ready"] == false && first_status(&pod)["started"] == true, "{}", pod["status"]);
    ensure!(service.kubectl(["get", "pod", "serving"]).ok()?.contains("0/1"));
    service.inside("serving", "touch /www/ready")?;
    service.kubectl(["wait", "--for=condition=Ready", "pod/serving", "--timeout=30s"]).ok()?;
    service.inside("serving", "rm /www/ready")?;
    service.kubectl(["wait", "--for=condition=Ready=False", "pod/serving", "--timeout=30s"]).ok()?;
    assert_eq!(restarts(&service.pod("serving")?), 0);
    service.remove(["serving"])
}

pub(crate) fn a_startup_probe_holds_the_others_back(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    service.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: slow}}
spec:
  containers:
  - name: main
    image: "{busybox}"
    command: [sh, -c, "until test -e /tmp/go; do sleep 0.1; done; exec nc -lk -p 9000 -e true"]
    startupProbe: {{tcpSocket: {{port: 9000}}, periodSeconds: 1, failureThreshold: 60}}
    livenessProbe: {{exec: {{command: ["false"]}}, periodSeconds: 1, failureThreshold: 1}}
"#
    ))?;
    let unhealthy = service.wait_for_event("slow", "Unhealthy")?;
    ensure!(text(&unhealthy, "/message").starts_with("Startup probe failed: dial tcp "), "{unhealthy}");
    let pod = service.pod("slow")?;
    ensure!(first_status(&pod)["started"] == false && restarts(&pod) == 0, "{}", pod["status"]);
    service.inside("slow", "touch /tmp/go")?;
    // From now on its liveness counts, and that is bad.
    service.wait_for_pod("slow", "killed for its liveness", |pod| restarts(pod) >= 1)?;
    service.remove(["slow"])
}

pub(crate) fn hooks_run_after_the_start_and_before_the_end(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let folder = service.work().join("hooks");
    fs::create_dir(&folder)?;
    let path = folder.display();
    service.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: hooked}}
spec:
  terminationGracePeriodSeconds: 20
  volumes: [{{name: notes, hostPath: {{path: "{path}"}}}}]
  containers:
  - name: main
    image: "{busybox}"
    command: [sh, -c, "trap 'echo term >> /notes/list; exit 0' TERM; echo main >> /notes/main; while true; do sleep 0.1; done"]
    volumeMounts: [{{name: notes, mountPath: /notes}}]
    lifecycle:
      postStart: {{exec: {{command: [sh, -c, "until test -e /notes/go; do sleep 0.1; done; echo post >> /notes/list"]}}}}
      preStop: {{exec: {{command: [sh, -c, "sleep 1; echo pre >> /notes/list"]}}}}
  - name: next
    image: "{busybox}"
    command: [sh, -c, "echo next >> /notes/list; exec sleep 1000"]
    volumeMounts: [{{name: notes, mountPath: /notes}}]
"#
    ))?;
    until("the first container runs", || Ok(folder.join("main").exists()))?;
    let pod = service.pod("hooked")?;
    ensure!(pod["status"]["phase"] == "Pending" && !folder.join("list").exists(), "{}", pod["status"]);
    fs::write(folder.join("go"), "")?;
    service.kubectl(["wait", "--for=condition=Ready", "pod/hooked", "--timeout=30s"]).ok()?;
    service.kubectl(["delete", "pod", "hooked"]).ok()?;
    assert_eq!(fs::read_to_string(folder.join("list"))?, "post\nnext\npre\nterm\n");
    Ok(())
}

pub(crate) fn a_post_start_hook_that_fails_ends_its_container(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    service.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: unhooked}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: "{busybox}"
    command: [sleep, "1000"]
    lifecycle: {{postStart: {{exec: {{command: [sh, -c, "echo broken hook; exit 3"]}}}}}}
"#
    ))?;
    service.wait_for_phase("unhooked", "Failed")?;
    let event = service.wait_for_event("unhooked", "FailedPostStartHook")?;
    assert_eq!(text(&event, "/message"), "PostStartHook failed: broken hook");
    service.remove(["unhooked"])
}

pub(crate) fn last_words_come_from_a_file_or_from_the_log(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    service.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: last-words}}
spec:
  restartPolicy: Never
  containers:
  - {{name: written, image: "{busybox}", command: [sh, -c, "printf bye > /dev/termination-log; exit 3"]}}
  - {{name: elsewhere, image: "{busybox}", terminationMessagePath: /tmp/words, command: [sh, -c, "printf ciao > /tmp/words"]}}
  - {{name: logged, image: "{busybox}", terminationMessagePolicy: FallbackToLogsOnError, command: [sh, -c, "echo it broke; exit 4"]}}
  - {{name: silent, image: "{busybox}", command: [sh, -c, "echo nothing; exit 5"]}}
  - {{name: user, image: "{busybox}", securityContext: {{runAsUser: 1000}}, command: [sh, -c, "echo mine > /dev/termination-log"]}}
"#
    ))?;
    let pod = service.wait_for_phase("last-words", "Failed")?;
    let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
    for (name, words) in
        [("written", "bye"), ("elsewhere", "ciao"), ("logged", "it broke\n"), ("silent", ""), ("user", "mine\n")]
    {
        let status = statuses.iter().find(|status| status["name"] == name).cloned().unwrap_or_default();
        assert_eq!(text(&status, "/state/terminated/message"), words, "{name}: {status}");
    }
    service.remove(["last-words"])
}

pub(crate) fn a_life_is_told_as_the_kubelet_tells_it(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    service.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: told}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers: \
         [{{name: main, image: \"{busybox}\", imagePullPolicy: IfNotPresent, command: [sh, -c, \"exit 1\"]}}]\n"
    ))?;
    for (reason, message) in [
        ("Created", "Created container: main".to_owned()),
        ("Started", "Started container main".to_owned()),
        ("BackOff", "Back-off restarting failed container main in pod told_default(".to_owned()),
    ] {
        let event = service.wait_for_event("told", reason)?;
        ensure!(text(&event, "/message").starts_with(&message), "{event}");
        assert_eq!(text(&event, "/involvedObject/fieldPath"), "spec.containers{main}");
    }
    let pulled = service.wait_for_event("told", "Pulled")?;
    ensure!(text(&pulled, "/message").contains(&format!("image {busybox:?}")), "{pulled}");
    service.remove(["told"])
}

pub(crate) fn a_long_log_is_cut_and_read_as_one(service: &Service) -> Result<()> {
    const LINES: usize = 200_000;
    let text = "x".repeat(50);
    let script = format!("for i in 1 2 3; do yes $i-{text} | head -n {LINES}; sleep 5; done; exec sleep 1000");
    service.background("talkative", &script)?;
    let uid = text_of(&service.pod("talkative")?, "/metadata/uid");
    let folder = service.data_dir().join("pods").join(uid).join("main");
    let pieces = || -> Result<Vec<String>> {
        let names = fs::read_dir(&folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    };
    until("the log is cut three times, and older pieces are packed", || {
        let pieces = pieces()?;
        let packed = pieces.iter().filter(|name| name.ends_with(".gz")).count();
        Ok(pieces.len() == 4 && packed == 2)
    })?;
    let all = service.sampan(["logs", "talkative"]).ok()?;
    assert_eq!(all.lines().count(), 3 * LINES);
    ensure!(all.starts_with("1-x") && all.lines().last().is_some_and(|line| line.starts_with("3-x")), "out of order");
    let tail = service.sampan(["logs", "--tail", &(LINES + 7).to_string(), "talkative"]).ok()?;
    assert_eq!(tail.lines().filter(|line| line.starts_with("2-")).count(), 7);
    service.remove(["talkative"])
}

fn text_of(object: &Value, pointer: &str) -> String {
    text(object, pointer).to_owned()
}
