//! `sampan rmi`: remove images from this machine.

use clap::Args;
use http::Method;
use serde_json::Value;

use super::run::pod::{Surroundings, image_reference};
use super::{Context, for_each_name, node};
use crate::client::path;
use crate::failure::Failure;
use crate::output::{bytes, print_line};
use crate::pods::list;

const EXAMPLES: &str = "\
Examples:
  sampan rmi debian:13
  sampan rmi $(sampan images -q)      every image that nothing uses";

// What to remove.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RmiArgs {
    /// The images, by reference or id.
    #[arg(required = true)]
    images: Vec<String>,
}

/// Runs `sampan rmi`.
pub(crate) async fn execute(args: &RmiArgs, context: &Context) -> Result<i32, Failure> {
    let node = node::name(context, "rmi").await?;
    for_each_name(&args.images, async |image| {
        let reference = image_reference(&image, &Surroundings::of_this_process()).unwrap_or_else(|_| image.clone());
        let query = path::query([("reference", reference)]);
        let removed = context.client.call(Method::DELETE, &path::node(&node, &format!("images{query}")), None).await;
        let removed = removed.map_err(|error| match error.is_not_found() {
            true => Failure::explain(&image, "there is no such image here", "see what there is with: sampan images"),
            false => error.about(&image),
        })?;
        for name in list(&removed, "/removed").iter().filter_map(Value::as_str) {
            print_line(&format!("removed {name}"))?;
        }
        let freed = removed.get("freedBytes").and_then(Value::as_u64).unwrap_or(0);
        print_line(&format!("freed {}", bytes(freed)))
    })
    .await
}
