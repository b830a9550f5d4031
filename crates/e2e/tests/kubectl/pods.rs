//! Pods as people write them for Kubernetes.

use std::fs;

use anyhow::{Result, ensure};
use sampan_e2e::harness::pod::text;
use sampan_e2e::service::Service;

pub(crate) fn two_containers_share_one_localhost(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    service.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: pair}}
spec:
  volumes: [{{name: shared, emptyDir: {{}}}}]
  containers:
  - name: server
    image: "{busybox}"
    command: [sh, -c, "echo from-the-server > /shared/page; cd /shared && httpd -f -p 127.0.0.1:8080"]
    volumeMounts: [{{name: shared, mountPath: /shared}}]
  - name: client
    image: "{busybox}"
    command: [sh, -c, "until wget -q -O - http://127.0.0.1:8080/page; do sleep 0.1; done; exec sleep 1000"]
    volumeMounts: [{{name: shared, mountPath: /elsewhere, readOnly: true}}]
"#
    ))?;
    service.kubectl(["wait", "--for=condition=Ready", "pod/pair", "--timeout=30s"]).ok()?;
    service.kubectl(["logs", "-f", "pair", "-c", "client"]).start()?.output.wait_for("from-the-server\n")?;
    let exec = |container: &str, script: &str| {
        service.kubectl(["exec", "pair", "-c", container, "--", "sh", "-c", script]).finish()
    };
    assert_eq!(exec("client", "cat /elsewhere/page; hostname")?.expect(0)?.text(), "from-the-server\npair");
    ensure!(exec("client", "touch /elsewhere/x")?.code != 0, "a read-only mount can be written");
    assert_eq!(exec("client", "ls /shared")?.code, 1);
    // Each has files, processes and limits of its own, and one address together.
    exec("server", "touch /only-here")?.expect(0)?;
    assert_eq!(exec("client", "ls /only-here")?.code, 1);
    assert_eq!(exec("client", "ps | grep -c '[h]ttpd'")?.text(), "0");
    let addresses = |container: &str| anyhow::Ok(exec(container, "ip -o -4 address show eth0")?.expect(0)?.text());
    assert_eq!(addresses("client")?, addresses("server")?);
    ensure!(service.kubectl(["get", "pod", "pair"]).ok()?.contains("2/2"));
    service.sampan(["logs", "-c", "client", "pair"]).ok()?;
    service.kubectl(["delete", "pod", "pair", "--grace-period=1"]).ok().map(drop)
}

pub(crate) fn init_containers_run_first_and_in_order(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    service.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: prepared}}
spec:
  restartPolicy: Never
  volumes: [{{name: work, emptyDir: {{medium: Memory, sizeLimit: 8Mi}}}}]
  initContainers:
  - {{name: one, image: "{busybox}", command: [sh, -c, "echo one > /work/list"], volumeMounts: [{{name: work, mountPath: /work}}]}}
  - {{name: two, image: "{busybox}", command: [sh, -c, "echo two >> /work/list"], volumeMounts: [{{name: work, mountPath: /work}}]}}
  containers:
  - {{name: main, image: "{busybox}", command: [sh, -c, "cat /work/list; stat -f -c %T /work"], volumeMounts: [{{name: work, mountPath: /work}}]}}
"#
    ))?;
    let pod = service.wait_for_phase("prepared", "Succeeded")?;
    assert_eq!(service.kubectl(["logs", "prepared"]).ok()?, "one\ntwo\ntmpfs");
    for nth in 0..2 {
        assert_eq!(pod["status"]["initContainerStatuses"][nth]["state"]["terminated"]["exitCode"], 0);
    }
    service.remove(["prepared"])
}

pub(crate) fn a_failing_init_container_keeps_the_pod_from_starting(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    service.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: unprepared}}
spec:
  restartPolicy: Never
  initContainers: [{{name: one, image: "{busybox}", command: [sh, -c, "echo no; exit 4"]}}]
  containers: [{{name: main, image: "{busybox}", command: [echo, never]}}]
"#
    ))?;
    let pod = service.wait_for_phase("unprepared", "Failed")?;
    assert_eq!(pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 4);
    ensure!(pod["status"]["containerStatuses"][0]["state"]["running"].is_null());
    assert_eq!(service.kubectl(["logs", "unprepared", "-c", "one"]).ok()?, "no");
    service.remove(["unprepared"])
}

pub(crate) fn the_environment_tells_about_the_pod(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    service.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: telling, labels: {{app: teller}}, annotations: {{note: "some words"}}}}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: "{busybox}"
    command: [sh, -c, "env; echo \"$1\"", sh, $(GREETING)]
    resources: {{limits: {{cpu: 500m, memory: 64Mi}}}}
    env:
    - {{name: WHO, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
    - {{name: WHERE, valueFrom: {{fieldRef: {{fieldPath: metadata.namespace}}}}}}
    - {{name: LABEL, valueFrom: {{fieldRef: {{fieldPath: "metadata.labels['app']"}}}}}}
    - {{name: NOTE, valueFrom: {{fieldRef: {{fieldPath: "metadata.annotations['note']"}}}}}}
    - {{name: ADDRESS, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}
    - {{name: NODE, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}
    - {{name: MEMORY, valueFrom: {{resourceFieldRef: {{resource: limits.memory}}}}}}
    - {{name: GREETING, value: "hello $(WHO) and $$(WHO)"}}
"#
    ))?;
    let pod = service.wait_for_phase("telling", "Succeeded")?;
    let printed = service.kubectl(["logs", "telling"]).ok()?;
    let address = format!("ADDRESS={}", text(&pod, "/status/podIP"));
    let node = format!("NODE={}", text(&pod, "/spec/nodeName"));
    let fixed = ["WHO=telling", "WHERE=default", "LABEL=teller", "NOTE=some words", "MEMORY=67108864"];
    let greeting = "hello telling and $(WHO)";
    for line in fixed.into_iter().chain([address.as_str(), &node, greeting]) {
        ensure!(printed.lines().any(|printed| printed == line), "no {line:?} in {printed}");
    }
    service.remove(["telling"])
}

pub(crate) fn volumes_of_a_pod_are_what_they_say(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let folder = service.work().join("host-path");
    fs::create_dir(&folder)?;
    let path = folder.display();
    let mounts = "volumeMounts: [{name: host, mountPath: /host}, {name: host, mountPath: /sub, subPath: below}, \
                  {name: space, mountPath: /space}]";
    service.apply(&format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: volumes}}
spec:
  restartPolicy: Never
  volumes:
  - {{name: host, hostPath: {{path: "{path}", type: Directory}}}}
  - {{name: space, emptyDir: {{}}}}
  containers:
  - {{name: main, image: "{busybox}", command: [sh, -c, "echo x > /host/file; mkdir -p /host/below; echo y > /sub/file; ls -A /space; echo z > /space/file; cat /host/below/file"], {mounts}}}
"#
    ))?;
    service.wait_for_phase("volumes", "Succeeded")?;
    assert_eq!(service.kubectl(["logs", "volumes"]).ok()?, "y");
    assert_eq!(fs::read_to_string(folder.join("file"))?, "x\n");
    service.remove(["volumes"])?;
    assert_eq!(fs::read_to_string(folder.join("below/file"))?, "y\n");
    Ok(())
}
