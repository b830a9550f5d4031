//! `sampan run`: an instance as a Pod with one container, and staying with it unless told otherwise.
//!
//! Invariants: what is wrong with the command line is said before anything is sent; an instance that never started is
//! removed again, whatever ended the attempt; the exit code is the container's own, 125 when Sampan itself failed.

mod names;
pub(super) mod pod;

use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use http::{Method, StatusCode};
use serde_json::Value;

use super::foreground::{Begun, Foreground, Left};
use super::removal::{Mercy, remove};
use super::{Context, pull};
use crate::cli::values::{self, Port, Variable, Volume};
use crate::client::{JSON, path};
use crate::failure::{EXIT_TOOL, Failure};
use crate::output::{note, print_line};
use crate::pods::{End, text};
use crate::terminal;
use crate::terminal::detach::DetachKeys;
use crate::terminal::signals::{Caught, Signals};

const EXAMPLES: &str = "\
Examples:
  sampan run --rm debian:13 cat /etc/os-release       run a command, show its output, remove the instance
  sampan run --rm -it debian:13 bash                  a shell; ctrl-p ctrl-q leaves it running
  echo '1+1' | sampan run --rm -i python:3 python -   feed it from a pipe
  sampan run -d --name web -p 8080:80 nginx           a server in the background, at port 8080
  sampan run --rm -v ./src:/src:ro -w /src gcc make   with a directory of this machine
  sampan run --rm --cpu 0.5 --memory 512Mi --disk 2Gi debian:13 sh -c 'df -h /; nproc'
  sampan run --rm oci:./layout:latest                 an image from an OCI layout directory

The exit code is the command's own; 125 says that Sampan failed, 126 and 127 that the command could not be run.";

// What to run, and how.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RunArgs {
    /// Remove the instance when it has ended.
    #[arg(long)]
    pub(crate) rm: bool,
    /// Leave it running in the background and print its name.
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Pass standard input on.
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give it a terminal.
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set a variable; without a value, to the one of this shell.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<Variable>,
    /// Set the variables of this file, one NAME=VALUE a line.
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Show a file or directory of this machine inside.
    #[arg(short, long, value_name = "SRC:DST[:ro]")]
    pub(crate) volume: Vec<Volume>,
    /// The directory to start in.
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// The user to be, by name or number.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Run this instead of the image's entrypoint.
    #[arg(long, value_name = "COMMAND")]
    pub(crate) entrypoint: Option<String>,
    /// At most so much CPU.
    #[arg(long, visible_alias = "cpus", value_name = "QUANTITY", value_parser = values::cpu)]
    pub(crate) cpu: Option<String>,
    /// At most so much memory; beyond it the instance is ended.
    #[arg(short, long, value_name = "QUANTITY", value_parser = values::size)]
    pub(crate) memory: Option<String>,
    /// At most so much written to its own disk; beyond it writes fail.
    #[arg(long, value_name = "QUANTITY", value_parser = values::size)]
    pub(crate) disk: Option<String>,
    /// Let a port of this machine lead to a port of the instance.
    #[arg(short, long, value_name = "[IP:]HOST:PORT[/udp]")]
    pub(crate) publish: Vec<Port>,
    /// The instance's name (default: one is made up).
    #[arg(long, value_name = "NAME", value_parser = values::label)]
    pub(crate) name: Option<String>,
    /// When to ask the registry.
    #[arg(long, value_name = "POLICY", default_value = "missing", ignore_case = true)]
    pub(crate) pull: PullPolicy,
    /// Start it again when it ended (with -d).
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "no",
        requires_if("always", "detach"),
        requires_if("on-failure", "detach")
    )]
    pub(crate) restart: Restart,
    /// Its host name (default: its name).
    #[arg(long, value_name = "NAME", value_parser = values::label)]
    pub(crate) hostname: Option<String>,
    /// Mark it, for lists and selectors.
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = values::key_value)]
    pub(crate) label: Vec<(String, String)>,
    /// Make its root file system read-only.
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Give it a capability, such as NET_ADMIN.
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_add: Vec<String>,
    /// Take a capability away, or ALL.
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_drop: Vec<String>,
    /// The keys that leave it running, with -it.
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub(crate) detach_keys: DetachKeys,
    /// The image, or `oci:DIR[:TAG]`, and the command to run instead of the image's.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_names = ["IMAGE", "COMMAND"])]
    pub(crate) image_and_command: Vec<String>,
}

/// When the registry is asked for the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PullPolicy {
    /// Every time.
    Always,
    /// When the image is not on this machine.
    #[value(alias = "IfNotPresent")]
    Missing,
    /// Not at all.
    Never,
}

/// When an ended instance is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Restart {
    /// Never.
    No,
    /// When it failed.
    OnFailure,
    /// Always.
    Always,
}

/// Runs `sampan run`.
pub(crate) async fn execute(args: &RunArgs, context: &Context) -> Result<i32, Failure> {
    run(args, context).await.map_err(|failure| if failure.code == 1 { failure.with_code(EXIT_TOOL) } else { failure })
}

async fn run(args: &RunArgs, context: &Context) -> Result<i32, Failure> {
    if args.tty && args.interactive && !args.detach {
        terminal::require("run")?;
    }
    let name = args.name.clone().unwrap_or_else(names::made_up);
    let mut pod = pod::pod(args, &name, &context.namespace, &pod::Surroundings::of_this_process())?;
    let mut signals = Signals::catch()?;
    if args.pull != PullPolicy::Never && std::io::stderr().is_terminal() {
        tokio::select! {
            pulled = pull_ahead(args, context, &mut pod) => pulled?,
            caught = signals.next() => return Ok(128 + caught.number),
        }
    }
    let image = text(&pod, "/spec/containers/0/image").to_owned();
    let pod = create(args, context, &name, &pod).await?;
    let mut instance = Foreground::new(context, pod, signals);
    let outcome = stay(args, &image, &mut instance).await;
    settle(args, context, &mut instance, outcome).await
}

