//! Commands in running containers, attached clients, and ports of pods.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use sampan_runtime::pod::ExecOutput;
use sampan_runtime::remote::{Followed, PodPorts};
use sampan_sandbox::ExecSpec;
use sampan_streaming::{PortConnector, RemoteExit, RemoteStreams};

use super::Engine;
use crate::error::CallError;
use crate::limits::EXEC_SYNC_OUTPUT_BYTES_MAX;
use crate::proto::v1::{AttachRequest, ExecRequest, ExecSyncRequest, ExecSyncResponse};

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
        let ExecRequest { cmd, stdin, stdout, stderr, tty, .. } = request;
        let followed = Followed { stdin, stdout, stderr, tty };
        Ok(live.exec_remote(container.run_name(), cmd, followed).await?)
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
        // The client opens a stream of sizes for a terminal of its own only.
        let resize = (config.tty && request.tty).then(|| live.terminal_sizes(container.run_name()));
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
        Ok(Arc::new(PodPorts::of(&self.pod(pod_id)?.ready()?)))
    }
}
