//! `sampan logs`: what an instance has written, both streams in the order they were written.

use clap::Args;
use http::Method;
use http_body_util::BodyExt as _;

use super::Context;
use crate::cli::values::Since;
use crate::client::channels::deliver;
use crate::client::{ClientError, path};
use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  sampan logs web                     everything it has written
  sampan logs -f --tail 20 web        the last 20 lines and whatever follows
  sampan logs --since 10m web         the last ten minutes
  sampan logs --previous web          what it wrote before it was started again";

// Whose output, and how much of it.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct LogsArgs {
    /// Stay, and show what is written from now on.
    #[arg(short, long)]
    follow: bool,
    /// Show the run before the last restart.
    #[arg(long)]
    previous: bool,
    /// Only so many lines from the end.
    #[arg(long, value_name = "LINES")]
    tail: Option<u64>,
    /// Only what was written since: a span such as 10m, or a moment in RFC 3339.
    #[arg(long, value_name = "SINCE")]
    since: Option<Since>,
    /// Begin each line with its time.
    #[arg(long)]
    timestamps: bool,
    /// The container, where there are several.
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// The instance.
    name: String,
}

/// Runs `sampan logs`.
pub(crate) async fn execute(args: &LogsArgs, context: &Context) -> Result<i32, Failure> {
    let address = format!("{}/log{}", path::pod(&context.namespace, &args.name), query(args));
    let about = |error: ClientError| error.about_pod(&context.namespace, &args.name);
    let mut body = context.client.stream(Method::GET, &address, None).await.map_err(about)?;
    let mut stdout = tokio::io::stdout();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| about(ClientError::lost(error)))?;
        deliver(&mut stdout, &frame.into_data().unwrap_or_default()).await?;
    }
    Ok(0)
}

fn query(args: &LogsArgs) -> String {
    let flag = |name: &'static str, set: bool| set.then(|| (name, "true".to_owned()));
    let since = args.since.as_ref().map(|since| match since {
        Since::Seconds(seconds) => ("sinceSeconds", seconds.to_string()),
        Since::Moment(moment) => ("sinceTime", moment.clone()),
    });
    let pairs = [
        flag("follow", args.follow),
        flag("previous", args.previous),
        flag("timestamps", args.timestamps),
        args.tail.map(|lines| ("tailLines", lines.to_string())),
        since,
        args.container.clone().map(|container| ("container", container)),
    ];
    path::query(pairs.into_iter().flatten())
}
