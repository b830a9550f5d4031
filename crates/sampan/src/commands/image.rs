//! `sampan image`: images in depth.

pub(crate) mod gc;
pub(crate) mod index;
pub(crate) mod inspect;
pub(crate) mod keys;
pub(crate) mod pack;
pub(crate) mod prefetch;
pub(crate) mod push_index;
pub(crate) mod trace;
pub(crate) mod verify;

use serde_json::{Value, json};

use super::run::pod::{Surroundings, image_reference};
use super::{Context, images, node, pull, rmi};
use crate::cli::image::ImageCommand;
use crate::client::path;
use crate::failure::Failure;
use crate::output;
use crate::progress::Mode;

/// How one thing is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    Table,
    Json,
    Yaml,
}

/// Runs a command of `sampan image`.
pub(crate) async fn execute(command: ImageCommand, context: &Context) -> Result<i32, Failure> {
    match command {
        ImageCommand::Ls(args) => images::execute(&args, context).await,
        ImageCommand::Inspect(args) => inspect::execute(&args, context).await,
        ImageCommand::Prefetch(args) => prefetch::execute(&args, context).await,
        ImageCommand::Rm(args) => rmi::execute(&args, context).await,
        ImageCommand::Gc(args) => gc::execute(&args, context).await,
        ImageCommand::Verify(args) => verify::execute(&args, context).await,
        ImageCommand::Trace(args) => trace::execute(&args, context).await,
        ImageCommand::Index(args) => index::execute(&args, context).await,
        ImageCommand::PushIndex(args) => push_index::execute(&args, context).await,
        ImageCommand::Pack(args) => pack::execute(&args, context).await,
        ImageCommand::Keys(args) => keys::execute(&args, context).await,
    }
}

/// Prints a value as JSON or YAML, or the text that `table` makes of it.
fn show(form: Form, value: &Value, table: impl FnOnce(&Value) -> String) -> Result<(), Failure> {
    output::print(&match form {
        Form::Json => output::json(value),
        Form::Yaml => output::yaml(value)?,
        Form::Table => table(value),
    })
}

/// A reference as the service understands it; an image's id stays what it is.
fn reference(image: &str) -> String {
    image_reference(image, &Surroundings::of_this_process()).unwrap_or_else(|_| image.to_owned())
}

/// Everything that the node knows of an image.
async fn details(context: &Context, image: &str, with_touches: bool) -> Result<Value, Failure> {
    let node = node::name(context, image).await?;
    let touches = if with_touches { "true" } else { "false" };
    let query = path::query([("reference", reference(image)), ("touches", touches.to_owned())]);
    let details = context.client.get(&path::node(&node, &format!("image{query}"))).await;
    details.map_err(|error| match error.is_not_found() {
        true => absent(image),
        false => error.about(image),
    })
}

fn absent(image: &str) -> Failure {
    Failure::explain(
        image,
        "there is no such image here",
        format_args!("see what there is with: sampan image ls; or fetch it: sampan pull {image}"),
    )
}

/// Has the node do something with an image that may take long.
async fn work(context: &Context, what: &str, image: &str, command: &[String]) -> Result<Value, Failure> {
    let node = node::name(context, image).await?;
    let request = json!({"reference": reference(image), "command": command});
    let address = path::node(&node, &format!("image/{what}"));
    pull::follow(context, &address, image, &request, Mode::for_stderr()).await
}
