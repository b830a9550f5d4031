//! Copying an instance's log to stdout and stderr while it grows.
//!
//! The log may be asked for before the instance runs: the service answers once it does. At the end then nobody waits for a
//! question and its answer, but only for the last bytes.

use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use tokio::io::AsyncWrite;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::client::channels::deliver;
use crate::client::{Client, ClientError};
use crate::failure::Failure;
use crate::limits::{LAST_WORDS_MAX, SERVICE_RETURN_MAX};

/// The copies under way.
#[derive(Debug)]
pub(crate) struct Copies {
    tasks: JoinSet<Result<(), Failure>>,
    ending: watch::Sender<bool>,
}

impl Copies {
    /// Starts to copy the log at `path`; `merged`: both streams to stdout in the order they were written, or each to
    /// its own place.
    pub(super) fn start(client: &Client, path: &str, merged: bool) -> Self {
        let (ending, expected) = watch::channel(false);
        let mut tasks = JoinSet::new();
        if merged {
            tasks.spawn(copy(client.clone(), path.to_owned(), tokio::io::stdout(), expected));
        } else {
            let (stdout, stderr) = (format!("{path}&stream=Stdout"), format!("{path}&stream=Stderr"));
            tasks.spawn(copy(client.clone(), stdout, tokio::io::stdout(), expected.clone()));
            tasks.spawn(copy(client.clone(), stderr, tokio::io::stderr(), expected));
        }
        Self { tasks, ending }
    }

    /// The instance has ended: a stream that stays open without bringing anything is given up after a while.
    pub(super) fn expect_end(&self) {
        self.ending.send_replace(true);
    }

    /// The outcome of the next copy that ends; `None` after the last.
    pub(super) async fn next(&mut self) -> Option<Result<(), Failure>> {
        let joined = self.tasks.join_next().await?;
        Some(joined.unwrap_or_else(|error| Err(Failure::explain("output", error, "look at: sampan logs"))))
    }
}

/// Copies one stream from its beginning; after a lost connection it is opened again and what was shown is skipped.
async fn copy(
    client: Client,
    path: String,
    mut output: impl AsyncWrite + Unpin,
    mut expected: watch::Receiver<bool>,
) -> Result<(), Failure> {
    let mut shown = 0_u64;
    let mut lost_since: Option<Instant> = None;
    loop {
        let before = shown;
        match copy_from(&client, &path, &mut output, &mut expected, &mut shown).await {
            Ok(()) => return Ok(()),
            Err(Broken::Output(failure)) => return Err(failure),
            Err(Broken::Input(error)) => {
                let since = lost_since.filter(|_| shown == before).unwrap_or_else(Instant::now);
                if !error.is_transient() || since.elapsed() > SERVICE_RETURN_MAX {
                    return Err(error.about("output"));
                }
                lost_since = Some(since);
                sleep(PAUSE).await;
            }
        }
    }
}

/// Between two attempts at a service that is away.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// Which side of a copy broke.
enum Broken {
    Input(ClientError),
    Output(Failure),
}

async fn copy_from(
    client: &Client,
    path: &str,
    output: &mut (impl AsyncWrite + Unpin),
    expected: &mut watch::Receiver<bool>,
    shown: &mut u64,
) -> Result<(), Broken> {
    let mut body = client.stream(http::Method::GET, path, None).await.map_err(Broken::Input)?;
    let mut skip = *shown;
    loop {
        let given_up = async {
            // The sender lives as long as the copies do.
            expected.wait_for(|expected| *expected).await.ok();
            sleep(LAST_WORDS_MAX).await;
        };
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = given_up => return Ok(()),
        };
        let data = match frame {
            None => return Ok(()),
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(error)) => return Err(Broken::Input(ClientError::lost(error))),
        };
        let skipped = skip.min(data.len() as u64);
        skip -= skipped;
        let fresh = data.slice(skipped as usize..);
        if !fresh.is_empty() {
            deliver(output, &fresh).await.map_err(Broken::Output)?;
            *shown += fresh.len() as u64;
        }
    }
}
