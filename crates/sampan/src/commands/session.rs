//! One exec or attach in front of a user: the streams of this process tied to those of the instance.

use tokio::signal::unix::Signal;
use tokio::sync::mpsc;

use crate::client::channels::{Channels, Ended};
use crate::failure::Failure;
use crate::limits::STDIN_PIECES_MAX;
use crate::terminal::{Fed, Stdin, feed};

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SessionEnd {
    /// By itself.
    Ended(Ended),
    /// The user left with the detach keys.
    Detached,
}

/// This side's ends of a session. They outlive it, so that a session can be made again after the service was away.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    /// Standard input, where it is wanted.
    pub(crate) stdin: Option<mpsc::Receiver<Stdin>>,
    /// Changes of the terminal's size, where there is one.
    pub(crate) resized: Option<Signal>,
}

/// Carries bytes both ways until the session ends or the user leaves.
pub(crate) async fn hold(channels: Channels, ends: &mut Ends) -> Result<SessionEnd, Failure> {
    let (sender, mut input) = mpsc::channel(STDIN_PIECES_MAX);
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let conversing = channels.converse(&mut input, &mut stdout, &mut stderr);
    tokio::pin!(conversing);
    tokio::select! {
        ended = &mut conversing => return ended.map(SessionEnd::Ended),
        fed = feed(&mut ends.stdin, &mut ends.resized, sender) => if fed == Fed::Detached {
            return Ok(SessionEnd::Detached);
        },
    }
    conversing.await.map(SessionEnd::Ended)
}
