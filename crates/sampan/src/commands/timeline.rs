//! `sampan timeline`: where the time of an instance's start went.

use std::fmt::Write as _;

use clap::Args;
use jiff::Timestamp;
use serde_json::Value;

use super::Context;
use crate::failure::{Failure, one_line};
use crate::output::{self, Format};
use crate::pods::text;

/// Columns of the longest bar.
const BAR_COLUMNS: f64 = 40.0;
/// What is shown of a timeline; the node writes ten phases a start.
const PHASES_MAX: usize = 200;

// Whose start to show.
#[derive(Debug, Clone, Args)]
pub(crate) struct TimelineArgs {
    /// json or yaml instead of a picture.
    #[arg(short, long, value_name = "FORM")]
    output: Option<Format>,
    /// The instance.
    name: String,
}

/// Runs `sampan timeline`.
pub(crate) async fn execute(args: &TimelineArgs, context: &Context) -> Result<i32, Failure> {
    let pod = context.pod(&args.name).await?;
    let annotation = text(&pod, "/metadata/annotations/sampan.dev~1timeline");
    if annotation.is_empty() {
        return Err(Failure::explain(
            &args.name,
            "it has no timeline yet",
            "it gets one when it has started; see its state with: sampan ps -a",
        ));
    }
    let unreadable = |reason: String| {
        Failure::explain(
            &args.name,
            format_args!("its timeline is unreadable ({reason})"),
            "compare versions with: sampan version",
        )
    };
    let phases: Value = serde_json::from_str(annotation).map_err(|error| unreadable(error.to_string()))?;
    let text = match args.output {
        Some(Format::Json) => output::json(&phases),
        Some(Format::Yaml) => output::yaml(&phases)?,
        Some(Format::Wide | Format::Name) => {
            return Err(Failure::explain("timeline -o", "there is no such form", "use json or yaml"));
        }
        None => render(&phases).ok_or_else(|| unreadable("no list of phases".to_owned()))?,
    };
    output::print(&text)?;
    Ok(0)
}

/// One phase, in milliseconds since the first began.
struct Phase<'text> {
    name: &'text str,
    start: f64,
    took: f64,
}

fn phases(timeline: &Value) -> Option<Vec<Phase<'_>>> {
    let moment = |phase: &Value| text(phase, "/start").parse::<Timestamp>().ok();
    let list = timeline.as_array()?.get(..timeline.as_array()?.len().min(PHASES_MAX))?;
    let first = list.iter().filter_map(moment).min()?;
    let phase = |phase| {
        let start = moment(phase)?.duration_since(first).as_secs_f64() * 1000.0;
        let took = phase.get("ms").and_then(Value::as_f64)?.max(0.0);
        Some(Phase { name: text(phase, "/phase"), start, took })
    };
    list.iter().map(phase).collect()
}

fn render(timeline: &Value) -> Option<String> {
    let phases = phases(timeline)?;
    let total = phases.iter().map(|phase| phase.start + phase.took).fold(0.0, f64::max);
    let column = |moment: f64| if total > 0.0 { (moment / total * BAR_COLUMNS).round() as usize } else { 0 };
    let mut picture = format!("{:<12}{:>12}{:>12}\n", "PHASE", "AT", "TOOK");
    for Phase { name, start, took } in phases {
        let begin = column(start).min(BAR_COLUMNS as usize - 1);
        let bar = (column(start + took) - begin.min(column(start + took))).max(1);
        let line = format!(
            "{:<12}{:>12}{:>12}  {}{}",
            one_line(name),
            format!("{start:.1} ms"),
            format!("{took:.1} ms"),
            " ".repeat(begin),
            "█".repeat(bar)
        );
        writeln!(picture, "{line}").ok()?;
    }
    writeln!(picture, "{:<12}{:>12}{:>12}", "total", "", format!("{total:.1} ms")).ok()?;
    Some(picture)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn bars_stand_where_the_time_went() {
        let timeline = json!([
            {"phase": "admitted", "start": "2026-01-01T00:00:00.000000Z", "ms": 0.4},
            {"phase": "image", "start": "2026-01-01T00:00:00.001000Z", "ms": 6.0},
            {"phase": "sandbox", "start": "2026-01-01T00:00:00.001000Z", "ms": 2.5},
            {"phase": "start", "start": "2026-01-01T00:00:00.008000Z", "ms": 2.0},
            {"phase": "ready", "start": "2026-01-01T00:00:00.010000Z", "ms": 0.0},
        ]);
        expect![[r#"
            PHASE                 AT        TOOK
            admitted          0.0 ms      0.4 ms  ██
            image             1.0 ms      6.0 ms      ████████████████████████
            sandbox           1.0 ms      2.5 ms      ██████████
            start             8.0 ms      2.0 ms                                  ████████
            ready            10.0 ms      0.0 ms                                         █
            total                        10.0 ms
        "#]]
        .assert_eq(&render(&timeline).unwrap());
    }

    #[test]
    fn odd_timelines_are_refused_not_crashed_on() {
        assert!(render(&json!({})).is_none() && render(&json!([])).is_none());
        assert!(render(&json!([{"phase": "x", "start": "soon", "ms": 1}])).is_none());
        assert!(render(&json!([{"phase": "x", "start": "2026-01-01T00:00:00Z", "ms": 1e300}])).is_some());
        assert!(render(&json!([{"phase": "x", "start": "2026-01-01T00:00:00Z", "ms": 0}])).is_some());
    }
}
