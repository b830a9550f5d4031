//! Commands run to their end, and streams to ports of the pod.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as BlockingStream};
use std::os::fd::AsFd;
use std::time::Duration;

use sampan_sandbox::{ExecSpec, ExecStatus, Output};
use sampan_sys::namespace;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::Pod;
use crate::limits::{CONNECT_DEADLINE, EXEC_DRAIN_MAX, EXEC_OUTPUT_BYTES_MAX};
use crate::runtime::RuntimeError;

/// What a command said and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecOutput {
    /// The beginning of it, up to a limit.
    pub stdout: Vec<u8>,
    /// Likewise.
    pub stderr: Vec<u8>,
    /// 128 + n for a process ended by signal n.
    pub exit_code: i32,
}

impl Pod {
    /// Runs a command beside a container's own to its end. One that has not ended in time is killed with all that it has
    /// started in its own group. Of its output `EXEC_OUTPUT_BYTES_MAX` bytes a stream are kept.
    pub async fn exec_sync(
        &self,
        container: &str,
        spec: ExecSpec,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, RuntimeError> {
        let mut process = self.sandbox.exec(container, spec).await?;
        drop(process.stdin.take());
        let (stdout, stderr) = (process.stdout.take(), process.stderr.take());
        let (mut heard, mut complaints) = (Vec::new(), Vec::new());
        let id = process.id;
        let mut exit = process.exit;
        let ended = {
            let reading = async { tokio::join!(keep(stdout, &mut heard), keep(stderr, &mut complaints)) };
            tokio::pin!(reading);
            let to_the_end = async {
                tokio::select! {
                    status = &mut exit => {
                        // Whoever it has left behind may hold its output open for ever.
                        tokio::time::timeout(EXEC_DRAIN_MAX, &mut reading).await.ok();
                        status
                    }
                    _ = &mut reading => (&mut exit).await,
                }
            };
            match timeout.filter(|timeout| !timeout.is_zero()) {
                Some(timeout) => tokio::time::timeout(timeout, to_the_end).await.ok(),
                None => Some(to_the_end.await),
            }
        };
        match ended {
            Some(ExecStatus::Ended { code, .. }) => {
                Ok(ExecOutput { stdout: heard, stderr: complaints, exit_code: code })
            }
            Some(ExecStatus::Lost) => Err(RuntimeError::Sandbox(sampan_sandbox::SandboxError::AgentGone)),
            None => {
                self.sandbox.signal_exec(id, SIGKILL).await?;
                // Whoever asks next is not to find it any more.
                tokio::time::timeout(EXEC_DRAIN_MAX, exit).await.ok();
                Err(RuntimeError::ExecTimeout { seconds: timeout.unwrap_or_default().as_secs_f64() })
            }
        }
    }

    /// Connects to a port on the pod's own loopback: 127.0.0.1, else ::1. A thread enters the pod's network for that and
    /// ends; the socket stays in it.
    pub async fn port_forward(&self, port: u16) -> Result<TcpStream, RuntimeError> {
        let network = self.sandbox.network_namespace().try_clone_to_owned();
        let network = network.map_err(RuntimeError::host("copy a descriptor"))?;
        let connect = move || -> io::Result<BlockingStream> {
            let connected = namespace::in_network(network.as_fd(), || {
                let to = |address: IpAddr| {
                    BlockingStream::connect_timeout(&SocketAddr::new(address, port), CONNECT_DEADLINE)
                };
                to(Ipv4Addr::LOCALHOST.into())
                    .or_else(|refused| to(Ipv6Addr::LOCALHOST.into()).map_err(|_also| refused))
            })??;
            connected.set_nonblocking(true)?;
            Ok(connected)
        };
        let connected = tokio::task::spawn_blocking(connect).await.map_err(RuntimeError::panicked)?;
        let refused = |source| RuntimeError::Port { port, source };
        TcpStream::from_std(connected.map_err(refused)?).map_err(refused)
    }
}

/// Linux' number, the same on every architecture.
const SIGKILL: i32 = 9;

/// Reads to the end and keeps the beginning.
async fn keep(stream: Option<Output>, kept: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        let room = EXEC_OUTPUT_BYTES_MAX.saturating_sub(kept.len());
        kept.extend_from_slice(buffer.get(..read.min(room)).unwrap_or_default());
    }
}
