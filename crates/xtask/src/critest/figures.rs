//! What critest's benchmarks have measured: four files with every operation's times, and one time in the report.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::Value;

/// How often each operation is done, one after the other; critest leaves out a benchmark without a number.
const PARAMETERS: &str = "containersNumber: 20\npodsNumber: 20\nimagesNumber: 20\n";
const PARAMETERS_FILE: &str = "benchmark.yaml";
const RESULTS_FOLDER: &str = "benchmark";
/// The files that it writes, and of what they tell.
const RESULTS: [(&str, &str); 4] = [
    ("pod_benchmark_data.json", "pod"),
    ("container_benchmark_data.json", "container"),
    ("image_lifecycle_benchmark_data.json", "image"),
    ("image_listing_benchmark_data.json", "images"),
];
/// The one that stands in the report.
const EXPERIMENT: &str = "start-container-benchmark";

/// A file of results.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Results {
    operations_names: Vec<String>,
    datapoints: Vec<Datapoint>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Datapoint {
    /// In the order of the names.
    operations_durations_ns: Vec<u64>,
}

/// Has critest run its benchmarks and write what they measure below `folder`.
pub(super) fn ask(command: &mut Command, folder: &Path) -> anyhow::Result<()> {
    let (parameters, results) = (folder.join(PARAMETERS_FILE), folder.join(RESULTS_FOLDER));
    fs::write(&parameters, PARAMETERS)?;
    fs::create_dir_all(&results)?;
    command.arg("-benchmark").arg("-benchmarking-params-file").arg(parameters);
    command.arg("-benchmarking-output-dir").arg(results);
    Ok(())
}

/// What there is, a line for each operation.
pub(super) fn read(folder: &Path, report: &Value) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::new();
    for (file, what) in RESULTS {
        let path = folder.join(RESULTS_FOLDER).join(file);
        // Of a benchmark that has failed, which the report tells.
        let Ok(text) = fs::read(&path) else { continue };
        let results = serde_json::from_slice(&text).with_context(|| format!("{file} is not what it was"))?;
        lines.extend(operations(what, &results)?);
    }
    lines.extend(from_scratch(report).map(|time| line("pod", "all of it, with a container", &mut [time])));
    Ok(lines)
}

fn operations(what: &str, results: &Results) -> anyhow::Result<Vec<String>> {
    let each = results.operations_names.iter().enumerate().map(|(index, name)| {
        let times = results.datapoints.iter().filter_map(|point| point.operations_durations_ns.get(index));
        let mut times: Vec<Duration> = times.copied().map(Duration::from_nanos).collect();
        ensure!(!times.is_empty(), "there is no time of {what}, {name}");
        Ok(line(what, name, &mut times))
    });
    each.collect()
}

/// Pod and container made, started, stopped and removed; the one duration of gmeasure's experiment, in nanoseconds.
fn from_scratch(report: &Value) -> Option<Duration> {
    let specs = report.as_array()?.iter().flat_map(|suite| suite["SpecReports"].as_array().into_iter().flatten());
    let mut entries = specs.flat_map(|spec| spec["ReportEntries"].as_array().into_iter().flatten());
    let entry = entries.find(|entry| entry["Name"] == EXPERIMENT)?;
    let experiment: Value = serde_json::from_str(entry["Value"]["AsJSON"].as_str()?).ok()?;
    experiment.pointer("/Measurements/0/Durations/0")?.as_u64().map(Duration::from_nanos)
}

fn line(what: &str, operation: &str, times: &mut [Duration]) -> String {
    times.sort_unstable();
    let milliseconds = |time: Option<&Duration>| time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e3);
    let (middle, most) = (milliseconds(times.get(times.len() / 2)), milliseconds(times.last()));
    format!("{what}, {operation}: {middle:.1} ms, at most {most:.1} ms, of {}", times.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_file() {
        let text = r#"{"operationsNames": ["Create", "Stop"], "numParallel": 1, "datapoints": [
            {"sampleIndex": 0, "operationsDurationsNs": [1000000, 5500000]},
            {"sampleIndex": 1, "operationsDurationsNs": [3000000, 500000]},
            {"sampleIndex": 2, "operationsDurationsNs": [2000000, 1500000]}]}"#;
        let lines = operations("pod", &serde_json::from_str(text).unwrap()).unwrap();
        assert_eq!(lines, ["pod, Create: 2.0 ms, at most 3.0 ms, of 3", "pod, Stop: 1.5 ms, at most 5.5 ms, of 3"]);
        let empty = Results { operations_names: vec!["Create".to_owned()], datapoints: Vec::new() };
        assert!(operations("pod", &empty).is_err());
    }

    #[test]
    fn the_figure_of_the_report() {
        let experiment = r#"{"Measurements": [{"Durations": [42000000]}]}"#;
        let entry = serde_json::json!({"Name": EXPERIMENT, "Value": {"AsJSON": experiment, "Representation": "x"}});
        let report = serde_json::json!([{"SpecReports": [{}, {"ReportEntries": [entry]}]}]);
        assert_eq!(from_scratch(&report), Some(Duration::from_millis(42)));
        assert_eq!(from_scratch(&serde_json::json!([])), None);
    }
}
