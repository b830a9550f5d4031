//! `sampan image trace`: what starts read.

use clap::Args;
use serde_json::{Value, json};

use super::{Form, details, show};
use crate::commands::Context;
use crate::failure::Failure;
use crate::output::{Table, bytes};
use crate::pods::{list, text};

const EXAMPLES: &str = "\
Examples:
  sampan image trace python:3               each command that was started, and how much it read
  sampan image trace -o json python:3       page by page: [layer, first page of its blob, pages]

Traces come of starts that read an image before it had arrived; see: docs/images.md.";

// Whose traces.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TraceArgs {
    /// The form of the answer; json and yaml go down to pages.
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Form,
    /// The image, by reference or id.
    image: String,
}

/// Runs `sampan image trace`.
pub(crate) async fn execute(args: &TraceArgs, context: &Context) -> Result<i32, Failure> {
    let details = details(context, &args.image, args.output != Form::Table).await?;
    let traces = json!({"traces": list(&details, "/traces")});
    show(args.output, &traces, |traces| table_of(list(traces, "/traces")))?;
    Ok(0)
}

/// Traces for people.
pub(super) fn table_of(traces: &[Value]) -> String {
    let mut table = Table::new(&["COMMAND", "STARTS", "PAGES", "READS"]).right_align(1).right_align(2).right_align(3);
    for trace in traces {
        let number = |field: &str| trace.get(field).and_then(Value::as_u64).unwrap_or(0);
        let pages = number("pages");
        table.row(vec![
            text(trace, "/command").to_owned(),
            number("starts").to_string(),
            pages.to_string(),
            bytes(pages * 4096),
        ]);
    }
    table.render()
}
