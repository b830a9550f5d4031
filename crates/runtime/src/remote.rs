//! A pod's commands, terminals and ports, as remote clients follow them.
//!
//! The node (for the API server) and the container runtime interface serve the same; what differs is how they refuse.
//!
//! **Architecture Invariant:** there is a stream for everything that a client asked for, even where nobody listens on it: over
//! SPDY a session begins when all of them are open, and a client that is answered sooner waits for the others in vain.

use std::io::Cursor;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use futures_util::FutureExt as _;
use sampan_kit::error_chain::ErrorChain;
use sampan_sandbox::{ExecProcess, ExecSpec, ExecStatus, Output, SandboxError, StartError};
use sampan_streaming::{ByteStream, PortConnector, RemoteExit, RemoteStreams, TerminalSize};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;

use crate::limits::RESIZES_QUEUED;
use crate::pod::Pod;

/// What a client asked to follow of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Followed {
    /// It will send input.
    pub stdin: bool,
    /// It wants the output.
    pub stdout: bool,
    /// It wants the error output, which there is none of with a terminal.
    pub stderr: bool,
    /// It has a terminal.
    pub tty: bool,
}

impl Pod {
    /// Runs a command beside a container's own for a client that follows it. A command that cannot be started answers as a
    /// shell would: with its exit code and one line.
    pub async fn exec_remote(
        &self,
        container: &str,
        command: Vec<String>,
        followed: Followed,
    ) -> Result<RemoteStreams, SandboxError> {
        let spec = ExecSpec {
            command,
            env: if followed.tty { vec![("TERM".to_owned(), "xterm".to_owned())] } else { Vec::new() },
            tty: followed.tty,
            stdin: followed.stdin,
            ..ExecSpec::default()
        };
        match self.sandbox().exec(container, spec).await {
            Ok(process) => Ok(running(process, followed)),
            Err(StartError::Sandbox(error)) => Err(error),
            Err(error) => Ok(failed_start(&error, followed)),
        }
    }

    /// Where sizes for a container's own terminal go.
    #[must_use]
    pub fn terminal_sizes(self: &Arc<Self>, container: &str) -> mpsc::Sender<TerminalSize> {
        let (sender, mut sizes) = mpsc::channel::<TerminalSize>(RESIZES_QUEUED);
        let (pod, container) = (Arc::clone(self), container.to_owned());
        tokio::spawn(async move {
            while let Some(size) = sizes.recv().await {
                if let Err(error) = pod.sandbox().resize(&container, size.columns, size.rows).await {
                    tracing::debug!(%error, "a container's terminal could not be resized");
                }
            }
        });
        sender
    }
}

fn running(process: ExecProcess, followed: Followed) -> RemoteStreams {
    let resize = process.terminal.map(|terminal| {
        let (sender, mut sizes) = mpsc::channel::<TerminalSize>(RESIZES_QUEUED);
        tokio::spawn(async move {
            while let Some(size) = sizes.recv().await {
                if let Err(error) = terminal.resize(size.columns, size.rows) {
                    tracing::debug!(%error, "a terminal could not be resized");
                }
            }
        });
        sender
    });
    let exit = process.exit.map(|status| match status {
        ExecStatus::Ended { code, .. } => RemoteExit::Code(code),
        ExecStatus::Lost => RemoteExit::Failed("the pod ended, and the command with it".to_owned()),
    });
    RemoteStreams {
        stdin: process.stdin.map(|stdin| Box::new(stdin) as _),
        stdout: process.stdout.and_then(|stdout| heard(stdout, followed.stdout)),
        stderr: process.stderr.and_then(|stderr| heard(stderr, followed.stderr)),
        resize,
        exit: exit.boxed(),
    }
}

/// An output for whoever asked for it. One that nobody did is read all the same: a closed pipe would end the command.
fn heard(mut output: Output, is_wanted: bool) -> Option<Box<dyn AsyncRead + Send + Unpin>> {
    if is_wanted {
        return Some(Box::new(output));
    }
    tokio::spawn(async move {
        if let Err(error) = tokio::io::copy(&mut output, &mut tokio::io::sink()).await {
            tracing::debug!(%error, "an output that nobody asked for broke off");
        }
    });
    None
}

fn failed_start(error: &StartError, followed: Followed) -> RemoteStreams {
    let line = || Cursor::new(format!("{}\n", ErrorChain(error)).into_bytes());
    // A terminal has one output.
    let in_error = followed.stderr && !followed.tty;
    RemoteStreams {
        stdin: followed.stdin.then(|| Box::new(tokio::io::sink()) as _),
        stdout: followed.stdout.then(|| match in_error {
            true => Box::new(tokio::io::empty()) as _,
            false => Box::new(line()) as _,
        }),
        stderr: in_error.then(|| Box::new(line()) as _),
        resize: followed.tty.then(|| mpsc::channel(RESIZES_QUEUED).0),
        exit: futures_util::future::ready(RemoteExit::Code(error.exit_code())).boxed(),
    }
}

/// Connects to ports on a pod's own loopback. Whoever forwards ports does not keep the pod's parts on the host.
#[derive(Debug)]
pub struct PodPorts(Weak<Pod>);

impl PodPorts {
    /// Ports of this pod, for as long as somebody else keeps it.
    #[must_use]
    pub fn of(pod: &Arc<Pod>) -> Self {
        Self(Arc::downgrade(pod))
    }
}

#[async_trait]
impl PortConnector for PodPorts {
    async fn connect(&self, port: u16) -> Result<Box<dyn ByteStream>, String> {
        let pod = self.0.upgrade().ok_or("the pod has ended")?;
        let connected = pod.port_forward(port).await;
        connected.map(|stream| Box::new(stream) as _).map_err(|error| ErrorChain(&error).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn a_command_that_does_not_start_says_so_where_it_is_heard() {
        let error = || StartError::CommandNotFound { command: "nothing".to_owned() };
        for (tty, stderr) in [(false, true), (true, true), (true, false), (false, false)] {
            let followed = Followed { stdin: true, stdout: true, stderr, tty };
            let streams = failed_start(&error(), followed);
            assert_eq!((streams.stdin.is_some(), streams.resize.is_some()), (true, tty));
            assert_eq!(streams.stderr.is_some(), stderr && !tty, "a terminal's client opens no error output");
            let (mut out, mut err) = (String::new(), String::new());
            streams.stdout.unwrap().read_to_string(&mut out).await.unwrap();
            if let Some(mut stderr) = streams.stderr {
                stderr.read_to_string(&mut err).await.unwrap();
            }
            assert_eq!(out + &err, format!("{}\n", ErrorChain(&error())));
            assert_eq!(streams.exit.await, RemoteExit::Code(127));
        }
    }
}
