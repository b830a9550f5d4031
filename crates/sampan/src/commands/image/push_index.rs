//! `sampan image push-index`: what this machine knows of an image, for others.

use std::fmt::Write as _;

use clap::Args;
use serde_json::Value;

use super::{Form, show, work};
use crate::commands::Context;
use crate::failure::{Failure, one_line};
use crate::output::{Table, bytes};
use crate::pods::{list, text};
use crate::progress::short;

const EXAMPLES: &str = "\
Examples:
  sampan image push-index registry.example/team/app:1     sign and publish its index beside it
  sampan image keys list                                  the key that others need to believe it

The service's own login for the registry must be allowed to write there.";

// What to publish.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PushIndexArgs {
    /// The form of the answer.
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Form,
    /// The image.
    image: String,
}

/// Runs `sampan image push-index`.
pub(crate) async fn execute(args: &PushIndexArgs, context: &Context) -> Result<i32, Failure> {
    show(args.output, &work(context, "push-index", &args.image, &[]).await?, table)?;
    Ok(0)
}

fn table(report: &Value) -> String {
    let mut table = Table::new(&["WHAT", "ABOUT", "SIZE"]).right_align(2);
    for file in list(report, "/files") {
        let size = file.get("bytes").and_then(Value::as_u64).map(bytes).unwrap_or_default();
        table.row(vec![text(file, "/kind").to_owned(), short(text(file, "/about")), size]);
    }
    let mut shown = table.render();
    let keys: Vec<&str> = list(report, "/signedBy").iter().filter_map(Value::as_str).collect();
    writeln!(shown, "\nsigned by {}", one_line(&keys.join(", "))).ok();
    if let Some(artifact) = report.get("artifact").and_then(Value::as_str) {
        let listed = report.get("listedByRegistry").and_then(Value::as_bool) == Some(true);
        let how = if listed { "listed by the registry" } else { "listed by a tag, as the registry has no referrers" };
        writeln!(shown, "published as {} ({how})", one_line(artifact)).ok();
    }
    if let Some(cache) = report.get("cache").and_then(Value::as_str) {
        writeln!(shown, "published in {}", one_line(cache)).ok();
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn what_was_published_for_people() {
        let report = json!({
            "artifact": "sha256:cc", "listedByRegistry": false, "cache": null, "signedBy": ["aa", "bb"],
            "files": [{"kind": "index", "about": "sha256:0123456789abcdef", "bytes": 70_000}],
        });
        expect![[r#"
            WHAT   ABOUT             SIZE
            index  0123456789ab  68.4 KiB

            signed by aa, bb
            published as sha256:cc (listed by a tag, as the registry has no referrers)
        "#]]
        .assert_eq(&table(&report));
    }
}
