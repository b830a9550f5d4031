//! The `sampan` command: a client of the service's API, and the service itself.
//!
//! This file reads the command line, runs one command and turns its outcome into one line and an exit code. Commands
//! stand in [`commands`], the API's client in [`client`], the service's wiring in [`serve`].
//!
//! Invariant: the client half has no way to an instance but the API; it works for whoever may open the socket.

mod cli;
mod client;
mod commands;
mod failure;
mod limits;
mod output;
mod pods;
mod progress;
mod serve;
mod terminal;

use cli::{Command, Parsed};
use failure::Failure;

fn main() {
    if let Some(outcome) = serve::run_zygote(std::env::args_os()) {
        leave(return_of(outcome));
    }
    leave(cli::parse(std::env::args_os()).and_then(|parsed| match parsed {
        Parsed::Text(text) => output::print(&text).map(|()| 0),
        Parsed::Cli(cli) => match cli.command {
            Command::Serve(args) => return_of(serve::run(args)),
            Command::Completion(args) => commands::completion::execute(&args),
            Command::Internal(args) => return_of(serve::internal(args)),
            command => client_command(command, cli.socket, cli.namespace),
        },
    }))
}

/// Ends with an outcome's code, and the one line that says why.
fn leave(outcome: Result<i32, Failure>) -> ! {
    let code = outcome.unwrap_or_else(|failure| {
        if let Some(line) = &failure.line {
            output::note(line);
        }
        failure.code
    });
    // Leaves at once: a thread may still be reading standard input, and nothing can wake it.
    std::process::exit(code)
}

fn client_command(command: Command, socket: std::path::PathBuf, namespace: String) -> Result<i32, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::explain("start", error, "raise the limits of this user (ulimit -a)"))?;
    let context = commands::Context { client: client::Client::new(socket), namespace };
    let outcome = runtime.block_on(commands::execute(command, &context));
    runtime.shutdown_background();
    outcome
}

/// The service's own outcome in the terms of the command line.
fn return_of(outcome: anyhow::Result<()>) -> Result<i32, Failure> {
    outcome.map(|()| 0).map_err(|error| Failure::new(format_args!("{error:#}")))
}
