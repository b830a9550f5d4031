//! The client as a process, against a service of the test's own: exit codes, output, signals, terminals, and what is
//! left behind.
#![allow(clippy::unwrap_used, reason = "a test may end by a panic")]

mod service;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Output, Stdio};

use expect_test::{Expect, expect};
use rustix::process::{Pid, Signal};
use serde_json::json;
use service::Service;

fn sampan(service: &Service, line: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sampan"));
    command.env_clear().env("PATH", "/usr/bin:/bin").arg("--socket").arg(service.socket()).args(line);
    command
}

fn run(service: &Service, line: &[&str], input: &str) -> Output {
    let mut child = spawn(sampan(service, line));
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_owned());
    // Input and output move at the same time; a command that reads nothing may close its end.
    let writing = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    assert!(writing.join().unwrap().is_ok() || !output.status.success());
    output
}

fn spawn(mut command: Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn shown(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("[{}]\n{}---\n{}", output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn check(service: &Service, line: &[&str], input: &str, expected: Expect) {
    expected.assert_eq(&shown(&run(service, line, input)));
}

#[test]
fn streams_and_the_exit_code_are_the_instances_own() {
    let service = Service::start();
    check(
        &service,
        &["run", "--rm", "x", "print"],
        "",
        expect![[r#"
        [3]
        to stdout
        ---
        to stderr
    "#]],
    );
    assert_eq!(service.names(), Vec::<String>::new());
    check(
        &service,
        &["run", "--name", "kept", "x", "print"],
        "",
        expect![[r#"
        [3]
        to stdout
        ---
        to stderr
    "#]],
    );
    assert_eq!(service.names(), ["kept"]);
    check(
        &service,
        &["logs", "kept"],
        "",
        expect![[r#"
        [0]
        to stdout
        to stderr
        ---
    "#]],
    );
}

#[test]
fn one_file_for_both_streams_keeps_their_order() {
    let service = Service::start();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut child = sampan(&service, &["run", "--rm", "x", "print"])
        .stdout(writer.try_clone().unwrap())
        .stderr(writer)
        .spawn()
        .unwrap();
    let mut output = String::new();
    reader.read_to_string(&mut output).unwrap();
    assert_eq!(output, "to stdout\nto stderr\n");
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

#[test]
fn in_the_background_only_the_name_is_shown() {
    let service = Service::start();
    check(
        &service,
        &["run", "-d", "--name", "web", "x"],
        "",
        expect![[r#"
        [0]
        web
        ---
    "#]],
    );
    check(
        &service,
        &["run", "-d", "--name", "web", "x"],
        "",
        expect![[r#"
        [125]
        ---
        sampan: web: there is already an instance of this name; choose another --name, or remove it with: sampan rm -f web
    "#]],
    );
    check(
        &service,
        &["ps", "-q"],
        "",
        expect![[r#"
        [0]
        web
        ---
    "#]],
    );
    check(
        &service,
        &["rm", "web"],
        "",
        expect![[r#"
        [1]
        ---
        sampan: web: it has not ended; stop it first with: sampan stop web (or end and remove it with: sampan rm -f web)
    "#]],
    );
    check(
        &service,
        &["stop", "-t", "1", "web"],
        "",
        expect![[r#"
        [0]
        web
        ---
    "#]],
    );
    check(
        &service,
        &["rm", "web", "none"],
        "",
        expect![[r#"
        [1]
        web
        ---
        sampan: none: there is no such instance in namespace default; see what there is with: sampan ps -a -A
    "#]],
    );
    check(
        &service,
        &["rm", "-f", "web"],
        "",
        expect![[r#"
        [0]
        ---
    "#]],
    );
    assert_eq!(service.names(), Vec::<String>::new());
}

#[test]
fn what_never_starts_leaves_nothing_behind() {
    let service = Service::start();
    check(
        &service,
        &["run", "missing"],
        "",
        expect![[r#"
        [125]
        ---
        sampan: missing: no such image in the registry; check its name
    "#]],
    );
    check(
        &service,
        &["run", "-d", "missing"],
        "",
        expect![[r#"
        [125]
        ---
        sampan: missing: no such image in the registry; check its name
    "#]],
    );
    check(
        &service,
        &["run", "unstartable", "nope"],
        "",
        expect![[r#"
        [127]
        ---
        sampan: unstartable: nope: command not found; check the command
    "#]],
    );
    assert_eq!(service.names(), Vec::<String>::new());
}

#[test]
fn an_end_for_want_of_memory_is_explained() {
    let service = Service::start();
    check(
        &service,
        &["run", "--rm", "--name", "small", "--memory", "64Mi", "x", "oom"],
        "",
        expect![[r#"
        [137]
        ---
        sampan: small: it was ended because it needed more memory than its limit of 64Mi; give it more with --memory
    "#]],
    );
}

#[test]
fn input_reaches_the_instance_to_its_end() {
    let service = Service::start();
    let input = "line\n".repeat(50_000);
    let output = run(&service, &["run", "--rm", "-i", "x", "cat"], &input);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout == input.as_bytes(), "{} bytes came back", output.stdout.len());
}

#[test]
fn signals_are_passed_on() {
    let service = Service::start();
    let mut child = spawn(sampan(&service, &["run", "--rm", "x", "trap"]));
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "got TERM");
    assert_eq!(child.wait().unwrap().code(), Some(42));
    assert_eq!(service.names(), Vec::<String>::new());
}

#[test]
fn an_interrupted_start_is_taken_back() {
    let service = Service::start();
    let mut child = spawn(sampan(&service, &["run", "never"]));
    while service.requests("watch=true").is_empty() {
        std::thread::yield_now();
    }
    rustix::process::kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(service.names(), Vec::<String>::new());
}

#[test]
fn a_reader_that_goes_away_ends_it_silently() {
    let service = Service::start();
    let mut child = spawn(sampan(&service, &["run", "--rm", "x", "large"]));
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 10]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(141), &b""[..]));
    assert_eq!(service.names(), Vec::<String>::new());
}

#[test]
fn a_service_that_breaks_off_loses_no_output_and_no_exit_code() {
    for pieces in 0..8 {
        let service = Service::start();
        service.break_streams_after(pieces);
        check(
            &service,
            &["run", "--rm", "x", "print"],
            "",
            expect![[r#"
                [3]
                to stdout
                ---
                to stderr
            "#]],
        );
    }
}

#[test]
fn exec_has_its_own_streams_and_code() {
    let service = Service::start();
    check(
        &service,
        &["run", "-d", "--name", "web", "x"],
        "",
        expect![[r#"
        [0]
        web
        ---
    "#]],
    );
    check(
        &service,
        &["exec", "-i", "web", "cat"],
        "through\n",
        expect![[r#"
        [0]
        through
        ---
    "#]],
    );
    check(
        &service,
        &["exec", "web", "fail", "-x"],
        "",
        expect![[r#"
        [7]
        ---
        to stderr
    "#]],
    );
    check(
        &service,
        &["exec", "web", "nope"],
        "",
        expect![[r#"
        [126]
        ---
        sampan: web: no such command
    "#]],
    );
    check(
        &service,
        &["exec", "none", "cat"],
        "",
        expect![[r#"
        [125]
        ---
        sampan: none: there is no such instance in namespace default; see what there is with: sampan ps -a -A
    "#]],
    );
    check(
        &service,
        &["exec", "-it", "web", "cat"],
        "",
        expect![[r#"
        [125]
        ---
        sampan: exec -t: stdin is not a terminal; leave -t out when input comes from a pipe or a file
    "#]],
    );
    let large = "x".repeat(3_000_000);
    assert!(run(&service, &["exec", "-i", "web", "cat"], &large).stdout == large.as_bytes());
}

/// A process on a terminal of its own.
struct OnTerminal {
    child: Child,
    terminal: std::fs::File,
    seen: String,
}

impl OnTerminal {
    fn start(service: &Service, line: &[&str]) -> Self {
        let open = || -> rustix::io::Result<(OwnedFd, OwnedFd)> {
            let terminal = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY)?;
            rustix::pty::grantpt(&terminal)?;
            rustix::pty::unlockpt(&terminal)?;
            let name = rustix::pty::ptsname(&terminal, Vec::new())?;
            let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
            let side = rustix::fs::open(name.as_c_str(), flags, rustix::fs::Mode::empty())?;
            Ok((terminal, side))
        };
        let (terminal, side) = open().unwrap();
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait", env!("CARGO_BIN_EXE_sampan"), "--socket"]).arg(service.socket()).args(line);
        let child = command
            .env("TERM", "xterm")
            .stdin(side.try_clone().unwrap())
            .stdout(side.try_clone().unwrap())
            .stderr(side)
            .spawn()
            .unwrap();
        Self { child, terminal: terminal.into(), seen: String::new() }
    }

    fn resize(&self, columns: u16, rows: u16) {
        let size = rustix::termios::Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(self.terminal.as_fd(), size).unwrap();
    }

    fn wait_for(&mut self, text: &str) {
        let mut piece = [0; 1024];
        while !self.seen.contains(text) {
            let count = self.terminal.read(&mut piece).unwrap_or_else(|error| panic!("{error} after {:?}", self.seen));
            self.seen.push_str(&String::from_utf8_lossy(&piece[..count]));
        }
    }

    fn type_in(&mut self, text: &str) {
        self.terminal.write_all(text.as_bytes()).unwrap();
    }
}

#[test]
fn a_terminal_is_raw_knows_its_size_and_can_be_left() {
    let service = Service::start();
    let mut shell = OnTerminal::start(&service, &["run", "--name", "shell", "-it", "--pull", "never", "x"]);
    shell.wait_for("prompt> ");
    shell.resize(100, 30);
    shell.wait_for(r#"{"Width":100,"Height":30}"#);
    shell.type_in("a\x03\x10b\r");
    shell.wait_for(r"a\x03\x10b\r");
    shell.type_in("\x10\x11");
    assert_eq!(shell.child.wait().unwrap().code(), Some(0));
    assert_eq!(service.names(), ["shell"]);
    let mut again = OnTerminal::start(&service, &["attach", "shell"]);
    again.wait_for("prompt> ");
    again.type_in("q");
    assert_eq!(again.child.wait().unwrap().code(), Some(9));
}

#[test]
fn pulls_show_their_layers() {
    let service = Service::start();
    check(
        &service,
        &["pull", "x"],
        "",
        expect![[r#"
        [0]
        docker.io/library/x:1 sha256:2
        ---
        aaaaaaaaaaaa  done         9 B
    "#]],
    );
    check(
        &service,
        &["pull", "-q", "missing"],
        "",
        expect![[r#"
        [1]
        ---
        sampan: missing: no such image in the registry; check its name
    "#]],
    );
    let mut pull = OnTerminal::start(&service, &["run", "--rm", "missing"]);
    pull.wait_for("aaaaaaaaaaaa  done         9 B");
    pull.wait_for("no such image in the registry");
    assert_eq!(pull.child.wait().unwrap().code(), Some(125));
    assert!(service.requests("POST /api/v1/namespaces").is_empty());
}

#[test]
fn images_and_the_machine() {
    let service = Service::start();
    check(
        &service,
        &["images", "-o", "name"],
        "",
        expect![[r#"
        [0]
        image/x:1
        ---
    "#]],
    );
    check(
        &service,
        &["rmi", "x:1", "used"],
        "",
        expect![[r#"
        [1]
        removed x:1
        freed 2.0 KiB
        ---
        sampan: used: web runs from it; remove web first
    "#]],
    );
    check(
        &service,
        &["host", "check"],
        "",
        expect![[r#"
        [1]
                 WHAT   FOUND  WHAT TO DO
        MISSING  erofs  none   modprobe erofs
        ---
    "#]],
    );
    check(
        &service,
        &["version"],
        "",
        expect![[r#"
        [0]
        client  0.1.0
        server  v1.34.0+sampan
        ---
    "#]],
    );
}

#[test]
fn files_are_applied_or_refused_as_a_whole() {
    let service = Service::start();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: main, image: never}]}\n";
    check(
        &service,
        &["apply", "-f", "-"],
        pod,
        expect![[r#"
        [0]
        pod/a created
        ---
    "#]],
    );
    check(
        &service,
        &["apply", "-f", "-"],
        pod,
        expect![[r#"
        [0]
        pod/a unchanged
        ---
    "#]],
    );
    check(
        &service,
        &["apply", "-f", "-"],
        &format!("{pod}---\nkind: [\n"),
        expect![[r#"
        [1]
        ---
        sampan: stdin: line 6, column 7: unclosed bracket '['; mend it and try again
    "#]],
    );
    check(
        &service,
        &["apply", "-f", "-"],
        "apiVersion: v1\nkind: Ship\nmetadata: {name: a}\n",
        expect![[r#"
        [1]
        ---
        sampan: ship a: the service has no kind Ship in v1; mend kind or apiVersion
    "#]],
    );
    check(
        &service,
        &["apply", "-f", "-"],
        "apiVersion: v9\nkind: Pod\nmetadata: {name: a}\n",
        expect![[r#"
        [1]
        ---
        sampan: pod a: the service has no apiVersion v9; see: sampan version
    "#]],
    );
    check(
        &service,
        &["apply", "-f", "/none"],
        "",
        expect![[r#"
        [1]
        ---
        sampan: /none: No such file or directory; name a readable file of YAML or JSON
    "#]],
    );
}

#[test]
fn copies_go_where_docker_would_put_them() {
    let service = Service::start();
    service.put(json!({"metadata": {"name": "web", "namespace": "default"},
                       "spec": {"nodeName": "here", "containers": [{"name": "main"}]}, "status": {"phase": "Running"}}));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "content").unwrap();
    let file = file.to_str().unwrap();
    check(
        &service,
        &["cp", file, "web:/srv"],
        "",
        expect![[r#"
        [0]
        ---
    "#]],
    );
    check(
        &service,
        &["cp", file, "web:/srv/new-name"],
        "",
        expect![[r#"
        [0]
        ---
    "#]],
    );
    check(
        &service,
        &["cp", "-", "web:/srv"],
        "a stream",
        expect![[r#"
        [0]
        ---
    "#]],
    );
    let uploads = service.uploads();
    assert!(uploads[0].starts_with(b"file\0") && uploads[1].starts_with(b"new-name\0") && uploads[2] == b"a stream");
    assert_eq!(
        service.requests("PUT").iter().filter(|put| put.ends_with("/cp/default/web/main?path=%2Fsrv")).count(),
        3
    );
    check(
        &service,
        &["cp", "web:/none", directory.path().to_str().unwrap()],
        "",
        expect![[r#"
        [1]
        ---
        sampan: web:/none: there is no such file or directory; look with: sampan exec NAME ls
    "#]],
    );
    check(
        &service,
        &["cp", "web:/a", "web:/b"],
        "",
        expect![[r#"
        [1]
        ---
        sampan: cp: both sides are instances; copy to this machine first, then on
    "#]],
    );
    let to = directory.path().join("to");
    check(
        &service,
        &["cp", "web:/srv", to.to_str().unwrap()],
        "",
        expect![[r#"
        [0]
        ---
    "#]],
    );
    assert!(to.is_dir());
}

#[test]
fn without_a_service_every_command_says_how_to_start_one() {
    let directory = tempfile::tempdir().unwrap();
    for line in
        [&["run", "x"][..], &["exec", "a", "b"], &["ps"], &["logs", "a"], &["stop", "a"], &["pull", "a"], &["rm", "a"]]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sampan"));
        let output = command.env("SAMPAN_SOCKET", directory.path().join("none")).args(line).output().unwrap();
        let code = if matches!(line[0], "run" | "exec") { 125 } else { 1 };
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(code), 1), "{line:?}: {stderr}");
        assert!(stderr.contains("no service is running there; start one as root with: sampan serve"), "{stderr}");
    }
}

#[test]
fn requests_carry_what_was_asked_for() {
    let service = Service::start();
    run(&service, &["run", "--rm", "--name", "web", "-e", "A=1", "x", "print"], "");
    assert_eq!(service.bodies()[0]["spec"]["containers"][0]["env"], json!([{"name": "A", "value": "1"}]));
    run(&service, &["logs", "--tail", "5", "--since", "1m", "--timestamps", "--previous", "-c", "main", "web"], "");
    assert_eq!(
        service.requests("/log?").last().unwrap(),
        "GET /api/v1/namespaces/default/pods/web/log?previous=true&timestamps=true&tailLines=5&sinceSeconds=60&container=main"
    );
    run(&service, &["-n", "team", "ps"], "");
    assert!(!service.requests("GET /api/v1/namespaces/team/pods").is_empty());
}
