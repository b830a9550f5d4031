//! Volumes that show ConfigMaps, Secrets and the pod itself; debug containers; new limits for running ones.

use anyhow::{Result, ensure};
use sampan_e2e::harness::pod::{first_status, text};
use sampan_e2e::harness::wait::until;
use sampan_e2e::service::Service;

pub(crate) fn volumes_show_objects_and_follow_them(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    service
        .kubectl(["create", "configmap", "settings", "--from-literal=colour=blue", "--from-literal=size=large"])
        .ok()?;
    service.kubectl(["create", "secret", "generic", "login", "--from-literal=password=hunter2"]).ok()?;
    service.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: showing, labels: {{app: shop}}}}
spec:
  securityContext: {{fsGroup: 2000}}
  volumes:
  - {{name: plain, configMap: {{name: settings}}}}
  - {{name: chosen, configMap: {{name: settings, items: [{{key: size, path: deep/er, mode: 0400}}]}}}}
  - {{name: maybe, configMap: {{name: nothing, optional: true}}}}
  - {{name: secret, secret: {{secretName: login, defaultMode: 0400}}}}
  - name: all
    projected:
      sources:
      - {{configMap: {{name: settings, items: [{{key: colour, path: colour}}]}}}}
      - {{secret: {{name: login}}}}
      - downwardAPI:
          items:
          - {{path: labels, fieldRef: {{fieldPath: metadata.labels}}}}
          - {{path: cpu, resourceFieldRef: {{containerName: main, resource: limits.cpu, divisor: 1m}}}}
  containers:
  - name: main
    image: "{busybox}"
    command: [sleep, "1000"]
    resources: {{limits: {{cpu: 200m}}}}
    env: [{{name: SELF, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]
    volumeMounts:
    - {{name: plain, mountPath: /plain}}
    - {{name: chosen, mountPath: /chosen}}
    - {{name: maybe, mountPath: /maybe}}
    - {{name: secret, mountPath: /secret}}
    - {{name: all, mountPath: /all}}
    - {{name: plain, mountPath: /one-file, subPath: colour}}
"#
    ))?;
    service.kubectl(["wait", "--for=condition=Ready", "pod/showing", "--timeout=30s"]).ok()?;
    let inside = |script: &str| service.inside("showing", script);
    assert_eq!(
        inside("cat /plain/colour /plain/size /chosen/deep/er /secret/password /one-file")?,
        "bluelargelargehunter2blue"
    );
    assert_eq!(inside("ls /maybe /plain")?, "/maybe:\n\n/plain:\ncolour\nsize");
    assert_eq!(inside("cd /all && ls && cat labels cpu")?, "colour\ncpu\nlabels\npassword\napp=\"shop\"200");
    assert_eq!(inside("stat -L -c '%a %u %g' /secret/password /plain/colour")?, "440 0 2000\n644 0 2000");
    for script in ["touch /plain/x", "echo x > /secret/password", "rm /plain/colour"] {
        ensure!(service.sampan(["exec", "showing", "sh", "-c", script]).finish()?.code != 0, "{script} is allowed");
    }
    // What is shown changes as a whole, and a file mounted by itself stays what it was.
    service
        .kubectl(["patch", "configmap", "settings", "-p", r#"{"data":{"colour":"red","size":null,"new":"1"}}"#])
        .ok()?;
    until("the volume shows the change", || Ok(inside("cat /plain/colour")? == "red"))?;
    assert_eq!(inside("ls /plain; cat /one-file")?, "colour\nnew\nblue");
    until("the projected one does too", || Ok(inside("cat /all/colour")? == "red"))?;
    service.kubectl(["label", "pod", "showing", "app=stall", "--overwrite"]).ok()?;
    until("so do labels", || Ok(inside("cat /all/labels")?.contains("app=\"stall\"")))?;
    service.remove(["showing"])?;
    service.kubectl(["delete", "configmap/settings", "secret/login"]).ok().map(drop)
}

pub(crate) fn a_pod_waits_for_what_its_volumes_show(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    service.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: waiting}}
spec:
  restartPolicy: Never
  volumes: [{{name: later, configMap: {{name: comes-later}}}}, {{name: space, emptyDir: {{}}}}]
  containers:
  - name: main
    image: "{busybox}"
    command: [sh, -c, "cat /later/word; ls /space"]
    env: [{{name: SELF, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]
    volumeMounts:
    - {{name: later, mountPath: /later}}
    - {{name: space, mountPath: /space}}
    - {{name: space, mountPath: /own, subPathExpr: of-$(SELF)}}
"#
    ))?;
    let event = service.wait_for_event("waiting", "FailedMount")?;
    ensure!(text(&event, "/message").contains("configmap \"comes-later\" not found"), "{event}");
    let pod = service.pod("waiting")?;
    assert_eq!(text(first_status(&pod), "/state/waiting/reason"), "ContainerCreating");
    service.kubectl(["create", "configmap", "comes-later", "--from-literal=word=here"]).ok()?;
    service.wait_for_phase("waiting", "Succeeded")?;
    assert_eq!(service.kubectl(["logs", "waiting"]).ok()?, "hereof-waiting");
    service.remove(["waiting"])?;
    service.kubectl(["delete", "configmap", "comes-later"]).ok().map(drop)
}

