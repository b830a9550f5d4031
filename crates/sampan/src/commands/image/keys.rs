//! `sampan image keys`: whose indexes are believed.

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::{Form, show};
use crate::client::{JSON, path};
use crate::commands::{Context, node};
use crate::failure::Failure;
use crate::output::{Table, print_line};
use crate::pods::{list, text};

const EXAMPLES: &str = "\
Examples:
  sampan image keys                                       the keys that this machine believes; its own first
  sampan image keys add builder sampan-ed25519-public:…   believe what another machine signs
  sampan image keys add builder builder.pub               the same, from a file
  sampan image keys remove builder                        believe it no more
  sampan image keys generate --fleet                      a key for several machines to share

An index, pack or trace that is not signed by one of these keys is never used.";

// What to do with keys.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct KeysArgs {
    /// The form of the list.
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    output: Form,
    #[command(subcommand)]
    command: Option<KeysCommand>,
}

#[derive(Debug, Clone, Subcommand)]
enum KeysCommand {
    /// List the keys that this machine believes.
    List {
        /// The form of the list.
        #[arg(short, long, value_name = "FORM", default_value = "table")]
        output: Form,
    },
    /// Make this machine's own key if there is none, or one for a fleet to share.
    Generate {
        /// Make the key of a fleet.
        #[arg(long)]
        fleet: bool,
    },
    /// Believe what another key signs.
    Add {
        /// What to call it here.
        name: String,
        /// The key as `sampan image keys` shows it, or a file that holds it.
        key: String,
    },
    /// Believe a key no more.
    Remove {
        /// Its name here.
        name: String,
    },
}

/// Runs `sampan image keys`.
pub(crate) async fn execute(args: &KeysArgs, context: &Context) -> Result<i32, Failure> {
    let address = path::node(&node::name(context, "keys").await?, "image-keys");
    match &args.command {
        None => list_keys(context, &address, args.output).await?,
        Some(KeysCommand::List { output }) => list_keys(context, &address, *output).await?,
        // Whoever lists keys sees the node's own, which is made for that.
        Some(KeysCommand::Generate { fleet: false }) => list_keys(context, &address, Form::Table).await?,
        Some(KeysCommand::Generate { fleet: true }) => {
            let made = context.client.call(Method::POST, &address, Some((JSON, &json!({"fleet": true})))).await;
            let made = made.map_err(|error| error.about("fleet"))?;
            print_line(text(&made, "/key"))?;
            print_line(&format!("copy {} to the other machines' keys folders", text(&made, "/file")))?;
        }
        Some(KeysCommand::Add { name, key }) => {
            let request = json!({"name": name, "key": key_text(key)?});
            let added = context.client.call(Method::POST, &address, Some((JSON, &request))).await;
            let added = added.map_err(|error| error.about(name))?;
            print_line(&format!("{name} {}", text(&added, "/id")))?;
        }
        Some(KeysCommand::Remove { name }) => {
            let address = format!("{address}{}", path::query([("name", name.clone())]));
            let removed = context.client.call(Method::DELETE, &address, None).await;
            removed.map_err(|error| error.about(name))?;
            print_line(name)?;
        }
    }
    Ok(0)
}

async fn list_keys(context: &Context, address: &str, form: Form) -> Result<(), Failure> {
    let keys = context.client.get(address).await.map_err(|error| error.about("keys"))?;
    show(form, &keys, table)
}

/// The key itself, or the first line of the file that holds it.
fn key_text(key: &str) -> Result<String, Failure> {
    if key.contains(':') && !std::path::Path::new(key).exists() {
        return Ok(key.to_owned());
    }
    let failed = |error| Failure::explain(key, error, "give the key itself, or a file that holds it");
    let text = std::fs::read_to_string(key).map_err(failed)?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

fn table(keys: &Value) -> String {
    let mut table = Table::new(&["NAME", "ID", "BELIEVED AS", "KEY"]);
    for key in list(keys, "/keys") {
        let cells = ["/name", "/id", "/role", "/key"].map(|field| text(key, field).to_owned());
        table.row(cells.to_vec());
    }
    table.render()
}
