//! One server in a directory of its own, and a kubectl that knows only it.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use sampan_apiserver::{ApiHandle, ApiServer, Running, ServerConfig, Store, TlsConfig};
use tokio::io::AsyncWriteExt as _;

use crate::fake_node::{BindAll, FakeNode, play};

pub(crate) struct Fixture {
    pub(crate) running: Running,
    pub(crate) directory: tempfile::TempDir,
    kubectl: Option<String>,
    node: tokio::task::JoinHandle<Result<(), sampan_apiserver::ApiError>>,
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    /// The output of a command that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.out, self.err);
        self.out
    }

    /// The complaint of a command that must have failed.
    #[track_caller]
    pub(crate) fn refused(self) -> String {
        assert_ne!(self.code, 0, "stdout: {}", self.out);
        self.err
    }
}

fn find_kubectl() -> Option<String> {
    let wanted = std::env::var("SAMPAN_TEST_KUBECTL").unwrap_or_else(|_| "kubectl".to_owned());
    let found = std::process::Command::new(&wanted)
        .args(["version", "--client"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if found.is_ok_and(|status| status.success()) {
        return Some(wanted);
    }
    eprintln!("\n==== NOT TESTED: no kubectl ({wanted}); install it or set SAMPAN_TEST_KUBECTL ====\n");
    None
}

impl Fixture {
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(&directory.path().join("store.db")).expect("a store");
        let config = ServerConfig {
            socket: directory.path().join("sampan.sock"),
            tls: Some(TlsConfig {
                address: "127.0.0.1:0".parse().expect("an address"),
                pki_dir: directory.path().join("pki"),
                kubeconfig: directory.path().join("kubeconfig"),
            }),
        };
        let api = ApiHandle::new(store, Arc::new(BindAll)).expect("an API");
        let listening = ApiServer::listen(config).await.expect("free places");
        let running = ApiServer::serve(listening, api.clone(), Arc::new(FakeNode)).await.expect("a server");
        let node = tokio::spawn(play(api));
        Self { running, directory, kubectl: find_kubectl(), node }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn api(&self) -> &ApiHandle {
        self.running.handle()
    }

    /// Whether there is a kubectl to test with.
    pub(crate) fn has_kubectl(&self) -> bool {
        self.kubectl.is_some()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(self.kubectl.as_deref().unwrap_or("kubectl"));
        command
            .args(arguments)
            .env("KUBECONFIG", self.path().join("kubeconfig"))
            .env("HOME", self.path())
            .env("KUBECACHEDIR", self.path().join("cache"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs kubectl with the words of a line.
    pub(crate) async fn kubectl(&self, line: &str) -> Said {
        self.kubectl_with(line, "").await
    }

    /// Runs kubectl with the words of a line and an input.
    pub(crate) async fn kubectl_with(&self, line: &str, input: &str) -> Said {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.run(&words, input).await
    }

    pub(crate) async fn run(&self, words: &[&str], input: &str) -> Said {
        Self::finish(self.command(words), input).await
    }

    /// Runs kubectl the way it spoke before 1.31.
    pub(crate) async fn run_over_spdy(&self, words: &[&str], input: &str) -> Said {
        let mut command = self.command(words);
        command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false");
        Self::finish(command, input).await
    }

    async fn finish(mut command: tokio::process::Command, input: &str) -> Said {
        let mut child = command.spawn().expect("kubectl");
        let mut stdin = child.stdin.take().expect("stdin");
        let fed = async {
            // A command that refuses early does not read its input.
            drop(stdin.write_all(input.as_bytes()).await);
            drop(stdin);
        };
        let ended = async { tokio::time::timeout(std::time::Duration::from_secs(30), child.wait_with_output()).await };
        let ((), output) = tokio::join!(fed, ended);
        let output = output.unwrap_or_else(|_| panic!("{command:?} hangs")).expect("output");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Stops everything; a fake node that failed fails the test.
    pub(crate) async fn stop(self) {
        self.running.stop().await;
        self.node.abort();
        match self.node.await {
            Ok(result) => result.expect("the fake node"),
            Err(error) => assert!(error.is_cancelled(), "the fake node: {error}"),
        }
    }
}

/// A pod in YAML.
pub(crate) fn pod(name: &str, extra: &str) -> String {
    let mut text = format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {name}}}\nspec:\n");
    write!(text, "  containers:\n  - name: main\n    image: registry.local/image:1\n{extra}").expect("a string");
    text
}
