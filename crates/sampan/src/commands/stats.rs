//! `sampan stats`: what instances use, once or again and again.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;
use sampan_kit::quantity::Quantity;
use serde_json::Value;

use super::{Context, node};
use crate::client::path;
use crate::failure::Failure;
use crate::output::{self, Format, Table, bytes};
use crate::pods::{items, list, text};

const EXAMPLES: &str = "\
Examples:
  sampan stats                        all instances of this namespace, refreshed every second
  sampan stats --no-stream web        one, once
  sampan stats --no-stream -o json    for a program";

/// Between two looks; the node measures CPU over about as long.
const REFRESH: Duration = Duration::from_secs(1);
/// Clears a terminal from its upper left corner on.
const HOME_AND_CLEAR: &str = "\u{1b}[H\u{1b}[J";

// Whose use to show.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct StatsArgs {
    /// Once, and not again every second.
    #[arg(long)]
    no_stream: bool,
    /// json or yaml (the Summary API's pods), once.
    #[arg(short, long, value_name = "FORM")]
    output: Option<Format>,
    /// The instances (default: all that run).
    names: Vec<String>,
}

/// Runs `sampan stats`.
pub(crate) async fn execute(args: &StatsArgs, context: &Context) -> Result<i32, Failure> {
    let node = node::name(context, "stats").await?;
    let once = args.no_stream || args.output.is_some() || !std::io::stdout().is_terminal();
    for name in &args.names {
        context.pod(name).await?;
    }
    loop {
        let summary = context.client.get(&path::node(&node, "stats/summary")).await;
        let mut summary = summary.map_err(|error| error.about("stats"))?;
        let pods = context.client.get(&path::pods(Some(&context.namespace))).await;
        let pods = pods.map_err(|error| error.about("stats"))?;
        if let Some(list) = summary.get_mut("pods").and_then(Value::as_array_mut) {
            list.retain(|pod| is_wanted(args, context, pod));
        }
        let shown = match args.output {
            Some(Format::Json) => output::json(&summary),
            Some(Format::Yaml) => output::yaml(&summary)?,
            Some(Format::Wide | Format::Name) => {
                return Err(Failure::explain("stats -o", "there is no such form", "use json or yaml"));
            }
            None => table(&summary, &pods),
        };
        if once {
            output::print(&shown)?;
            return Ok(0);
        }
        output::print(&format!("{HOME_AND_CLEAR}{shown}"))?;
        tokio::time::sleep(REFRESH).await;
    }
}

fn is_wanted(args: &StatsArgs, context: &Context, pod: &Value) -> bool {
    let name = text(pod, "/podRef/name");
    text(pod, "/podRef/namespace") == context.namespace
        && (args.names.is_empty() || args.names.iter().any(|wanted| wanted == name))
}

fn table(summary: &Value, pods: &Value) -> String {
    let limits: HashMap<&str, u64> =
        items(pods).iter().filter_map(|pod| Some((text(pod, "/metadata/uid"), memory_limit(pod)?))).collect();
    let mut table = Table::new(&["NAME", "CPU", "MEMORY", "OF", "RECEIVED", "SENT", "DISK", "OF"]);
    for column in 1..8 {
        table = table.right_align(column);
    }
    for pod in list(summary, "/pods") {
        let number = |pointer: &str| pod.pointer(pointer).and_then(Value::as_u64);
        let amount = |pointer: &str| number(pointer).map(bytes).unwrap_or_default();
        let cpu = number("/cpu/usageNanoCores").or_else(|| sum(pod, "/cpu/usageNanoCores"));
        let memory = number("/memory/workingSetBytes").or_else(|| sum(pod, "/memory/workingSetBytes"));
        table.row(vec![
            text(pod, "/podRef/name").to_owned(),
            cpu.map(|nano| format!("{:.1} %", nano as f64 / 1e7)).unwrap_or_default(),
            memory.map(bytes).unwrap_or_default(),
            limits.get(text(pod, "/podRef/uid")).copied().map(bytes).unwrap_or_default(),
            amount("/network/rxBytes"),
            amount("/network/txBytes"),
            amount("/ephemeral-storage/usedBytes"),
            amount("/ephemeral-storage/capacityBytes"),
        ]);
    }
    table.render()
}

fn sum(pod: &Value, pointer: &str) -> Option<u64> {
    let containers = list(pod, "/containers").iter();
    containers.filter_map(|container| container.pointer(pointer).and_then(Value::as_u64)).reduce(u64::saturating_add)
}

/// The memory all containers may use together; `None` when one of them has no limit.
fn memory_limit(pod: &Value) -> Option<u64> {
    let containers = list(pod, "/spec/containers").iter();
    containers
        .map(|container| Quantity::parse(text(container, "/resources/limits/memory")).ok()?.units().try_into().ok())
        .try_fold(0_u64, |total, limit: Option<u64>| total.checked_add(limit?))
        .filter(|total| *total > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn use_in_a_table() {
        let summary = json!({"pods": [
            {"podRef": {"name": "web", "uid": "u1"}, "containers": [
                {"name": "a", "cpu": {"usageNanoCores": 250_000_000}, "memory": {"workingSetBytes": 1 << 20}},
                {"name": "b", "cpu": {"usageNanoCores": 250_000_000}, "memory": {"workingSetBytes": 1 << 20}}],
             "network": {"rxBytes": 10, "txBytes": 2048}, "ephemeral-storage": {"usedBytes": 4096, "capacityBytes": 1 << 30}},
            {"podRef": {"name": "bare", "uid": "u2"}},
        ]});
        let pods = json!({"items": [{"metadata": {"uid": "u1"}, "spec": {"containers": [
            {"resources": {"limits": {"memory": "64Mi"}}}, {"resources": {"limits": {"memory": "64Mi"}}}]}},
            {"metadata": {"uid": "u2"}, "spec": {"containers": [{}]}}]});
        expect![[r#"
            NAME     CPU   MEMORY         OF  RECEIVED     SENT     DISK       OF
            web   50.0 %  2.0 MiB  128.0 MiB      10 B  2.0 KiB  4.0 KiB  1.0 GiB
            bare       -        -          -         -        -        -        -
        "#]]
        .assert_eq(&table(&summary, &pods));
    }
}
