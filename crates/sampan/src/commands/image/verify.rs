//! `sampan image verify`: whether what lies on the disk is still what was pulled.

use clap::Args;
use serde_json::Value;

use super::{Form, show, work};
use crate::commands::Context;
use crate::failure::Failure;
use crate::output::Table;
use crate::pods::{list, text};
use crate::progress::short;

const EXAMPLES: &str = "\
Examples:
  sampan image verify python:3        every byte against its digest; damaged layers are fetched again

Running instances go on, with the mended layer.";

// What to read.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct VerifyArgs {
    /// The form of the answer.
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Form,
    /// The images, by reference or id.
    #[arg(required = true)]
    images: Vec<String>,
}

/// Runs `sampan image verify`.
pub(crate) async fn execute(args: &VerifyArgs, context: &Context) -> Result<i32, Failure> {
    for image in &args.images {
        show(args.output, &work(context, "verify", image, &[]).await?, table)?;
    }
    Ok(0)
}

fn table(verified: &Value) -> String {
    let mut table = Table::new(&["LAYER", "FOUND"]);
    for layer in list(verified, "/layers") {
        table.row(vec![short(text(layer, "/digest")), text(layer, "/verdict").to_owned()]);
    }
    table.render()
}
