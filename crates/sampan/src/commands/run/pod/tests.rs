//! From command lines to Pods.

use clap::Parser as _;
use expect_test::{Expect, expect};

use super::*;
use crate::cli::{Cli, Command};

fn args(line: &[&str]) -> RunArgs {
    let cli = Cli::try_parse_from(["sampan", "run"].iter().chain(line)).unwrap();
    let Command::Run(args) = cli.command else { panic!("not run") };
    *args
}

fn surroundings(directory: &Path) -> Surroundings {
    let environment = [("HOME", "/root"), ("LANG", "C.UTF-8")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    Surroundings { directory: directory.to_owned(), environment: environment.into() }
}

fn check_in(directory: &Path, line: &[&str], expected: Expect) {
    let shown = match pod(&args(line), "web", "default", &surroundings(directory)) {
        Ok(pod) => format!("{} {}", pod["metadata"]["annotations"], pod["spec"]),
        Err(failure) => failure.line.unwrap(),
    };
    expected.assert_eq(&shown.replace(directory.to_str().unwrap(), "DIR"));
}

fn check(line: &[&str], expected: Expect) {
    check_in(tempfile::tempdir().unwrap().path(), line, expected);
}

#[test]
fn the_whole_object() {
    let pod = pod(&args(&["-l", "app=web", "nginx"]), "web", "default", &surroundings(Path::new("/"))).unwrap();
    expect![[r#"
        {
          "apiVersion": "v1",
          "kind": "Pod",
          "metadata": {
            "name": "web",
            "namespace": "default",
            "labels": {
              "app": "web"
            },
            "annotations": {
              "sampan.dev/created-by": "sampan-run"
            }
          },
          "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 10,
            "containers": [
              {
                "name": "main",
                "image": "nginx",
                "imagePullPolicy": "IfNotPresent"
              }
            ]
          }
        }"#]]
    .assert_eq(&format!("{pod:#}"));
}

#[test]
fn commands_and_entrypoints() {
    check(
        &["debian", "ls", "-l", "--rm"],
        expect![[
            r#"{"sampan.dev/created-by":"sampan-run"} {"restartPolicy":"Never","terminationGracePeriodSeconds":10,"containers":[{"name":"main","image":"debian","args":["ls","-l","--rm"],"imagePullPolicy":"IfNotPresent"}]}"#
        ]],
    );
    check(
        &["--entrypoint", "sh", "debian", "-c", "echo $HOME $(date) $$"],
        expect![[
            r#"{"sampan.dev/created-by":"sampan-run"} {"restartPolicy":"Never","terminationGracePeriodSeconds":10,"containers":[{"name":"main","image":"debian","command":["sh"],"args":["-c","echo $HOME $$(date) $$$$"],"imagePullPolicy":"IfNotPresent"}]}"#
        ]],
    );
    check(
        &["--entrypoint", "", "debian", "true"],
        expect![[
            r#"{"sampan.dev/created-by":"sampan-run"} {"restartPolicy":"Never","terminationGracePeriodSeconds":10,"containers":[{"name":"main","image":"debian","command":["true"],"imagePullPolicy":"IfNotPresent"}]}"#
        ]],
    );
    check(
        &["--entrypoint", "", "debian"],
        expect![[r#"--entrypoint '': no command is left; give one after the image"#]],
    );
    check(&["--bogus", "debian"], expect![[r#"--bogus: there is no such option; see: sampan run --help"#]]);
    check(&["-w", "src", "debian"], expect![[r#"--workdir: src is no absolute path; begin it with /"#]]);
}

#[test]
fn terminals_and_policies() {
    check(
        &["--rm", "-it", "--pull", "always", "debian"],
        expect![[
            r#"{"sampan.dev/created-by":"sampan-run","sampan.dev/remove-when-finished":"true"} {"restartPolicy":"Never","terminationGracePeriodSeconds":10,"containers":[{"name":"main","image":"debian","stdin":true,"stdinOnce":true,"tty":true,"imagePullPolicy":"Always"}]}"#
        ]],
    );
    check(
        &["-d", "--restart", "on-failure", "--pull", "Never", "debian"],
        expect![[
            r#"{"sampan.dev/created-by":"sampan-run"} {"restartPolicy":"OnFailure","terminationGracePeriodSeconds":10,"containers":[{"name":"main","image":"debian","imagePullPolicy":"Never"}]}"#
        ]],
    );
}

#[test]
fn limits_ports_and_privileges() {
    check(
        &["--cpu", "0.5", "--memory", "512Mi", "--disk", "2Gi", "-p", "8080:80", "-p", "127.0.0.1:53:53/udp", "x"],
        expect![[
            r#"{"sampan.dev/created-by":"sampan-run"} {"restartPolicy":"Never","terminationGracePeriodSeconds":10,"containers":[{"name":"main","image":"x","ports":[{"containerPort":80,"hostPort":8080,"protocol":"TCP"},{"containerPort":53,"hostPort":53,"protocol":"UDP","hostIP":"127.0.0.1"}],"resources":{"limits":{"cpu":"0.5","memory":"512Mi","ephemeral-storage":"2Gi"}},"imagePullPolicy":"IfNotPresent"}]}"#
        ]],
    );
    check(
        &["--read-only", "--cap-add", "net_admin", "--cap-drop", "CAP_CHOWN", "-u", "1000:100", "x"],
        expect![[
            r#"{"sampan.dev/created-by":"sampan-run"} {"restartPolicy":"Never","terminationGracePeriodSeconds":10,"containers":[{"name":"main","image":"x","imagePullPolicy":"IfNotPresent","securityContext":{"runAsUser":1000,"runAsGroup":100,"readOnlyRootFilesystem":true,"capabilities":{"add":["NET_ADMIN"],"drop":["CHOWN"]}}}]}"#
        ]],
    );
    check(
        &["-u", "www-data", "--hostname", "h", "x"],
        expect![[
            r#"{"sampan.dev/created-by":"sampan-run","sampan.dev/user":"www-data"} {"restartPolicy":"Never","terminationGracePeriodSeconds":10,"hostname":"h","containers":[{"name":"main","image":"x","imagePullPolicy":"IfNotPresent"}]}"#
        ]],
    );
    check(&["-u", "1000:", "x"], expect![[r#"--user: "1000:" is no user; write it like 1000, www-data or 1000:100"#]]);
}

#[test]
fn environments() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("env"), "# comment\n\n  A=1\nHOME\nNOT_SET\nB=from file\n").unwrap();
    std::fs::write(directory.path().join("bad"), "A=1\nnot good=2\n").unwrap();
    let path = directory.path();
    check_in(
        path,
        &["--env-file", "env", "-e", "B=x=y$(A)", "-e", "LANG", "-e", "E=", "x"],
        expect![[
            r#"{"sampan.dev/created-by":"sampan-run"} {"restartPolicy":"Never","terminationGracePeriodSeconds":10,"containers":[{"name":"main","image":"x","env":[{"name":"A","value":"1"},{"name":"HOME","value":"/root"},{"name":"B","value":"x=y$$(A)"},{"name":"LANG","value":"C.UTF-8"},{"name":"E","value":""}],"imagePullPolicy":"IfNotPresent"}]}"#
        ]],
    );
    check_in(
        path,
        &["--env-file", "bad", "x"],
        expect![[r#"--env-file DIR/bad: line 2: the variable has no proper name; write it like NAME=VALUE"#]],
    );
    check_in(
        path,
        &["--env-file", "none", "x"],
        expect!["--env-file DIR/none: No such file or directory; name a readable file of NAME=VALUE lines"],
    );
}

#[test]
fn volumes_and_layouts() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().canonicalize().unwrap();
    for layout in ["layout", "odd:name"] {
        std::fs::create_dir(path.join(layout)).unwrap();
        std::fs::write(path.join(layout).join("index.json"), "{}").unwrap();
    }
    check_in(
        &path,
        &["-v", "./layout:/data:ro", "-v", "/:/host", "x"],
        expect![[
            r#"{"sampan.dev/created-by":"sampan-run"} {"restartPolicy":"Never","terminationGracePeriodSeconds":10,"volumes":[{"name":"volume-0","hostPath":{"path":"DIR/layout"}},{"name":"volume-1","hostPath":{"path":"/"}}],"containers":[{"name":"main","image":"x","imagePullPolicy":"IfNotPresent","volumeMounts":[{"name":"volume-0","mountPath":"/data","readOnly":true},{"name":"volume-1","mountPath":"/host"}]}]}"#
        ]],
    );
    check_in(
        &path,
        &["-v", "./none:/data", "x"],
        expect![[r#"--volume ./none: No such file or directory; create it first, or mend the path"#]],
    );
    check_in(
        &path,
        &["oci:layout"],
        expect![[
            r#"{"sampan.dev/created-by":"sampan-run"} {"restartPolicy":"Never","terminationGracePeriodSeconds":10,"containers":[{"name":"main","image":"oci:DIR/layout","imagePullPolicy":"IfNotPresent"}]}"#
        ]],
    );
    check_in(
        &path,
        &["oci:./layout:v1"],
        expect![[
            r#"{"sampan.dev/created-by":"sampan-run"} {"restartPolicy":"Never","terminationGracePeriodSeconds":10,"containers":[{"name":"main","image":"oci:DIR/layout:v1","imagePullPolicy":"IfNotPresent"}]}"#
        ]],
    );
    check_in(
        &path,
        &["oci:odd:name"],
        expect![[
            r#"{"sampan.dev/created-by":"sampan-run"} {"restartPolicy":"Never","terminationGracePeriodSeconds":10,"containers":[{"name":"main","image":"oci:DIR/odd:name","imagePullPolicy":"IfNotPresent"}]}"#
        ]],
    );
    check_in(
        &path,
        &["oci:none:v1"],
        expect![
            "oci:none:v1: there is no OCI layout in DIR/none (it has no index.json); name the directory that skopeo copy or buildah push wrote"
        ],
    );
}

#[test]
fn dollars_reach_the_process_as_they_were_typed() {
    // What Kubernetes makes of `$$` and `$(NAME)` (third_party/forked/golang/expansion/expand.go).
    fn expand(text: &str) -> String {
        let (mut expanded, mut rest) = (String::new(), text);
        while let Some(start) = rest.find('$') {
            expanded.push_str(&rest[..start]);
            rest = &rest[start + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                rest = after;
                expanded.push('$');
            } else if let Some(after) = rest.strip_prefix('(') {
                rest = after.split_once(')').map_or("", |(_, after)| after);
                expanded.push_str("EXPANDED");
            } else {
                expanded.push('$');
            }
        }
        expanded + rest
    }
    for text in ["", "$", "$$", "$$$", "$HOME", "$(HOME)", "$$(HOME)", "a$b$$c$(d", "$$$(x)$"] {
        assert_eq!(expand(&literal(text)), text);
    }
}
