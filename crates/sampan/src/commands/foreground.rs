//! Staying with an instance: its output here, this process's signals and input there, and its end as the outcome.
//!
//! ```text
//!   await_start ──running──▶ follow (log streams, input by attach) ──┐
//!       │                    converse (attach, for a terminal) ──────┼──▶ End ──▶ exit code
//!       ├──finished───────────────────── what it wrote ──────────────┘
//!       └──never started, interrupted──▶ the caller removes it
//! ```
//!
//! Output comes from the log and not from attach, so that nothing is missed however short the instance's life was, and
//! nothing is lost when the service is restarted in the middle: the log is opened again and what was shown is skipped.
//! Invariant: signals are caught before anything is created, so that none can leave an instance behind unnoticed.

mod follow;

use std::time::Instant;

use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::session::{Ends, SessionEnd, hold};
use super::{Context, node};
use crate::client::channels::Ended;
use crate::client::watch::{PodChange, PodWatch};
use crate::client::{Client, ClientError, path};
use crate::failure::Failure;
use crate::limits::LAST_WORDS_MAX;
use crate::output::note;
use crate::pods::{End, Stage, main_container, stage, text};
use crate::terminal::detach::DetachKeys;
use crate::terminal::signals::{Caught, Signals, resizes};
use crate::terminal::{RawTerminal, outputs_are_one, read_stdin};
use follow::{Copies, PAUSE};

/// One instance in the foreground.
#[derive(Debug)]
pub(crate) struct Foreground {
    client: Client,
    namespace: String,
    name: String,
    container: String,
    /// Its state as last seen.
    pub(crate) pod: Value,
    pub(crate) watch: PodWatch,
    signals: Signals,
}

/// What came of waiting for a start.
#[derive(Debug)]
pub(crate) enum Begun {
    /// It runs.
    Running,
    /// It ran already.
    Finished(End),
    /// It will not start.
    Never { reason: String, message: String },
    /// The user wants it no more.
    Interrupted(Caught),
}

/// How staying with an instance ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Left {
    /// It ended.
    Ended(End),
    /// The user left it running, by the detach keys.
    Detached,
    /// The user insisted on leaving, by this signal.
    Forced(Caught),
}

impl Foreground {
    /// Stays with `pod`, as the service last showed it.
    pub(crate) fn new(context: &Context, pod: Value, signals: Signals) -> Self {
        Self {
            client: context.client.clone(),
            namespace: context.namespace.clone(),
            name: text(&pod, "/metadata/name").to_owned(),
            container: main_container(&pod).to_owned(),
            watch: PodWatch::from(&context.client, &context.namespace, &pod),
            pod,
            signals,
        }
    }

    /// Waits until it runs, ended, or is known never to start.
    pub(crate) async fn await_start(&mut self) -> Result<Begun, Failure> {
        loop {
            match stage(&self.pod, &self.container) {
                Stage::Waiting => {}
                Stage::Running => return Ok(Begun::Running),
                Stage::Finished(end) => return Ok(Begun::Finished(end)),
                Stage::NeverStarted { reason, message } => return Ok(Begun::Never { reason, message }),
            }
            tokio::select! {
                change = self.watch.next() => match change {
                    Ok(PodChange::Now(pod)) => self.pod = pod,
                    Ok(PodChange::Gone) => {
                        let message = "it was removed before it started".to_owned();
                        return Ok(Begun::Never { reason: "Deleted".to_owned(), message });
                    }
                    Err(error) => return Err(error.about(&self.name)),
                },
                caught = self.signals.next() => return Ok(Begun::Interrupted(caught)),
            }
        }
    }

    /// Begins to show what it writes, from its first byte; it need not run yet.
    pub(crate) fn show_output(&self) -> Copies {
        Copies::start(&self.client, &self.log_path(), outputs_are_one())
    }

    /// Stays until it has ended and its output is shown; `stdin`: feeds it from standard input.
    pub(crate) async fn follow(&mut self, mut copies: Copies, stdin: bool) -> Result<Left, Failure> {
        let feeding = feed_stdin(self.client.clone(), self.attach_path(stdin, false), stdin);
        tokio::pin!(feeding);
        let mut ended = match stage(&self.pod, &self.container) {
            Stage::Finished(end) => Some(end),
            _ => None,
        };
        if ended.is_some() {
            copies.expect_end();
        }
        let mut copied = false;
        loop {
            if let Some(end) = ended.take_if(|_| copied) {
                return Ok(Left::Ended(end));
            }
            tokio::select! {
                change = self.watch.next(), if ended.is_none() => {
                    ended = self.ended_by(change)?;
                    if ended.is_some() {
                        copies.expect_end();
                    }
                }
                caught = self.signals.next() => if ended.is_some() || self.forward(caught) {
                    return Ok(ended.map_or(Left::Forced(caught), Left::Ended));
                },
                copy = copies.next(), if !copied => match copy {
                    Some(copy) => copy?,
                    None => copied = true,
                },
                () = &mut feeding => {}
            }
        }
    }

