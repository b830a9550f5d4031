//! `sampan rm`: remove instances and everything that belongs to them.

use clap::Args;

use super::removal::{Mercy, remove};
use super::{Context, for_each_name};
use crate::client::watch::PodWatch;
use crate::failure::Failure;
use crate::output::print_line;
use crate::pods::is_finished;

const EXAMPLES: &str = "\
Examples:
  sampan rm web                       remove an instance that has ended
  sampan rm -f web                    end it first, at once
  sampan rm -f $(sampan ps -aq)       remove everything of this namespace";

// What to remove.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RmArgs {
    /// Also those that run (they are killed), and no complaint about those that do not exist.
    #[arg(short, long)]
    force: bool,
    /// The instances.
    #[arg(required_unless_present = "force")]
    names: Vec<String>,
}

/// Runs `sampan rm`.
pub(crate) async fn execute(args: &RmArgs, context: &Context) -> Result<i32, Failure> {
    for_each_name(&args.names, async |name| {
        let pod = match context.client.get(&path_of(context, &name)).await {
            Ok(pod) => pod,
            Err(error) if args.force && error.is_not_found() => return Ok(()),
            Err(error) => return Err(error.about_pod(&context.namespace, &name)),
        };
        if !args.force && !is_finished(&pod) {
            return Err(Failure::explain(
                &name,
                "it has not ended",
                format_args!("stop it first with: sampan stop {name} (or end and remove it with: sampan rm -f {name})"),
            ));
        }
        let mercy = if args.force { Mercy::Kill } else { Mercy::Grace };
        remove(&context.client, &pod, mercy, &mut PodWatch::anew(&context.client, &context.namespace, &name)).await?;
        print_line(&name)
    })
    .await
}

fn path_of(context: &Context, name: &str) -> String {
    crate::client::path::pod(&context.namespace, name)
}
