//! `sampan inspect`: whole objects.

use clap::Args;
use serde_json::json;

use super::Context;
use crate::failure::Failure;
use crate::output::{self, Format};

const EXAMPLES: &str = "\
Examples:
  sampan inspect web                              the Pod as JSON
  sampan inspect -o yaml web > web.yaml           as YAML
  sampan inspect web | jq -r .status.podIP        its address";

// What to show.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct InspectArgs {
    /// json or yaml.
    #[arg(short, long, value_name = "FORM", default_value = "json")]
    output: Format,
    /// The instances; several come as a List.
    #[arg(required = true)]
    names: Vec<String>,
}

/// Runs `sampan inspect`.
pub(crate) async fn execute(args: &InspectArgs, context: &Context) -> Result<i32, Failure> {
    let mut pods = Vec::with_capacity(args.names.len());
    for name in &args.names {
        pods.push(context.pod(name).await?);
    }
    let object = if pods.len() == 1 {
        pods.remove(0)
    } else {
        json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": pods})
    };
    let text = match args.output {
        Format::Json => output::json(&object),
        Format::Yaml => output::yaml(&object)?,
        Format::Wide | Format::Name => {
            return Err(Failure::explain("inspect -o", "an object has no such form", "use json or yaml"));
        }
    };
    output::print(&text)?;
    Ok(0)
}
