//! `sampan ps`: the instances there are.

use std::fmt::Write as _;

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Context;
use crate::client::path;
use crate::failure::Failure;
use crate::output::{self, Format, Table, age};
use crate::pods::{is_finished, items, list, summary, text};

const EXAMPLES: &str = "\
Examples:
  sampan ps                           what runs
  sampan ps -a                        what has ended, too
  sampan ps -A -o wide                every namespace, with addresses and ids
  sampan rm -f $(sampan ps -aq)       remove everything of this namespace";

// Which instances, and how to show them.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PsArgs {
    /// Show those that have ended, too.
    #[arg(short, long)]
    all: bool,
    /// Of every namespace.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only names.
    #[arg(short, long, conflicts_with = "output")]
    quiet: bool,
    /// Only those with these labels, such as app=web.
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// The form of the list.
    #[arg(short, long, value_name = "FORM")]
    output: Option<Format>,
}

/// Runs `sampan ps`.
pub(crate) async fn execute(args: &PsArgs, context: &Context) -> Result<i32, Failure> {
    let namespace = (!args.all_namespaces).then_some(context.namespace.as_str());
    let query = path::query(args.selector.clone().map(|selector| ("labelSelector", selector)));
    let mut pods = context.client.get(&(path::pods(namespace) + &query)).await.map_err(|error| error.about("ps"))?;
    if !args.all
        && let Some(pods) = pods.get_mut("items").and_then(Value::as_array_mut)
    {
        pods.retain(|pod| !is_finished(pod));
    }
    output::print(&render(args, &pods, Timestamp::now())?)?;
    Ok(0)
}

fn render(args: &PsArgs, pods: &Value, now: Timestamp) -> Result<String, Failure> {
    let names = |prefix: &str| {
        items(pods).iter().fold(String::new(), |mut text_so_far, pod| {
            writeln!(text_so_far, "{prefix}{}", crate::failure::one_line(text(pod, "/metadata/name"))).ok();
            text_so_far
        })
    };
    Ok(match args.output {
        _ if args.quiet => names(""),
        Some(Format::Name) => names("pod/"),
        Some(Format::Json) => output::json(&as_list(pods)),
        Some(Format::Yaml) => output::yaml(&as_list(pods))?,
        Some(Format::Wide) => table(args, pods, now, true),
        None => table(args, pods, now, false),
    })
}

/// A `v1` `List`, whose items say by themselves what they are, as kubectl prints it.
fn as_list(pods: &Value) -> Value {
    let items: Vec<Value> = items(pods)
        .iter()
        .map(|pod| {
            let mut full = json!({"apiVersion": "v1", "kind": "Pod"});
            if let (Some(full), Some(pod)) = (full.as_object_mut(), pod.as_object()) {
                full.extend(pod.clone());
            }
            full
        })
        .collect();
    json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items})
}

fn table(args: &PsArgs, pods: &Value, now: Timestamp, wide: bool) -> String {
    let mut header = vec!["NAME", "IMAGE", "STATUS", "AGE", "PORTS"];
    if args.all_namespaces {
        header.insert(0, "NAMESPACE");
    }
    if wide {
        header.extend(["ADDRESS", "NODE", "COMMAND", "UID"]);
    }
    let mut table = Table::new(&header);
    for pod in items(pods) {
        let mut cells = vec![
            text(pod, "/metadata/name").to_owned(),
            images(pod),
            summary(pod, now),
            age(text(pod, "/metadata/creationTimestamp"), now),
            ports(pod),
        ];
        if args.all_namespaces {
            cells.insert(0, text(pod, "/metadata/namespace").to_owned());
        }
        if wide {
            cells.extend([
                text(pod, "/status/podIP").to_owned(),
                text(pod, "/spec/nodeName").to_owned(),
                command(pod),
                text(pod, "/metadata/uid").to_owned(),
            ]);
        }
        table.row(cells);
    }
    table.render()
}

fn images(pod: &Value) -> String {
    let images: Vec<&str> = list(pod, "/spec/containers").iter().map(|container| text(container, "/image")).collect();
    images.join(",")
}

fn command(pod: &Value) -> String {
    let words = list(pod, "/spec/containers/0/command").iter().chain(list(pod, "/spec/containers/0/args"));
    let line: Vec<&str> = words.filter_map(Value::as_str).collect();
    let line = line.join(" ");
    if line.chars().count() > 40 { line.chars().take(39).chain(['…']).collect() } else { line }
}

fn ports(pod: &Value) -> String {
    let ports = list(pod, "/spec/containers").iter().flat_map(|container| list(container, "/ports"));
    let published = ports.filter_map(|port| {
        let host = port.get("hostPort").and_then(Value::as_u64).filter(|port| *port > 0)?;
        let container = port.get("containerPort").and_then(Value::as_u64)?;
        let address = match text(port, "/hostIP") {
            "" | "0.0.0.0" | "::" => String::new(),
            address if address.contains(':') => format!("[{address}]:"),
            address => format!("{address}:"),
        };
        let protocol = if text(port, "/protocol") == "UDP" { "/udp" } else { "" };
        Some(format!("{address}{host}->{container}{protocol}"))
    });
    published.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;
    use expect_test::{Expect, expect};

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: PsArgs,
    }

    fn check(line: &[&str], expected: Expect) {
        let args = Line::try_parse_from(["ps"].iter().chain(line)).unwrap().args;
        let pods = json!({"items": [
            {"metadata": {"name": "web", "namespace": "default", "uid": "u1", "creationTimestamp": "2026-01-01T00:00:00Z"},
             "spec": {"nodeName": "here", "containers": [{"name": "main", "image": "nginx", "args": ["x"], "ports": [
                {"containerPort": 80, "hostPort": 8080, "protocol": "TCP"}, {"containerPort": 9},
                {"containerPort": 53, "hostPort": 53, "hostIP": "::1", "protocol": "UDP"}]}]},
             "status": {"phase": "Running", "podIP": "10.88.0.2", "containerStatuses": [
                {"name": "main", "restartCount": 2, "state": {"running": {"startedAt": "2026-01-01T00:00:01Z"}}}]}},
            {"metadata": {"name": "evil\u{1b}[2J", "namespace": "b"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}}
        ]});
        expected.assert_eq(&render(&args, &pods, "2026-01-01T00:01:31Z".parse().unwrap()).unwrap());
    }

    #[test]
    fn lists_in_every_form() {
        check(
            &[],
            expect![[r#"
            NAME      IMAGE  STATUS              AGE  PORTS
            web       nginx  Up 90s, 2 restarts  91s  8080->80, [::1]:53->53/udp
            evil?[2J  ,      Pending             -    -
        "#]],
        );
        check(
            &["-A", "-o", "wide"],
            expect![[r#"
            NAMESPACE  NAME      IMAGE  STATUS              AGE  PORTS                       ADDRESS    NODE  COMMAND  UID
            default    web       nginx  Up 90s, 2 restarts  91s  8080->80, [::1]:53->53/udp  10.88.0.2  here  x        u1
            b          evil?[2J  ,      Pending             -    -                           -          -     -        -
        "#]],
        );
        check(
            &["-q"],
            expect![[r#"
            web
            evil?[2J
        "#]],
        );
        check(
            &["-o", "name"],
            expect![[r#"
            pod/web
            pod/evil?[2J
        "#]],
        );
    }
}
