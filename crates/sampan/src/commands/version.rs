//! `sampan version`: this command's version and the service's.

use clap::Args;
use serde_json::{Value, json};

use super::Context;
use crate::failure::Failure;
use crate::output::{self, Format};
use crate::pods::text;

// How to show it.
#[derive(Debug, Clone, Args)]
pub(crate) struct VersionArgs {
    /// json or yaml instead of lines.
    #[arg(short, long, value_name = "FORM")]
    output: Option<Format>,
}

/// Runs `sampan version`. Without a service this command's own version is shown, and then the reason.
pub(crate) async fn execute(args: &VersionArgs, context: &Context) -> Result<i32, Failure> {
    let server = context.client.get("/version").await;
    let client = json!({"version": env!("CARGO_PKG_VERSION"), "architecture": std::env::consts::ARCH});
    let versions = json!({"client": client, "server": server.as_ref().unwrap_or(&Value::Null)});
    let shown = match args.output {
        Some(Format::Json) => output::json(&versions),
        Some(Format::Yaml) => output::yaml(&versions)?,
        Some(Format::Wide | Format::Name) => {
            return Err(Failure::explain("version -o", "there is no such form", "use json or yaml"));
        }
        None => {
            let mut lines = format!("client  {}\n", text(&versions, "/client/version"));
            if server.is_ok() {
                lines += &format!("server  {}\n", crate::failure::one_line(text(&versions, "/server/gitVersion")));
            }
            lines
        }
    };
    output::print(&shown)?;
    server.map(|_| 0).map_err(|error| error.about("version"))
}
