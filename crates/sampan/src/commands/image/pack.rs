//! `sampan image pack`: what a start reads, as one file.

use std::ffi::OsString;
use std::time::Instant;

use clap::Args;
use http::Method;
use serde_json::Value;

use super::{Form, details, reference, show, work};
use crate::cli::{self, Command, Parsed};
use crate::client::watch::{PodChange, PodWatch};
use crate::client::{JSON, path};
use crate::commands::removal::{Mercy, remove};
use crate::commands::{Context, node, run};
use crate::failure::{Failure, one_line};
use crate::limits::TRACE_WRITTEN_MAX;
use crate::output::{bytes, note};
use crate::pods::{Stage, stage, text};

const EXAMPLES: &str = "\
Examples:
  sampan image pack python:3                                 of the starts that were traced last
  sampan image pack python:3 -- python3 -c 'import numpy'    of the starts of this command
  sampan image push-index python:3                           then publish it with the index

A command that was not traced yet is started: the image is removed and fetched anew for that.";

/// What the service says of an image none of whose starts was traced.
const UNTRACED: &str = "was traced yet";
/// What it says of an image that is not here.
const ABSENT: &str = "on this machine; sampan images lists";

// What to pack.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PackArgs {
    /// The form of the answer.
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Form,
    /// The image.
    image: String,
    /// The command whose starts count, as `sampan run` has it; it must end by itself.
    #[arg(last = true)]
    command: Vec<String>,
}

/// Runs `sampan image pack`.
pub(crate) async fn execute(args: &PackArgs, context: &Context) -> Result<i32, Failure> {
    let pack = match work(context, "pack", &args.image, &args.command).await {
        Err(failure) if !args.command.is_empty() && (says(&failure, UNTRACED) || says(&failure, ABSENT)) => {
            start(args, context).await?;
            packed(args, context).await?
        }
        other => other?,
    };
    show(args.output, &pack, line)?;
    Ok(0)
}

fn says(failure: &Failure, what: &str) -> bool {
    failure.line.as_ref().is_some_and(|line| line.contains(what))
}

/// Starts the command on an image that is not here, so that what it reads is seen, and waits until the image is.
async fn start(args: &PackArgs, context: &Context) -> Result<(), Failure> {
    note(&format!("{}: no start of this command was traced yet; fetching the image anew and starting it", args.image));
    remove_image(args, context).await?;
    let name = format!("pack-{}", std::process::id());
    let words = ["sampan", "run", "--name", name.as_str(), args.image.as_str()].map(OsString::from);
    let words = words.into_iter().chain(args.command.iter().map(OsString::from));
    let Parsed::Cli(run) = cli::parse(words)? else { return Ok(()) };
    let Command::Run(run) = run.command else { return Ok(()) };
    let pod = run::pod::pod(&run, &name, &context.namespace, &run::pod::Surroundings::of_this_process())?;
    let address = path::pods(Some(&context.namespace));
    let created = context.client.call(Method::POST, &address, Some((JSON, &pod))).await;
    let created = created.map_err(|error| error.about(&args.image))?;
    let mut watch = PodWatch::from(&context.client, &context.namespace, &created);
    let ended = end(args, &mut watch).await;
    remove(&context.client, &created, Mercy::Kill, &mut PodWatch::anew(&context.client, &context.namespace, &name))
        .await?;
    ended?;
    work(context, "prefetch", &args.image, &[]).await.map(drop)
}

/// Takes the image away, whose index stays.
async fn remove_image(args: &PackArgs, context: &Context) -> Result<(), Failure> {
    let Ok(before) = details(context, &args.image, false).await else { return Ok(()) };
    let node = node::name(context, &args.image).await?;
    let query = path::query([("reference", reference(&args.image))]);
    let removed = context.client.call(Method::DELETE, &path::node(&node, &format!("images{query}")), None).await;
    removed.map_err(|error| error.about(&args.image))?;
    if details(context, text(&before, "/id"), false).await.is_ok() {
        return Err(Failure::explain(
            &args.image,
            "it is here by other names too, so it cannot be fetched anew",
            "remove those first: sampan image ls, sampan image rm",
        ));
    }
    Ok(())
}

/// Waits until the command has ended, and insists that it ended well.
async fn end(args: &PackArgs, watch: &mut PodWatch) -> Result<(), Failure> {
    loop {
        let change = watch.next().await.map_err(|error| error.about(&args.image))?;
        let PodChange::Now(pod) = change else {
            return Err(Failure::explain(&args.image, "its instance was removed", "try again"));
        };
        match stage(&pod, "main") {
            Stage::Finished(end) if end.code == 0 => return Ok(()),
            Stage::Finished(end) => {
                return Err(Failure::explain(
                    &args.image,
                    format_args!("the command ended with code {} {}", end.code, one_line(&end.message)),
                    "name one that starts as your instances do, and ends by itself",
                ));
            }
            Stage::NeverStarted { reason, message } => {
                return Err(Failure::new(format_args!("{}: {reason}: {}", args.image, one_line(&message))));
            }
            _ => {}
        }
    }
}

/// The pack of a start that has just ended: its trace is written down a moment later.
async fn packed(args: &PackArgs, context: &Context) -> Result<Value, Failure> {
    let began = Instant::now();
    loop {
        match work(context, "pack", &args.image, &args.command).await {
            Err(failure) if says(&failure, UNTRACED) && began.elapsed() < TRACE_WRITTEN_MAX => {
                tokio::time::sleep(TRACE_WRITTEN_MAX / 100).await;
            }
            Err(failure) if says(&failure, UNTRACED) => {
                return Err(Failure::explain(
                    &args.image,
                    "its start was not traced, as it is pulled whole: it is small, or this machine cannot do otherwise",
                    "see: docs/images.md",
                ));
            }
            other => return other,
        }
    }
}

fn line(pack: &Value) -> String {
    let number = |field: &str| pack.get(field).and_then(Value::as_u64).unwrap_or(0);
    let (packed, pages) = (bytes(number("bytes")), bytes(number("pages") * 4096));
    format!("{packed} for {pages} that a start reads, of: {}\n", one_line(text(pack, "/command")))
}
