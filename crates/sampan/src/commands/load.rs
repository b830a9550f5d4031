//! `sampan load`: the images of an archive of `docker save`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use super::pull::fetch;
use super::run::pod::{Surroundings, image_reference};
use super::{Context, node};
use crate::client::path;
use crate::failure::Failure;
use crate::output::print_line;
use crate::pods::{list, text};
use crate::progress::Mode;

const EXAMPLES: &str = "\
Examples:
  sampan load -i app.tar                  what docker save or podman save wrote
  docker save app:1.2 | sampan load       without a file between
  sampan run docker-archive:app.tar       run it without keeping its name";

// What to load.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct LoadArgs {
    /// The archive; standard input without one.
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Show nothing but the result.
    #[arg(short, long)]
    quiet: bool,
}

/// Runs `sampan load`.
pub(crate) async fn execute(args: &LoadArgs, context: &Context) -> Result<i32, Failure> {
    // Held until the end: what was spooled has no other name.
    let mut spooled = None;
    let (file, archive) = match &args.input {
        Some(input) => {
            let file = input.display().to_string();
            let archive = image_reference(&format!("docker-archive:{file}"), &Surroundings::of_this_process())?;
            (file, archive)
        }
        None => {
            let descriptor = spooled.insert(spool()?).as_raw_fd();
            ("standard input".to_owned(), format!("docker-archive:/proc/{}/fd/{descriptor}", std::process::id()))
        }
    };
    let node = node::name(context, &file).await?;
    let query = path::query([("file", archive.trim_start_matches("docker-archive:").to_owned())]);
    let names = context.client.get(&path::node(&node, &format!("images/archive{query}"))).await;
    let names = names.map_err(|error| error.about(&file))?;
    let names: Vec<&str> = list(&names, "/names").iter().filter_map(Value::as_str).collect();
    // An image without a name is known by its archive.
    let wanted: Vec<String> = match names[..] {
        [] if spooled.is_some() => {
            return Err(Failure::explain(&file, "its image has no name", "name the file with --input"));
        }
        [] => vec![archive],
        _ => names.iter().map(|name| format!("{archive}:{name}")).collect(),
    };
    let mode = if args.quiet { Mode::Quiet } else { Mode::for_stderr() };
    for image in wanted {
        let done = fetch(context, &image, true, mode).await?;
        print_line(&format!("loaded {} {}", text(&done, "/reference"), text(&done, "/digest")))?;
    }
    Ok(0)
}

/// Standard input as a file without a name, which goes with this process however it ends.
fn spool() -> Result<File, Failure> {
    let failed = |error: io::Error| Failure::explain("standard input", error, "name the archive with --input");
    if io::IsTerminal::is_terminal(&io::stdin()) {
        return Err(Failure::explain("load", "standard input is a terminal", "name an archive with --input"));
    }
    // Archives are large, and /tmp may be in memory.
    let mut file = tempfile::tempfile_in("/var/tmp").map_err(failed)?;
    io::copy(&mut io::stdin().lock(), &mut file).map_err(failed)?;
    Ok(file)
}
