//! The daemon's side of the zygote's socket.
//!
//! One question at a time over one connection, which is made again when the zygote has been restarted.
//!
//! # Cancellation
//! Whoever gives up in the middle of a question takes the connection along: its late answer would be taken for the next one's.

use std::io;
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
use crate::limits::{ZYGOTE_DEADLINE, ZYGOTE_PING_MAX, ZYGOTE_RETRY};
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
        let mut slot = self.link.lock().await;
        let link = self.connected(&mut slot, began).await?;
        *slot = Some(link);
        Ok(())
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
        let mut link = self.connected(&mut slot, began).await?;
        let answer = tokio::time::timeout(ZYGOTE_DEADLINE, exchange(&mut link, &request, outgoing)).await;
        let (reply, mut descriptors) = answer.map_err(|_late| self.unreachable(io::ErrorKind::TimedOut.into()))??;
        *slot = Some(link);
        match reply {
            ZygoteReply::Created { pid, pidfd } => Ok(NewAgent { pid, pidfd: descriptors.take(pidfd)? }),
            ZygoteReply::Failed { stage, errno } => {
                Err(SandboxError::Zygote { stage, source: io::Error::from_raw_os_error(errno) })
            }
            ZygoteReply::Here => Err(SandboxError::UnexpectedAnswer),
        }
    }

    /// The connection, made and proved alive first if need be, for somebody who has waited since `began`. It is taken out of its
    /// place; who has had his answer puts it back.
    async fn connected(&self, slot: &mut Option<AsyncFd<Link>>, began: Instant) -> Result<AsyncFd<Link>, SandboxError> {
        if let Some(mut link) = slot.take()
            && self.answers(&mut link, began).await.is_ok()
        {
            return Ok(link);
        }
        loop {
            let source = match connect(&self.path, Kind::Packet).and_then(|socket| watch(Link::new(socket), BOTH)) {
                Ok(mut link) => match self.answers(&mut link, began).await {
                    Ok(()) => return Ok(link),
                    Err(source) => source,
                },
                Err(source) => source,
            };
            if began.elapsed() >= ZYGOTE_DEADLINE {
                return Err(self.unreachable(source));
            }
            tokio::time::sleep(ZYGOTE_RETRY).await;
        }
    }

    /// Whether anybody answers. Who has waited in line for long is not to wait for a zygote that is silent, but the line may
    /// just have been long.
    async fn answers(&self, link: &mut AsyncFd<Link>, began: Instant) -> io::Result<()> {
        let deadline = (began + ZYGOTE_DEADLINE).max(Instant::now() + ZYGOTE_PING_MAX);
        let asked = exchange(link, &ZygoteRequest::Ping, Outgoing::default());
        match tokio::time::timeout_at(deadline, asked).await {
            Ok(Ok((ZygoteReply::Here, _))) => Ok(()),
            Ok(Ok(_)) => Err(io::Error::other("it gives an answer of the wrong kind")),
            Ok(Err(error)) => Err(io::Error::other(error)),
            Err(_late) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn unreachable(&self, source: io::Error) -> SandboxError {
        SandboxError::ZygoteUnreachable { path: self.path.display().to_string(), source }
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::path::Path;

    use sampan_sys::socket::{accept, listen, pair};
    use tokio::sync::oneshot;

    use super::*;

    /// Somebody in the zygote's place. Of the first connection it tells when a question has come, and answers when it may;
    /// sandboxes all fail, at a stage that bears their id.
    async fn serve(listener: OwnedFd, asked: oneshot::Sender<()>, go: oneshot::Receiver<()>) {
        let listener = watch(listener, Interest::READABLE).unwrap();
        let mut first = Some((asked, go));
        loop {
            let mut ready = listener.readable().await.unwrap();
            match accept(listener.get_ref().as_fd()).unwrap() {
                Some(socket) => drop(tokio::spawn(answer(watch(Link::new(socket), BOTH).unwrap(), first.take()))),
                None => ready.clear_ready(),
            }
        }
    }

    async fn answer(mut link: AsyncFd<Link>, mut held: Option<(oneshot::Sender<()>, oneshot::Receiver<()>)>) {
        loop {
            let mut ready = link.readable_mut().await.unwrap();
            let frame = match ready.get_inner_mut().receive().unwrap() {
                Received::Frame(frame, _) => frame,
                Received::Closed => return,
                Received::Nothing => {
                    ready.clear_ready();
                    continue;
                }
            };
            if let Some((asked, go)) = held.take() {
                asked.send(()).unwrap();
                go.await.unwrap();
            }
            let reply = match frame.message::<ZygoteRequest>().unwrap() {
                ZygoteRequest::Ping => ZygoteReply::Here,
                ZygoteRequest::CreateSandbox { id, .. } => ZygoteReply::Failed { stage: id, errno: libc::EIO },
            };
            // Whoever asked may have gone.
            if link.get_mut().send(&reply, Outgoing::default()).and_then(|()| link.get_mut().flush()).is_err() {
                return;
            }
        }
    }

    async fn stage_of_failure(client: &ZygoteClient) -> String {
        let id = SandboxId::random().unwrap();
        let (listener, _other) = pair().unwrap();
        match client.create(&id, Namespaces::default(), listener, None).await {
            Err(SandboxError::Zygote { stage, .. }) if stage == id.as_str() => "its own".to_owned(),
            other => format!("{other:?}"),
        }
    }

    fn client(folder: &Path) -> (ZygoteClient, OwnedFd) {
        let path = folder.join("zygote.sock");
        let listener = listen(&path, Kind::Packet).unwrap();
        (ZygoteClient::new(path), listener)
    }

    #[tokio::test]
    async fn who_gives_up_leaves_no_answer_to_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let (client, listener) = client(folder.path());
        let ((asked, was_asked), (go, may_go)) = (oneshot::channel(), oneshot::channel());
        let serving = tokio::spawn(serve(listener, asked, may_go));
        tokio::select! {
            _ = stage_of_failure(&client) => panic!("nobody has answered"),
            asked = was_asked => asked.unwrap(),
        }
        go.send(()).unwrap();
        for _ in 0..3 {
            assert_eq!(stage_of_failure(&client).await, "its own");
        }
        serving.abort();
    }

    #[tokio::test]
    async fn a_zygote_that_hangs_up_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let (client, listener) = client(folder.path());
        let hanging_up = tokio::spawn(async move {
            let listener = watch(listener, Interest::READABLE).unwrap();
            loop {
                let mut ready = listener.readable().await.unwrap();
                match accept(listener.get_ref().as_fd()).unwrap() {
                    Some(socket) => drop(socket),
                    None => ready.clear_ready(),
                }
            }
        });
        let mut slot = client.link.lock().await;
        let long_ago = Instant::now().checked_sub(ZYGOTE_DEADLINE).unwrap();
        let refused = client.connected(&mut slot, long_ago).await.unwrap_err();
        assert!(matches!(refused, SandboxError::ZygoteUnreachable { .. }), "{refused:?}");
        hanging_up.abort();
    }
}
