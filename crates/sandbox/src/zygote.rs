//! The daemon's side of the zygote's socket.
//!
//! One question at a time over one connection, which is made again when the zygote has been restarted.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use sampan_agent::link::{Link, LinkError, Outgoing, Received};
use sampan_sys::socket::{Kind, connect};
use sampan_wire::zygote::{ZygoteReply, ZygoteRequest};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::error::SandboxError;
use crate::limits::{ZYGOTE_DEADLINE, ZYGOTE_RETRY};
use crate::spec::{Namespaces, SandboxId};
use crate::watch::{BOTH, watch};

/// A fresh agent.
#[derive(Debug)]
pub(crate) struct NewAgent {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

#[derive(Debug)]
pub(crate) struct ZygoteClient {
    path: PathBuf,
    link: Mutex<Option<AsyncFd<Link>>>,
}

impl ZygoteClient {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, link: Mutex::new(None) }
    }

    /// Waits until the zygote answers.
    pub(crate) async fn ping(&self) -> Result<(), SandboxError> {
        let began = Instant::now();
        let mut link = self.link.lock().await;
        self.connected(&mut link, began).await.map(|_| ())
    }

    /// Has an agent made that listens on `listener`, in the v2 group `cgroup` where there is one.
    pub(crate) async fn create(
        &self,
        id: &SandboxId,
        namespaces: Namespaces,
        listener: OwnedFd,
        cgroup: Option<OwnedFd>,
    ) -> Result<NewAgent, SandboxError> {
        let mut outgoing = Outgoing::default();
        let request = ZygoteRequest::CreateSandbox {
            id: id.as_str().to_owned(),
            own_user_namespace: namespaces.own_users,
            host_network: namespaces.host_network,
            host_pid: namespaces.host_pid,
            host_ipc: namespaces.host_ipc,
            listener: outgoing.add(listener),
            cgroup: cgroup.map(|cgroup| outgoing.add(cgroup)),
        };
        // Those who wait in line lose patience together: a zygote that is not there is not waited for by each in turn.
        let began = Instant::now();
        let mut slot = self.link.lock().await;
        let link = self.connected(&mut slot, began).await?;
        let answer = tokio::time::timeout(ZYGOTE_DEADLINE, exchange(link, &request, outgoing)).await;
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                *slot = None;
                return Err(error.into());
            }
            Err(_) => {
                // Its late answer must not be taken for the next one's.
                *slot = None;
                return Err(SandboxError::Deadline { seconds: ZYGOTE_DEADLINE.as_secs() });
            }
        };
        match answer {
            (ZygoteReply::Created { pid, pidfd }, mut descriptors) => {
                Ok(NewAgent { pid, pidfd: descriptors.take(pidfd)? })
            }
            (ZygoteReply::Failed { stage, errno }, _) => {
                Err(SandboxError::Zygote { stage, source: std::io::Error::from_raw_os_error(errno) })
            }
            (ZygoteReply::Here, _) => Err(SandboxError::UnexpectedAnswer),
        }
    }

    /// The connection, made and proved alive first if need be, for somebody who has waited since `began`.
    async fn connected<'a>(
        &self,
        slot: &'a mut Option<AsyncFd<Link>>,
        began: Instant,
    ) -> Result<&'a mut AsyncFd<Link>, SandboxError> {
        loop {
            if let Some(link) = slot.as_mut()
                && matches!(exchange(link, &ZygoteRequest::Ping, Outgoing::default()).await, Ok((ZygoteReply::Here, _)))
            {
                break;
            }
            match connect(&self.path, Kind::Packet).and_then(|socket| watch(Link::new(socket), BOTH)) {
                Ok(link) => *slot = Some(link),
                Err(source) if began.elapsed() >= ZYGOTE_DEADLINE => {
                    return Err(SandboxError::ZygoteUnreachable { path: self.path.display().to_string(), source });
                }
                Err(_) => {
                    *slot = None;
                    tokio::time::sleep(ZYGOTE_RETRY).await;
                }
            }
        }
        slot.as_mut().ok_or(SandboxError::UnexpectedAnswer)
    }
}

async fn exchange(
    link: &mut AsyncFd<Link>,
    request: &ZygoteRequest,
    outgoing: Outgoing,
) -> Result<(ZygoteReply, sampan_agent::link::Descriptors), LinkError> {
    link.get_mut().send(request, outgoing)?;
    link.get_mut().flush()?;
    loop {
        match link.get_mut().receive()? {
            Received::Frame(frame, descriptors) => return Ok((frame.message()?, descriptors)),
            Received::Closed => return Err(LinkError::Io(std::io::ErrorKind::ConnectionReset.into())),
            Received::Nothing => {}
        }
        let mut ready = link.ready_mut(Interest::READABLE | Interest::WRITABLE).await?;
        if ready.get_inner().wants_write() {
            ready.get_inner_mut().flush()?;
        }
        ready.clear_ready();
        // What came between the read above and the clearing is found by reading again before waiting again.
    }
}
