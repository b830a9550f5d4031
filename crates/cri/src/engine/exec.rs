//! Commands in running containers, attached clients, and ports of pods.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use sampan_kit::error_chain::ErrorChain;
use sampan_runtime::pod::{ExecOutput, Pod};
use sampan_sandbox::{ExecSpec, ExecStatus, StartError, Terminal};
use sampan_streaming::{ByteStream, PortConnector, RemoteExit, RemoteStreams, TerminalSize};
use tokio::sync::mpsc;

use super::Engine;
use crate::error::CallError;
use crate::limits::EXEC_SYNC_OUTPUT_BYTES_MAX;
use crate::proto::v1::{AttachRequest, ExecRequest, ExecSyncRequest, ExecSyncResponse};

/// Sizes of a terminal that may wait for it.
const RESIZES_QUEUED: usize = 4;

impl Engine {
    /// Runs a command and gives its output. With a timeout, a command that takes longer is killed.
    pub(crate) async fn exec_sync(&self, request: ExecSyncRequest) -> Result<ExecSyncResponse, CallError> {
        let container = self.container(&request.container_id)?;
        let live = container.running()?;
        if request.cmd.is_empty() {
            return Err(CallError::Invalid("cmd: is empty".to_owned()));
        }
        let spec = ExecSpec { command: request.cmd, ..ExecSpec::default() };
        let timeout = u64::try_from(request.timeout).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs);
        let output = live.exec_sync(container.run_name(), spec, timeout).await?;
        let ExecOutput { mut stdout, mut stderr, exit_code } = output;
        stdout.truncate(EXEC_SYNC_OUTPUT_BYTES_MAX);
        stderr.truncate(EXEC_SYNC_OUTPUT_BYTES_MAX);
        Ok(ExecSyncResponse { stdout, stderr, exit_code })
    }

    /// Runs a command for a client that follows.
    pub(crate) async fn exec(&self, request: ExecRequest) -> Result<RemoteStreams, CallError> {
        let container = self.container(&request.container_id)?;
        let live = container.running()?;
        let spec = ExecSpec {
            command: request.cmd,
            env: if request.tty { vec![("TERM".to_owned(), "xterm".to_owned())] } else { Vec::new() },
            tty: request.tty,
            stdin: request.stdin,
            ..ExecSpec::default()
        };
        let process = match live.sandbox().exec(container.run_name(), spec).await {
            Ok(process) => process,
            Err(StartError::Sandbox(error)) => return Err(error.into()),
            Err(error) => return Ok(failed_start(&error)),
        };
        let exit = process.exit.map(|status| match status {
            ExecStatus::Ended { code, .. } => RemoteExit::Code(code),
            ExecStatus::Lost => RemoteExit::Failed("the pod ended, and the command with it".to_owned()),
        });
        Ok(RemoteStreams {
            stdin: process.stdin.map(|stdin| Box::new(stdin) as _),
            stdout: process.stdout.filter(|_| request.stdout).map(|stdout| Box::new(stdout) as _),
            stderr: process.stderr.filter(|_| request.stderr).map(|stderr| Box::new(stderr) as _),
            resize: process.terminal.map(exec_resizer),
            exit: exit.boxed(),
        })
    }

    /// Takes part in a container's standard streams.
    pub(crate) async fn attach(&self, request: AttachRequest) -> Result<RemoteStreams, CallError> {
        let container = self.container(&request.container_id)?;
        let live = container.running()?;
        let config = container.record().config.unwrap_or_default();
        let (stdin, stdout, stderr) = if request.stdin && config.stdin {
            let attached = live.sandbox().attach(container.run_name()).await?;
            (Some(attached.stdin), attached.stdout, attached.stderr)
        } else {
            let (stdout, stderr) = live.sandbox().listen(container.run_name()).await?;
            (None, stdout, stderr)
        };
        let resize = config.tty.then(|| attach_resizer(live, container.run_name().to_owned()));
        let exit = async move {
            container.ended().await;
            RemoteExit::Code(0)
        };
        Ok(RemoteStreams {
            stdin: match stdin {
                Some(stdin) => Some(Box::new(stdin)),
                // The client opens a stream for what it has to say, even where nobody listens.
                None => request.stdin.then(|| Box::new(tokio::io::sink()) as _),
            },
            stdout: request.stdout.then(|| Box::new(stdout) as _),
            stderr: (request.stderr && !request.tty).then(|| Box::new(stderr) as _),
            resize,
            exit: exit.boxed(),
        })
    }

    /// What makes connections inside a pod.
    pub(crate) fn port_connector(&self, pod_id: &str) -> Result<Arc<dyn PortConnector>, CallError> {
        Ok(Arc::new(PodPorts(Arc::downgrade(&self.pod(pod_id)?.ready()?))))
    }
}

/// A client that stays does not keep the pod.
struct PodPorts(Weak<Pod>);

#[async_trait]
impl PortConnector for PodPorts {
    async fn connect(&self, port: u16) -> Result<Box<dyn ByteStream>, String> {
        let pod = self.0.upgrade().ok_or_else(|| "the pod has ended".to_owned())?;
        match pod.port_forward(port).await {
            Ok(connection) => Ok(Box::new(connection)),
            Err(error) => Err(ErrorChain(&error).to_string()),
        }
    }
}

/// A command that could not be started answers as a shell would: with its exit code and one line on standard error.
fn failed_start(error: &StartError) -> RemoteStreams {
    let line = format!("{}\n", ErrorChain(error));
    RemoteStreams {
        stdin: None,
        stdout: None,
        stderr: Some(Box::new(std::io::Cursor::new(line.into_bytes()))),
        resize: None,
        exit: futures_util::future::ready(RemoteExit::Code(error.exit_code())).boxed(),
    }
}

fn attach_resizer(pod: Arc<Pod>, container: String) -> mpsc::Sender<TerminalSize> {
    let (sender, mut sizes) = mpsc::channel::<TerminalSize>(RESIZES_QUEUED);
    tokio::spawn(async move {
        while let Some(size) = sizes.recv().await {
            if let Err(error) = pod.sandbox().resize(&container, size.columns, size.rows).await {
                tracing::debug!(%error, "a container's terminal could not be resized");
            }
        }
    });
    sender
}

fn exec_resizer(terminal: Terminal) -> mpsc::Sender<TerminalSize> {
    let (sender, mut sizes) = mpsc::channel::<TerminalSize>(RESIZES_QUEUED);
    tokio::spawn(async move {
        while let Some(size) = sizes.recv().await {
            if let Err(error) = terminal.resize(size.columns, size.rows) {
                tracing::debug!(%error, "a terminal could not be resized");
            }
        }
    });
    sender
}
