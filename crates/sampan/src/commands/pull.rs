//! `sampan pull`: an image, before it is needed.

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::run::pod::{Surroundings, image_reference};
use super::{Context, node};
use crate::client::lines::Lines;
use crate::client::{JSON, path};
use crate::failure::Failure;
use crate::output::print_line;
use crate::pods::text;
use crate::progress::{Display, Mode};

const EXAMPLES: &str = "\
Examples:
  sampan pull debian:13                           from Docker Hub
  sampan pull localhost:5000/team/app:1.2         from another registry
  sampan pull oci:./layout                        from an OCI layout directory
  sampan pull docker-archive:./app.tar            from a file that docker save wrote";

// What to fetch.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PullArgs {
    /// Only if the image is not on this machine.
    #[arg(long)]
    missing: bool,
    /// Show nothing but the result.
    #[arg(short, long)]
    quiet: bool,
    /// The image.
    image: String,
}

/// Runs `sampan pull`.
pub(crate) async fn execute(args: &PullArgs, context: &Context) -> Result<i32, Failure> {
    let image = image_reference(&args.image, &Surroundings::of_this_process())?;
    let mode = if args.quiet { Mode::Quiet } else { Mode::for_stderr() };
    let done = fetch(context, &image, !args.missing, mode).await?;
    print_line(&format!("{} {}", text(&done, "/reference"), text(&done, "/digest")))?;
    Ok(0)
}

/// Fetches an image with a display on stderr; `always`: asks the registry even when the image is here.
pub(crate) async fn pull(context: &Context, image: &str, always: bool) -> Result<Value, Failure> {
    fetch(context, image, always, Mode::for_stderr()).await
}

pub(super) async fn fetch(context: &Context, image: &str, always: bool, mode: Mode) -> Result<Value, Failure> {
    let node = node::name(context, image).await?;
    let policy = if always { "Always" } else { "IfNotPresent" };
    let request = json!({"reference": image, "policy": policy});
    follow(context, &path::node(&node, "images/pull"), image, &request, mode).await
}

/// Asks the node for work with an image that may take long, shows how layers come on meanwhile, and gives its result.
pub(super) async fn follow(
    context: &Context,
    address: &str,
    image: &str,
    request: &Value,
    mode: Mode,
) -> Result<Value, Failure> {
    let stream = context.client.stream(Method::POST, address, Some((JSON, request))).await;
    let mut news = Lines::new(stream.map_err(|error| error.about(image))?);
    let mut display = Display::new(mode);
    loop {
        match news.next().await.map_err(|error| error.about(image))? {
            Some(last) if last.get("done").is_some() => {
                display.finish();
                return Ok(last.get("done").cloned().unwrap_or_default());
            }
            Some(last) if last.get("error").is_some() => {
                display.finish();
                let message = text(&last, "/error");
                let named = if message.contains(image) { message.to_owned() } else { format!("{image}: {message}") };
                return Err(Failure::new(named));
            }
            Some(piece) => display.hear(&piece),
            None => {
                return Err(Failure::explain(image, "the service ended the work without a result", "look at its log"));
            }
        }
    }
}