/// Pulls with a display of its progress, so that the node then finds the image.
async fn pull_ahead(args: &RunArgs, context: &Context, pod: &mut Value) -> Result<(), Failure> {
    let image = text(pod, "/spec/containers/0/image").to_owned();
    pull::pull(context, &image, args.pull == PullPolicy::Always).await?;
    pod["spec"]["containers"][0]["imagePullPolicy"] = "IfNotPresent".into();
    Ok(())
}

async fn create(args: &RunArgs, context: &Context, name: &str, pod: &Value) -> Result<Value, Failure> {
    let created = context.client.call(Method::POST, &path::pods(Some(&context.namespace)), Some((JSON, pod))).await;
    created.map_err(|error| match error.status() {
        Some(StatusCode::CONFLICT) if args.name.is_some() && error.to_string().contains("already exists") => {
            Failure::explain(
                name,
                "there is already an instance of this name",
                format_args!("choose another --name, or remove it with: sampan rm -f {name}"),
            )
        }
        _ => error.about("run"),
    })
}

/// What is left to do with an instance after this command was with it.
enum Outcome {
    /// Show its name; it runs, or ran, in the background.
    Name,
    /// It ended.
    Ended(End),
    /// It runs on without us; our exit code.
    RunsOn(i32),
    /// It never started, or is not wanted: the line for the user, and our exit code.
    Discard(Option<String>, i32),
}

async fn stay(args: &RunArgs, image: &str, instance: &mut Foreground) -> Result<Outcome, Failure> {
    let output = (!args.tty && !args.detach).then(|| instance.show_output());
    let begun = instance.await_start().await?;
    match begun {
        Begun::Interrupted(Caught { number, .. }) => return Ok(Outcome::Discard(None, 128 + number)),
        Begun::Never { reason, message } => {
            return Ok(Outcome::Discard(Some(never(image, &reason, &message)), EXIT_TOOL));
        }
        Begun::Finished(end) if !end.ran => {
            return Ok(Outcome::Discard(Some(never(image, &end.reason, &end.message)), end.code));
        }
        Begun::Running | Begun::Finished(_) if args.detach => return Ok(Outcome::Name),
        Begun::Running | Begun::Finished(_) => {}
    }
    let left = match output {
        Some(output) => instance.follow(output, args.interactive).await?,
        None => instance.converse(args.interactive, true, args.detach_keys.clone()).await?,
    };
    Ok(match left {
        Left::Ended(end) if !end.ran => Outcome::Discard(Some(never(image, &end.reason, &end.message)), end.code),
        Left::Ended(end) => Outcome::Ended(end),
        Left::Detached => Outcome::RunsOn(0),
        Left::Forced(caught) => Outcome::RunsOn(128 + caught.number),
    })
}

/// Removes what is to be removed, and turns the outcome into an exit code.
async fn settle(
    args: &RunArgs,
    context: &Context,
    instance: &mut Foreground,
    outcome: Result<Outcome, Failure>,
) -> Result<i32, Failure> {
    let pod = instance.pod.clone();
    let name = text(&pod, "/metadata/name").to_owned();
    match outcome {
        Ok(Outcome::Name) => print_line(&name).map(|()| 0),
        Ok(Outcome::RunsOn(code)) => Ok(code),
        Ok(Outcome::Ended(end)) => {
            explain_end(&name, &pod, &end);
            if args.rm && end.reason != "Deleted" {
                remove(&context.client, &pod, Mercy::Grace, &mut instance.watch).await?;
            }
            Ok(end.code)
        }
        Ok(Outcome::Discard(line, code)) => {
            remove(&context.client, &pod, Mercy::Kill, &mut instance.watch).await.ok();
            line.map_or(Ok(code), |line| Err(Failure::new(line).with_code(code)))
        }
        Err(failure) => {
            // Nobody reads what it writes any more: it ends as it would have by SIGPIPE.
            if failure.is_broken_pipe() {
                let removed = if args.rm {
                    remove(&context.client, &pod, Mercy::Kill, &mut instance.watch).await
                } else {
                    super::stop::stop(context, &name, Some(1)).await
                };
                removed.ok();
            }
            Err(failure)
        }
    }
}

/// A line about ends that the exit code alone does not explain.
fn explain_end(name: &str, pod: &Value, end: &End) {
    if end.reason == "OOMKilled" {
        let limit = text(pod, "/spec/containers/0/resources/limits/memory");
        let limit = if limit.is_empty() { "what the machine has".to_owned() } else { format!("its limit of {limit}") };
        note(&format!("{name}: it was ended because it needed more memory than {limit}; give it more with --memory"));
    }
}

/// The line about an instance that never started.
fn never(image: &str, reason: &str, message: &str) -> String {
    let message = match (message, reason) {
        ("", "") => "it was stopped before it ran",
        ("", reason) => reason,
        (message, _) => message,
    };
    let way_out = match reason {
        "Unschedulable" => "; ask for less, or stop other instances",
        "ErrImageNeverPull" => "; pull it first, or run without --pull never",
        _ => "",
    };
    if message.contains(image) { format!("{message}{way_out}") } else { format!("{image}: {message}{way_out}") }
}
