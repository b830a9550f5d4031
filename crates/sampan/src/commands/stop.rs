//! `sampan stop`: end an instance's processes and keep the instance, with its exit code and its log.

use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Context, for_each_name};
use crate::client::watch::{PodChange, PodWatch};
use crate::client::{MERGE_PATCH, path};
use crate::failure::Failure;
use crate::limits::LAST_WORDS_MAX;
use crate::output::print_line;
use crate::pods::is_finished;

const EXAMPLES: &str = "\
Examples:
  sampan stop web                     TERM, and KILL when its time to end is over
  sampan stop -t 1 web db             with one second each";

// What to stop.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct StopArgs {
    /// Seconds between TERM and KILL (default: what the instance asks for).
    #[arg(short, long, value_name = "SECONDS")]
    time: Option<u32>,
    /// The instances.
    #[arg(required = true)]
    names: Vec<String>,
}

/// Runs `sampan stop`.
pub(crate) async fn execute(args: &StopArgs, context: &Context) -> Result<i32, Failure> {
    for_each_name(&args.names, async |name| {
        stop(context, &name, args.time).await?;
        print_line(&name)
    })
    .await
}

/// Stops one instance and waits until it has ended; one that has ended is fine.
pub(crate) async fn stop(context: &Context, name: &str, grace: Option<u32>) -> Result<(), Failure> {
    let pod = context.pod(name).await?;
    if is_finished(&pod) {
        return Ok(());
    }
    let own = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_u64).unwrap_or(30);
    let grace = grace.map_or(own, u64::from);
    let patch = json!({"metadata": {"annotations": {"sampan.dev/stop": grace.to_string()}}});
    let address = path::pod(&context.namespace, name);
    let patched = context.client.call(Method::PATCH, &address, Some((MERGE_PATCH, &patch))).await;
    let pod = patched.map_err(|error| error.about_pod(&context.namespace, name))?;
    if is_finished(&pod) {
        return Ok(());
    }
    let mut watch = PodWatch::from(&context.client, &context.namespace, &pod);
    let ended = async {
        loop {
            match watch.next().await.map_err(|error| error.about(name))? {
                PodChange::Now(pod) if !is_finished(&pod) => {}
                PodChange::Now(_) | PodChange::Gone => return Ok(()),
            }
        }
    };
    timeout(Duration::from_secs(grace) + LAST_WORDS_MAX, ended).await.unwrap_or_else(|_| {
        Err(Failure::explain(name, "it has not ended in time", format_args!("try: sampan rm -f {name}")))
    })
}
