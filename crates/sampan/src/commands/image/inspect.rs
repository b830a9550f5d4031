//! `sampan image inspect`: all that is known of an image.

use std::fmt::Write as _;

use clap::Args;
use serde_json::Value;

use super::{Form, details, show};
use crate::commands::Context;
use crate::failure::{Failure, one_line};
use crate::output::{Table, bytes};
use crate::pods::{list, text};
use crate::progress::short;

const EXAMPLES: &str = "\
Examples:
  sampan image inspect python:3              layers, and how much of each is here
  sampan image inspect -o json python:3 | jq .layers";

// What to show.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct InspectArgs {
    /// The form of the answer.
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Form,
    /// The images, by reference or id.
    #[arg(required = true)]
    images: Vec<String>,
}

/// Runs `sampan image inspect`.
pub(crate) async fn execute(args: &InspectArgs, context: &Context) -> Result<i32, Failure> {
    for image in &args.images {
        show(args.output, &details(context, image, false).await?, table)?;
    }
    Ok(0)
}

/// An image for people.
pub(super) fn table(image: &Value) -> String {
    let mut shown = String::new();
    for reference in list(image, "/references").iter().filter_map(Value::as_str) {
        writeln!(shown, "Image:     {}", one_line(reference)).ok();
    }
    writeln!(shown, "Id:        {}", one_line(text(image, "/id"))).ok();
    writeln!(shown, "Manifest:  {}", one_line(text(image, "/digest"))).ok();
    writeln!(shown, "Metadata:  {}", amount(image, "metadataBytes")).ok();
    let mut layers = Table::new(&["LAYER", "COMPRESSED", "FILES", "HERE", "INDEX", "STATE"]);
    for column in 1..5 {
        layers = layers.right_align(column);
    }
    for layer in list(image, "/layers") {
        let is_complete = layer.get("complete").and_then(Value::as_bool) == Some(true);
        layers.row(vec![
            short(text(layer, "/digest")),
            amount(layer, "bytes"),
            amount(layer, "blobBytes"),
            amount(layer, "allocatedBytes"),
            amount(layer, "indexBytes"),
            if is_complete { "complete" } else { "arriving" }.to_owned(),
        ]);
    }
    shown.push('\n');
    shown.push_str(&layers.render());
    if let Some(pack) = image.get("pack").filter(|pack| pack.is_object()) {
        let pages = pack.get("pages").and_then(Value::as_u64).unwrap_or(0);
        let command = one_line(text(pack, "/command"));
        writeln!(shown, "\nStart pack: {} for {} of pages, of: {command}", amount(pack, "bytes"), bytes(pages * 4096))
            .ok();
    }
    let traces = list(image, "/traces");
    if !traces.is_empty() {
        shown.push('\n');
        shown.push_str(&super::trace::table_of(traces));
    }
    shown
}

fn amount(value: &Value, field: &str) -> String {
    value.get(field).and_then(Value::as_u64).map(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn an_image_for_people() {
        let image = json!({
            "id": "sha256:aa", "references": ["docker.io/library/x:1"], "digest": "sha256:bb", "metadataBytes": 8192,
            "layers": [
                {"digest": "sha256:0123456789abcdef", "bytes": 1_000_000, "blobBytes": 4_000_000, "allocatedBytes": 4_100_096,
                 "indexBytes": 70_000, "complete": true},
                {"digest": "sha256:ff", "bytes": 5, "blobBytes": 4096, "allocatedBytes": 0, "indexBytes": 300, "complete": false},
            ],
            "pack": {"command": "sh -c x", "pages": 6, "bytes": 900},
            "traces": [{"command": "sh -c x", "starts": 2, "pages": 6}],
        });
        expect![[r#"
            Image:     docker.io/library/x:1
            Id:        sha256:aa
            Manifest:  sha256:bb
            Metadata:  8.0 KiB

            LAYER         COMPRESSED    FILES     HERE     INDEX  STATE
            0123456789ab   976.6 KiB  3.8 MiB  3.9 MiB  68.4 KiB  complete
            ff                   5 B  4.0 KiB      0 B     300 B  arriving

            Start pack: 900 B for 24.0 KiB of pages, of: sh -c x

            COMMAND  STARTS  PAGES     READS
            sh -c x       2      6  24.0 KiB
        "#]]
        .assert_eq(&table(&image));
    }
}
