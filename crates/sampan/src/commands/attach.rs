//! `sampan attach`: this terminal, or pipe, connected to the main process of a running instance.

use clap::Args;
use serde_json::Value;

use super::Context;
use super::foreground::{Foreground, Left};
use crate::failure::Failure;
use crate::pods::{Stage, main_container, stage, text};
use crate::terminal;
use crate::terminal::detach::DetachKeys;
use crate::terminal::signals::Signals;

const EXAMPLES: &str = "\
Examples:
  sampan attach shell                 back to a shell left with ctrl-p ctrl-q
  sampan attach --no-stdin web        watch only

The exit code is the instance's own, or 0 after leaving it with the detach keys.";

// What to connect to.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct AttachArgs {
    /// Do not pass standard input on.
    #[arg(long)]
    no_stdin: bool,
    /// The keys that leave it running, on a terminal.
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// The instance.
    name: String,
}

/// Runs `sampan attach`.
pub(crate) async fn execute(args: &AttachArgs, context: &Context) -> Result<i32, Failure> {
    let signals = Signals::catch()?;
    let pod = context.pod(&args.name).await?;
    if stage(&pod, main_container(&pod)) != Stage::Running {
        return Err(Failure::explain(&args.name, "it is not running", "see its state with: sampan ps -a"));
    }
    let asks_for =
        |field: &str| pod.pointer(&format!("/spec/containers/0/{field}")).and_then(Value::as_bool) == Some(true);
    let (stdin, tty) = (asks_for("stdin") && !args.no_stdin, asks_for("tty"));
    if stdin && tty {
        terminal::require("attach")?;
    }
    let mut instance = Foreground::new(context, pod, signals);
    match instance.converse(stdin, tty, args.detach_keys.clone()).await? {
        Left::Ended(end) if end.ran => Ok(end.code),
        Left::Ended(end) => {
            Err(Failure::new(format_args!("{}: {}", text(&instance.pod, "/metadata/name"), end.message))
                .with_code(end.code))
        }
        Left::Detached => Ok(0),
        Left::Forced(caught) => Ok(128 + caught.number),
    }
}
