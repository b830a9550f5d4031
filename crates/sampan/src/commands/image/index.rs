//! `sampan image index`: an index on purpose.

use clap::Args;

use super::{Form, inspect, show, work};
use crate::commands::Context;
use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  sampan image index python:3               fetch it if it is not here, and index it
  sampan image push-index python:3          then let other machines have the index

Every image that is pulled is indexed in passing; this makes sure of it.";

// What to index.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct IndexArgs {
    /// The form of the answer.
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Form,
    /// The image.
    image: String,
}

/// Runs `sampan image index`.
pub(crate) async fn execute(args: &IndexArgs, context: &Context) -> Result<i32, Failure> {
    show(args.output, &work(context, "index", &args.image, &[]).await?, inspect::table)?;
    Ok(0)
}
