//! `sampan images`: the images on this machine.

use std::fmt::Write as _;

use clap::Args;
use jiff::Timestamp;
use serde_json::Value;

use super::{Context, node};
use crate::client::path;
use crate::failure::{Failure, one_line};
use crate::output::{self, Format, Table, age, bytes};
use crate::pods::{list, text};
use crate::progress::short;

const EXAMPLES: &str = "\
Examples:
  sampan images                       what is here, and what it takes
  sampan images -o wide               with digests
  sampan rmi $(sampan images -q)      remove every image that nothing uses";

// How to show them.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ImagesArgs {
    /// Only references.
    #[arg(short, long, conflicts_with = "output")]
    quiet: bool,
    /// The form of the list.
    #[arg(short, long, value_name = "FORM")]
    output: Option<Format>,
}

/// Runs `sampan images`.
pub(crate) async fn execute(args: &ImagesArgs, context: &Context) -> Result<i32, Failure> {
    let node = node::name(context, "images").await?;
    let images = context.client.get(&path::node(&node, "images")).await.map_err(|error| error.about("images"))?;
    output::print(&render(args, &images, Timestamp::now())?)?;
    Ok(0)
}

fn render(args: &ImagesArgs, images: &Value, now: Timestamp) -> Result<String, Failure> {
    let all = list(images, "/images");
    let references = |prefix: &str| {
        all.iter().flat_map(names).fold(String::new(), |mut text, name| {
            writeln!(text, "{prefix}{}", one_line(name)).ok();
            text
        })
    };
    Ok(match args.output {
        _ if args.quiet => references(""),
        Some(Format::Name) => references("image/"),
        Some(Format::Json) => output::json(images),
        Some(Format::Yaml) => output::yaml(images)?,
        Some(Format::Wide) => table(all, now, true),
        None => table(all, now, false),
    })
}

/// What an image is called; one without a reference by its id.
fn names(image: &Value) -> Vec<&str> {
    let references: Vec<&str> = list(image, "/references").iter().filter_map(Value::as_str).collect();
    if references.is_empty() { vec![text(image, "/id")] } else { references }
}

fn table(images: &[Value], now: Timestamp, wide: bool) -> String {
    let mut header = vec!["IMAGE", "ID", "SIZE", "CREATED", "USED"];
    if wide {
        header.extend(["ARCHITECTURE", "DIGEST"]);
    }
    let mut table = Table::new(&header).right_align(2);
    for image in images {
        for name in names(image) {
            let created = age(text(image, "/createdAt"), now);
            let mut cells = vec![
                name.to_owned(),
                short(text(image, "/id")),
                image.get("sizeBytes").and_then(Value::as_u64).map(bytes).unwrap_or_default(),
                if created.is_empty() { created } else { format!("{created} ago") },
                if image.get("inUse").and_then(Value::as_bool) == Some(true) { "yes" } else { "no" }.to_owned(),
            ];
            if wide {
                cells.extend([text(image, "/architecture").to_owned(), text(image, "/digest").to_owned()]);
            }
            table.row(cells);
        }
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn images_in_a_table() {
        let images = json!({"images": [
            {"id": "sha256:0123456789abcdef", "references": ["docker.io/library/x:1", "docker.io/library/x:latest"],
             "digest": "sha256:ff", "createdAt": "2026-01-01T00:00:00Z", "sizeBytes": 5_000_000, "architecture": "amd64", "inUse": true},
            {"id": "sha256:aa"},
        ]});
        let now = "2026-01-04T00:00:00Z".parse().unwrap();
        let show = |quiet, output| render(&ImagesArgs { quiet, output }, &images, now).unwrap();
        expect![[r#"
            IMAGE                       ID               SIZE  CREATED  USED
            docker.io/library/x:1       0123456789ab  4.8 MiB  3d ago   yes
            docker.io/library/x:latest  0123456789ab  4.8 MiB  3d ago   yes
            sha256:aa                   aa                  -  -        no
        "#]]
        .assert_eq(&show(false, None));
        expect![[r#"
            IMAGE                       ID               SIZE  CREATED  USED  ARCHITECTURE  DIGEST
            docker.io/library/x:1       0123456789ab  4.8 MiB  3d ago   yes   amd64         sha256:ff
            docker.io/library/x:latest  0123456789ab  4.8 MiB  3d ago   yes   amd64         sha256:ff
            sha256:aa                   aa                  -  -        no    -             -
        "#]]
        .assert_eq(&show(false, Some(Format::Wide)));
        expect![[r#"
            docker.io/library/x:1
            docker.io/library/x:latest
            sha256:aa
        "#]]
        .assert_eq(&show(true, None));
    }
}
