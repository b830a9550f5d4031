//! `sampan exec`: a further process in a running instance.

use clap::Args;

use super::Context;
use super::session::{Ends, SessionEnd, hold};
use crate::client::channels::Ended;
use crate::client::path;
use crate::failure::{EXIT_TOOL, Failure};
use crate::terminal::detach::DetachKeys;
use crate::terminal::signals::resizes;
use crate::terminal::{self, RawTerminal, read_stdin};

const EXAMPLES: &str = "\
Examples:
  sampan exec web ls /etc                       one command
  sampan exec -it web sh                        a shell
  tar c . | sampan exec -i web tar x -C /srv    feed it from a pipe
  sampan exec -c sidecar web id                 in one container of several

The exit code is the command's own; 125 says that Sampan failed, 126 and 127 that the command could not be run.";

/// Shells' code for a command that is there but cannot be run.
const EXIT_CANNOT_RUN: i32 = 126;

// What to run, and where.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ExecArgs {
    /// Pass standard input on.
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal.
    #[arg(short, long)]
    tty: bool,
    /// The container, where there are several.
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// The keys that leave it running, with -it.
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// The instance.
    name: String,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs `sampan exec`.
pub(crate) async fn execute(args: &ExecArgs, context: &Context) -> Result<i32, Failure> {
    exec(args, context).await.map_err(|failure| if failure.code == 1 { failure.with_code(EXIT_TOOL) } else { failure })
}

async fn exec(args: &ExecArgs, context: &Context) -> Result<i32, Failure> {
    if args.tty && args.interactive {
        terminal::require("exec")?;
    }
    let address = format!("{}/exec{}", path::pod(&context.namespace, &args.name), query(args));
    let channels = context.client.channels(&address).await;
    let channels = channels.map_err(|error| error.about_pod(&context.namespace, &args.name))?;
    let raw = if args.tty && args.interactive { Some(RawTerminal::enter()?) } else { None };
    let mut ends = Ends {
        stdin: args.interactive.then(|| read_stdin(args.tty.then(|| args.detach_keys.clone()))),
        resized: if args.tty { Some(resizes()?) } else { None },
    };
    let end = hold(channels, &mut ends).await;
    drop(raw);
    match end? {
        SessionEnd::Ended(Ended::Exit(code)) => Ok(code),
        SessionEnd::Detached => Ok(0),
        SessionEnd::Ended(Ended::Failed(message)) => {
            Err(Failure::new(format_args!("{}: {message}", args.name)).with_code(EXIT_CANNOT_RUN))
        }
        SessionEnd::Ended(Ended::Closed) => Err(Failure::explain(
            &args.name,
            "the connection to the command was lost",
            "see whether the instance still runs: sampan ps -a",
        )),
    }
}

fn query(args: &ExecArgs) -> String {
    let container = args.container.clone().map(|container| ("container", container));
    let command = args.command.iter().map(|word| ("command", word.clone()));
    let streams = [
        ("stdin", args.interactive.to_string()),
        ("stdout", "true".to_owned()),
        // A terminal has one output.
        ("stderr", (!args.tty).to_string()),
        ("tty", args.tty.to_string()),
    ];
    path::query(container.into_iter().chain(command).chain(streams))
}
