//! `sampan image prefetch`: images, whole, before they are needed.

use clap::Args;

use super::work;
use crate::commands::{Context, for_each_name};
use crate::failure::Failure;
use crate::output::print_line;
use crate::pods::text;

const EXAMPLES: &str = "\
Examples:
  sampan image prefetch python:3 nginx      fetch them; what is here already is not fetched again";

// What to fetch.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PrefetchArgs {
    /// The images.
    #[arg(required = true)]
    images: Vec<String>,
}

/// Runs `sampan image prefetch`.
pub(crate) async fn execute(args: &PrefetchArgs, context: &Context) -> Result<i32, Failure> {
    for_each_name(&args.images, async |image| {
        let done = work(context, "prefetch", &image, &[]).await?;
        print_line(&format!("{image} {}", text(&done, "/digest")))
    })
    .await
}