pub(crate) fn objects_of_another_namespace_are_out_of_reach(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    service.kubectl(["create", "namespace", "neighbour"]).ok()?;
    service.kubectl(["-n", "neighbour", "create", "secret", "generic", "theirs", "--from-literal=key=secret"]).ok()?;
    service.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: curious}}\nspec:\n  volumes: [{{name: v, secret: {{secretName: \
         theirs}}}}]\n  containers: [{{name: main, image: \"{busybox}\", command: [cat, /v/key], volumeMounts: [{{name: v, \
         mountPath: /v}}]}}]\n"
    ))?;
    let event = service.wait_for_event("curious", "FailedMount")?;
    ensure!(text(&event, "/message").contains("secret \"theirs\" not found"), "{event}");
    service.remove(["curious"])?;
    service.kubectl(["delete", "namespace", "neighbour"]).ok().map(drop)
}

pub(crate) fn a_debug_container_looks_at_another(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    service.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: puzzling}}\nspec:\n  containers: [{{name: main, image: \
         \"{busybox}\", command: [sh, -c, \"touch /a-puzzle; exec sleep 1234\"]}}]\n"
    ))?;
    service.kubectl(["wait", "--for=condition=Ready", "pod/puzzling", "--timeout=30s"]).ok()?;
    let script = "ps | grep -c '[s]leep 1234'; ls /proc/1/root/a-puzzle";
    let image = format!("--image={busybox}");
    service
        .kubectl([
            "debug",
            "puzzling",
            &image,
            "-c",
            "looker",
            "--target=main",
            "--profile=general",
            "--",
            "sh",
            "-c",
            script,
        ])
        .ok()?;
    let ended = |pod: &serde_json::Value| {
        !pod.pointer("/status/ephemeralContainerStatuses/0/state/terminated")
            .unwrap_or(&serde_json::Value::Null)
            .is_null()
    };
    let pod = service.wait_for_pod("puzzling", "looked at", ended)?;
    assert_eq!(service.kubectl(["logs", "puzzling", "-c", "looker"]).ok()?, "1\n/proc/1/root/a-puzzle");
    ensure!(pod["status"]["phase"] == "Running" && first_status(&pod)["restartCount"] == 0, "{}", pod["status"]);
    let again = r#"{"spec":{"ephemeralContainers":[{"name":"looker","image":"other"}]}}"#;
    let refused =
        service.kubectl(["patch", "pod", "puzzling", "--subresource=ephemeralcontainers", "-p", again]).finish()?;
    ensure!(refused.code != 0 && refused.complaint().contains("may not be changed"), "{}", refused.complaint());
    service.remove(["puzzling"])
}

pub(crate) fn limits_change_while_it_runs(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    service.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: growing}}\nspec:\n  containers: [{{name: main, image: \
         \"{busybox}\", command: [sleep, \"1000\"], resources: {{limits: {{memory: 64Mi, cpu: 100m}}}}}}]\n"
    ))?;
    service.kubectl(["wait", "--for=condition=Ready", "pod/growing", "--timeout=30s"]).ok()?;
    let resize = |limits: &str| {
        let patch = format!(
            r#"{{"spec":{{"containers":[{{"name":"main","resources":{{"limits":{limits},"requests":{limits}}}}}]}}}}"#
        );
        service.kubectl(["patch", "pod", "growing", "--subresource=resize", "-p", &patch]).finish()
    };
    resize(r#"{"memory":"96Mi","cpu":"200m"}"#)?.expect(0)?;
    let seen = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null || true";
    until("the new limit holds", || Ok(service.inside("growing", seen)?.contains("100663296")))?;
    service.wait_for_pod("growing", "told of its new limits", |pod| {
        text(first_status(pod), "/resources/limits/memory") == "96Mi"
    })?;
    let refused = resize(r#"{"memory":"96Mi","cpu":"5000"}"#)?;
    ensure!(refused.code != 0 && refused.complaint().contains("Insufficient cpu"), "{}", refused.complaint());
    let pod = service.pod("growing")?;
    ensure!(first_status(&pod)["restartCount"] == 0, "it was started again");
    service.remove(["growing"])
}
