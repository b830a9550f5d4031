//! `sampan image gc`: room for other things.

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::{Form, show};
use crate::cli::values;
use crate::client::{JSON, path};
use crate::commands::{Context, node};
use crate::failure::{Failure, one_line};
use crate::output::bytes;
use crate::pods::list;

const EXAMPLES: &str = "\
Examples:
  sampan image gc                 remove every image that nothing uses
  sampan image gc --keep 20Gi     only until all images together take no more than that

Images that instances use, or that are on their way, are never touched.";

// How much may stay.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct GcArgs {
    /// Remove no more than it takes to have all images within this.
    #[arg(long, value_name = "QUANTITY", value_parser = values::size)]
    keep: Option<String>,
    /// The form of the answer.
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Form,
}

/// Runs `sampan image gc`.
pub(crate) async fn execute(args: &GcArgs, context: &Context) -> Result<i32, Failure> {
    let address = path::node(&node::name(context, "gc").await?, "image/gc");
    let request = json!({"keep": args.keep.as_deref().unwrap_or("0")});
    let removed = context.client.call(Method::POST, &address, Some((JSON, &request))).await;
    show(args.output, &removed.map_err(|error| error.about("gc"))?, lines)?;
    Ok(0)
}

fn lines(removed: &Value) -> String {
    let names = list(removed, "/removed").iter().filter_map(Value::as_str);
    let removed_lines: String = names.map(|name| format!("removed {}\n", one_line(name))).collect();
    let amount = |field: &str| bytes(removed.get(field).and_then(Value::as_u64).unwrap_or(0));
    format!("{removed_lines}freed {}; images take {}\n", amount("freedBytes"), amount("diskBytes"))
}
