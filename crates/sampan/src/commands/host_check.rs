//! `sampan host check`: what this machine offers, what is missing, and what to do about it.
//!
//! A running service is asked, because it sees what instances will see; without one this process looks itself.

use clap::Args;
use serde_json::{Value, json};

use super::{Context, node};
use crate::client::path;
use crate::failure::Failure;
use crate::output::{self, Format, Table};
use crate::pods::{list, text};

// How to show it.
#[derive(Debug, Clone, Args)]
pub(crate) struct HostCheckArgs {
    /// json or yaml instead of a table.
    #[arg(short, long, value_name = "FORM")]
    output: Option<Format>,
}

/// Runs `sampan host check`; exit code 1 when something required is missing.
pub(crate) async fn execute(args: &HostCheckArgs, context: &Context) -> Result<i32, Failure> {
    let report = match context.client.answers().await {
        Ok(()) => {
            let node = node::name(context, "host check").await?;
            let report = context.client.get(&path::node(&node, "host-check")).await;
            report.map_err(|error| error.about("host check"))?
        }
        Err(_) => json!({"checks": sampan_runtime::host_check::run()}),
    };
    let shown = match args.output {
        Some(Format::Json) => output::json(&report),
        Some(Format::Yaml) => output::yaml(&report)?,
        Some(Format::Wide | Format::Name) => {
            return Err(Failure::explain("host check -o", "there is no such form", "use json or yaml"));
        }
        None => table(&report),
    };
    output::print(&shown)?;
    Ok(i32::from(!is_sufficient(&report)))
}

fn is_ok(check: &Value) -> bool {
    check.get("ok").and_then(Value::as_bool) == Some(true)
}

fn is_sufficient(report: &Value) -> bool {
    list(report, "/checks").iter().all(|check| is_ok(check) || text(check, "/need") == "optional")
}

fn table(report: &Value) -> String {
    let mut table = Table::new(&["", "WHAT", "FOUND", "WHAT TO DO"]);
    for check in list(report, "/checks") {
        let verdict = match (is_ok(check), text(check, "/need")) {
            (true, _) => "ok",
            (false, "optional") => "could be better",
            (false, _) => "MISSING",
        };
        let remedy = text(check, "/remedy");
        table.row(vec![
            verdict.to_owned(),
            text(check, "/name").to_owned(),
            text(check, "/found").to_owned(),
            if remedy.is_empty() { " ".to_owned() } else { remedy.to_owned() },
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn a_table_that_says_what_to_do() {
        let report = json!({"checks": [
            {"name": "kernel", "ok": true, "need": "required", "found": "6.12", "remedy": ""},
            {"name": "kvm", "ok": false, "need": "optional", "found": "missing", "remedy": "switch it on"},
            {"name": "erofs", "ok": false, "need": "required", "found": "missing", "remedy": "modprobe erofs"},
        ]});
        expect![[r#"
                             WHAT    FOUND    WHAT TO DO
            ok               kernel  6.12
            could be better  kvm     missing  switch it on
            MISSING          erofs   missing  modprobe erofs
        "#]]
        .assert_eq(&table(&report));
        assert!(!is_sufficient(&report) && is_sufficient(&json!({"checks": []})));
    }
}