    /// Connects this terminal to its main process until it ends or the user leaves. `stdin`: keys go there.
    pub(crate) async fn converse(&mut self, stdin: bool, tty: bool, keys: DetachKeys) -> Result<Left, Failure> {
        let raw = if stdin && tty { Some(RawTerminal::enter()?) } else { None };
        let mut ends = Ends {
            stdin: stdin.then(|| read_stdin(tty.then_some(keys))),
            resized: if tty { Some(resizes()?) } else { None },
        };
        let mut shown = false;
        loop {
            let path = self.attach_path(stdin, true);
            let channels = self.client.channels(&path).await;
            let left = match channels {
                Ok(channels) => {
                    shown = true;
                    self.accompany(hold(channels, &mut ends)).await?
                }
                // It has ended already, or the service is away: the watch tells which.
                Err(ClientError::Refused { .. }) => None,
                Err(error) if error.is_transient() => None,
                Err(error) => return Err(error.about(&self.name)),
            };
            let left = match left {
                Some(left) => left,
                None => match self.ended_or_running().await? {
                    Some(end) => Left::Ended(end),
                    None => continue,
                },
            };
            if matches!(left, Left::Ended(_)) && !shown {
                let mut copies = Copies::start(&self.client, &self.log_path(), true);
                copies.expect_end();
                while let Some(copied) = copies.next().await {
                    copied?;
                }
            }
            drop(raw);
            return Ok(left);
        }
    }

    /// Lets a session run while the instance is watched and signals are passed on; `None` when only the session ended.
    async fn accompany(
        &mut self,
        session: impl Future<Output = Result<SessionEnd, Failure>>,
    ) -> Result<Option<Left>, Failure> {
        tokio::pin!(session);
        loop {
            tokio::select! {
                end = &mut session => return Ok(match end? {
                    SessionEnd::Detached => Some(Left::Detached),
                    SessionEnd::Ended(Ended::Failed(message)) => {
                        note(&format!("{}: {message}", self.name));
                        None
                    }
                    SessionEnd::Ended(_) => None,
                }),
                change = self.watch.next() => if let Some(end) = self.ended_by(change)? {
                    // What it wrote last is still on its way.
                    timeout(LAST_WORDS_MAX, session).await.ok().transpose()?;
                    return Ok(Some(Left::Ended(end)));
                },
                caught = self.signals.next() => if self.forward(caught) {
                    return Ok(Some(Left::Forced(caught)));
                },
            }
        }
    }

    /// After a session that ended: the instance's end, or `None` when it turns out to run on.
    async fn ended_or_running(&mut self) -> Result<Option<End>, Failure> {
        match timeout(LAST_WORDS_MAX / 10, self.await_end()).await {
            Ok(end) => end.map(Some),
            Err(_) => Ok(None),
        }
    }

    async fn await_end(&mut self) -> Result<End, Failure> {
        if let Stage::Finished(end) = stage(&self.pod, &self.container) {
            return Ok(end);
        }
        loop {
            let change = self.watch.next().await;
            if let Some(end) = self.ended_by(change)? {
                return Ok(end);
            }
        }
    }

    fn ended_by(&mut self, change: Result<PodChange, ClientError>) -> Result<Option<End>, Failure> {
        let gone = |reason: &str, message: &str| End {
            code: 137,
            reason: reason.to_owned(),
            message: message.to_owned(),
            ran: true,
        };
        match change.map_err(|error| error.about(&self.name))? {
            PodChange::Gone => {
                note(&format!("{}: it was removed while it ran", self.name));
                Ok(Some(gone("Deleted", "")))
            }
            PodChange::Now(pod) => {
                self.pod = pod;
                Ok(match stage(&self.pod, &self.container) {
                    Stage::Finished(end) => Some(end),
                    Stage::NeverStarted { reason, message } => {
                        note(&format!("{}: {reason}: {message}", self.name));
                        Some(gone(&reason, &message))
                    }
                    Stage::Waiting | Stage::Running => None,
                })
            }
        }
    }

    /// Passes a signal on; true when the user insists on leaving instead.
    fn forward(&mut self, caught: Caught) -> bool {
        if caught.ends() && self.signals.insists(Instant::now()) {
            note(&format!("{}: it does not end; leaving it running", self.name));
            return true;
        }
        let (client, pod, container) = (self.client.clone(), self.pod.clone(), self.container.clone());
        tokio::spawn(async move {
            // One that just ended cannot be signalled any more, and its end is what the caller waits for.
            node::signal(&client, &pod, &container, caught.name).await.ok();
        });
        false
    }

    fn log_path(&self) -> String {
        let query = path::query([("follow", "true".to_owned()), ("container", self.container.clone())]);
        format!("{}/log{query}", path::pod(&self.namespace, &self.name))
    }

    fn attach_path(&self, stdin: bool, output: bool) -> String {
        let tty = output && self.pod.pointer("/spec/containers/0/tty").and_then(Value::as_bool) == Some(true);
        let query = path::query([
            ("container", self.container.clone()),
            ("stdin", stdin.to_string()),
            ("stdout", output.to_string()),
            ("stderr", (output && !tty).to_string()),
            ("tty", tty.to_string()),
        ]);
        format!("{}/attach{query}", path::pod(&self.namespace, &self.name))
    }
}

/// Carries standard input to the instance; never returns, because the end of input is not the end of the instance.
async fn feed_stdin(client: Client, path: String, wanted: bool) {
    if wanted {
        let mut ends = Ends { stdin: Some(read_stdin(None)), resized: None };
        loop {
            match client.channels(&path).await {
                Ok(channels) => {
                    let left = hold(channels, &mut ends).await;
                    if ends.stdin.is_none() || !matches!(left, Ok(SessionEnd::Ended(Ended::Closed))) {
                        break;
                    }
                }
                Err(error) if error.is_transient() => {}
                // It has ended already; its watch says how.
                Err(_) => break,
            }
            // The service went away: the input that is left is for when it is back.
            sleep(PAUSE).await;
        }
    }
    std::future::pending().await
}
