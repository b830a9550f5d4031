//! The connection to one agent: requests out, replies and events in.
//!
//! One task owns the socket. Requests may be made from anywhere and answered in any order; dropping a request's future
//! forgets the answer but not the request. When the connection ends, every waiting request fails with
//! [`SandboxError::AgentGone`].

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use sampan_agent::link::{Descriptors, Link, LinkError, Outgoing, Received};
use sampan_wire::agent::{AgentEvent, FromAgent, FromDaemon, Reply, Request};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use crate::error::SandboxError;
use crate::limits::REQUESTS_QUEUED_MAX;
use crate::watch::{BOTH, watch};

type Answer = oneshot::Sender<Result<(Reply, Descriptors), SandboxError>>;

struct Question {
    request: Request,
    descriptors: Outgoing,
    answer: Answer,
}

/// Ends well when the other end closes (another daemon has taken over, or the agent is dead), and with an error when the
/// agent cannot be understood.
pub(crate) type ConnectionTask = tokio::task::JoinHandle<Result<(), LinkError>>;

/// A handle for making requests.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// Boxed: a channel makes room for 32 at once, and there is one for each pod.
    questions: mpsc::Sender<Box<Question>>,
}

impl Connection {
    /// Takes over a connected socket; events go to `on_event`, in order, on the connection's task.
    pub(crate) fn start(
        socket: OwnedFd,
        on_event: impl FnMut(AgentEvent) + Send + 'static,
    ) -> io::Result<(Self, ConnectionTask)> {
        let link = watch(Link::new(socket), BOTH)?;
        let (questions, queue) = mpsc::channel(REQUESTS_QUEUED_MAX);
        let mut task = Task { link, queue, waiting: HashMap::new(), next_id: 1, on_event };
        let handle = tokio::spawn(async move { task.run().await });
        Ok((Self { questions }, handle))
    }

    /// Makes a request and waits for its reply. A refusal is a reply.
    pub(crate) async fn ask(
        &self,
        request: Request,
        descriptors: Outgoing,
        deadline: Duration,
    ) -> Result<(Reply, Descriptors), SandboxError> {
        let (answer, reply) = oneshot::channel();
        let exchange = async {
            let gone = |_| SandboxError::AgentGone;
            let question = Box::new(Question { request, descriptors, answer });
            self.questions.send(question).await.map_err(|_closed| SandboxError::AgentGone)?;
            reply.await.map_err(gone)?
        };
        let expired = |_| SandboxError::Deadline { seconds: deadline.as_secs() };
        tokio::time::timeout(deadline, exchange).await.map_err(expired)?
    }
}

struct Task<E> {
    link: AsyncFd<Link>,
    queue: mpsc::Receiver<Box<Question>>,
    waiting: HashMap<u64, Answer>,
    next_id: u64,
    on_event: E,
}

impl<E: FnMut(AgentEvent)> Task<E> {
    async fn run(&mut self) -> Result<(), LinkError> {
        loop {
            let wants_write = self.link.get_ref().wants_write();
            let interest = if wants_write { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            tokio::select! {
                question = self.queue.recv() => match question {
                    Some(question) => self.send(*question)?,
                    None => return Ok(()),
                },
                ready = self.link.ready_mut(interest) => {
                    let mut ready = ready?;
                    // Both directions are worked until the kernel has no more, so that clearing loses nothing.
                    ready.get_inner_mut().flush()?;
                    let arrived = receive_all(ready.get_inner_mut())?;
                    ready.clear_ready();
                    if self.deliver(arrived)? {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn send(&mut self, question: Question) -> Result<(), LinkError> {
        let request_id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let message = FromDaemon { request_id, request: question.request };
        match self.link.get_mut().send(&message, question.descriptors) {
            Ok(()) => {
                if self.waiting.len() >= REQUESTS_QUEUED_MAX {
                    // An agent that answers nothing any more is not to be remembered for every question.
                    self.waiting.retain(|_, answer| !answer.is_closed());
                }
                self.waiting.insert(request_id, question.answer);
                self.link.get_mut().flush()
            }
            // Too large for a frame: this request's failure, not the connection's.
            Err(error) => {
                drop(question.answer.send(Err(SandboxError::Protocol(error))));
                Ok(())
            }
        }
    }

    /// Hands out what has arrived; true when the other end has closed.
    fn deliver(&mut self, arrived: Vec<Received>) -> Result<bool, LinkError> {
        for received in arrived {
            let (frame, descriptors) = match received {
                Received::Frame(frame, descriptors) => (frame, descriptors),
                Received::Closed => return Ok(true),
                Received::Nothing => continue,
            };
            match frame.message::<FromAgent>()? {
                FromAgent::Event(event) => (self.on_event)(event),
                FromAgent::Reply { request_id, reply } => {
                    if let Some(answer) = self.waiting.remove(&request_id) {
                        // Whoever asked may have stopped waiting.
                        drop(answer.send(Ok((reply, descriptors))));
                    }
                }
            }
        }
        Ok(false)
    }
}

fn receive_all(link: &mut Link) -> Result<Vec<Received>, LinkError> {
    let mut arrived = Vec::new();
    loop {
        match link.receive()? {
            Received::Nothing => return Ok(arrived),
            Received::Closed => {
                arrived.push(Received::Closed);
                return Ok(arrived);
            }
            frame @ Received::Frame(..) => arrived.push(frame),
        }
    }
}
