//! `sampan image pack`: what a start reads, as one file.

use clap::Args;
use serde_json::Value;

use super::{Form, show, work};
use crate::commands::Context;
use crate::failure::{Failure, one_line};
use crate::output::bytes;
use crate::pods::text;

const EXAMPLES: &str = "\
Examples:
  sampan image pack python:3                                 of the starts that were traced last
  sampan image pack python:3 -- python3 -c 'import numpy'    of the starts of this command
  sampan image push-index python:3                           then publish it with the index";

/// What to pack.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PackArgs {
    /// The form of the answer.
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Form,
    /// The image.
    image: String,
    /// The command whose starts count.
    #[arg(last = true)]
    command: Vec<String>,
}

/// Runs `sampan image pack`.
pub(crate) async fn execute(args: &PackArgs, context: &Context) -> Result<i32, Failure> {
    show(args.output, &work(context, "pack", &args.image, &args.command).await?, line)?;
    Ok(0)
}

fn line(pack: &Value) -> String {
    let number = |field: &str| pack.get(field).and_then(Value::as_u64).unwrap_or(0);
    let (packed, pages) = (bytes(number("bytes")), bytes(number("pages") * 4096));
    format!("{packed} for {pages} that a start reads, of: {}\n", one_line(text(pack, "/command")))
}
