//! How a run of critest went, by its own report, and how `docs/cri.md` says that it goes.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use serde_json::Value;

/// Lists of specs in `docs/cri.md`, an item each with its reason, between one of these and the end.
const SKIPPED: &str = "<!-- skipped specs -->";
const FAILING_WITH_MIRRORS: &str = "<!-- specs that fail with mirrors -->";
const LIST_ENDS: &str = "<!-- end -->";

/// Reasons that do not always hold.
const NO_APPARMOR: &str = "the kernel has no AppArmor";
const BENCHMARK: &str = "runs with `--benchmark` only";

/// How a run went.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) passed: Vec<String>,
    /// With what they said.
    pub(super) failed: BTreeMap<String, String>,
    pub(super) skipped: BTreeSet<String>,
}

/// How one should go.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Expectation {
    /// All specs that pass, where they are few; else any may.
    pub(super) passed: Option<BTreeSet<String>>,
    pub(super) failed: BTreeSet<String>,
    /// All that are skipped; else any may be.
    pub(super) skipped: Option<BTreeSet<String>>,
    /// Nothing was left out by the caller, so that what does not happen can be missed.
    pub(super) is_whole: bool,
}

impl Outcome {
    /// Reads Ginkgo's report: a list of suites, each with its specs.
    pub(super) fn read(report: &Value) -> anyhow::Result<Self> {
        let mut outcome = Self::default();
        let suites = report.as_array().context("critest's report is not a list")?;
        for spec in suites.iter().flat_map(|suite| suite["SpecReports"].as_array().into_iter().flatten()) {
            if spec["LeafNodeType"] != "It" {
                continue;
            }
            let parts = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten().chain([&spec["LeafNodeText"]]);
            let name = parts.filter_map(Value::as_str).collect::<Vec<_>>().join(" ");
            match spec["State"].as_str().unwrap_or_default() {
                "passed" => outcome.passed.push(name),
                "skipped" | "pending" => drop(outcome.skipped.insert(name)),
                state => {
                    let why = spec["Failure"]["Message"].as_str().unwrap_or(state).to_owned();
                    outcome.failed.insert(name, why);
                }
            }
        }
        Ok(outcome)
    }

    /// What is not as it should be, a line each.
    pub(super) fn complaints(&self, expected: &Expectation) -> Vec<String> {
        let failed = self.failed.iter().filter(|(name, _)| !expected.failed.contains(*name));
        let mut complaints: Vec<String> =
            failed.map(|(name, why)| format!("failed: {name}: {}", why.replace('\n', " "))).collect();
        if expected.is_whole {
            let failed = self.failed.keys().cloned().collect();
            let failures = differences("failing", &failed, Some(&expected.failed)).into_iter();
            // One that nobody expects has been told with its reason already.
            complaints.extend(failures.filter(|complaint| complaint.starts_with(MISSING)));
            complaints.extend(differences("skipped", &self.skipped, expected.skipped.as_ref()));
            let passed = self.passed.iter().cloned().collect();
            complaints.extend(differences("passing", &passed, expected.passed.as_ref()));
        }
        if self.passed.is_empty() {
            complaints.push("no spec passed".to_owned());
        }
        complaints
    }
}

const MISSING: &str = "by docs/cri.md, but not in truth, ";

/// What only one of two lists has; nothing where all is expected.
fn differences(what: &str, seen: &BTreeSet<String>, expected: Option<&BTreeSet<String>>) -> Vec<String> {
    let expected = expected.unwrap_or(seen);
    let new = seen.difference(expected).map(|name| format!("{what}, but not by docs/cri.md: {name}"));
    let gone = expected.difference(seen).map(|name| format!("{MISSING}{what}: {name}"));
    new.chain(gone).collect()
}

/// What `docs/cri.md` says: specs with their reasons.
#[derive(Debug)]
pub(super) struct Page {
    skipped: BTreeMap<String, String>,
    failing_with_mirrors: BTreeMap<String, String>,
}

impl Page {
    pub(super) fn read(page: &str) -> anyhow::Result<Self> {
        Ok(Self { skipped: list(page, SKIPPED)?, failing_with_mirrors: list(page, FAILING_WITH_MIRRORS)? })
    }

    /// Of a run without benchmarks.
    pub(super) fn validation(&self, has_apparmor: bool) -> Expectation {
        let skipped = self.skipped.iter().filter(|(_, reason)| !(has_apparmor && *reason == NO_APPARMOR));
        Expectation { skipped: Some(names(skipped)), ..Expectation::default() }
    }

    /// Of a run of the benchmarks, which skips everything else.
    pub(super) fn benchmarks(&self) -> Expectation {
        let benchmarks = self.skipped.iter().filter(|(_, reason)| *reason == BENCHMARK);
        Expectation { passed: Some(names(benchmarks)), ..Expectation::default() }
    }

    pub(super) fn failing_with_mirrors(&self) -> BTreeSet<String> {
        names(self.failing_with_mirrors.iter())
    }
}

fn names<'a>(list: impl Iterator<Item = (&'a String, &'a String)>) -> BTreeSet<String> {
    list.map(|(name, _)| name.clone()).collect()
}

/// A list's items: a name in backticks, a colon, a reason.
fn list(page: &str, begins: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let after = page.split_once(begins).with_context(|| format!("docs/cri.md has no {begins}"))?.1;
    let list = after.split_once(LIST_ENDS).with_context(|| format!("docs/cri.md does not end {begins}"))?.0;
    let item = |line: &str| {
        let (name, reason) = line.strip_prefix("- `")?.split_once("`: ")?;
        Some((name.to_owned(), reason.to_owned())).filter(|(_, reason)| !reason.is_empty())
    };
    let lines = list.lines().filter(|line| !line.is_empty());
    lines.map(|line| item(line).with_context(|| format!("docs/cri.md: no name and reason: {line}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn outcome() -> Outcome {
        let spec = |state: &str, name: &str| {
            serde_json::json!({"LeafNodeType": "It", "State": state, "ContainerHierarchyTexts": ["a", "b"], "LeafNodeText": name,
                "Failure": {"Message": "why"}})
        };
        let setup = serde_json::json!({"LeafNodeType": "BeforeSuite", "State": "passed"});
        let specs = [setup, spec("passed", "1"), spec("skipped", "2"), spec("timedout", "3")];
        Outcome::read(&serde_json::json!([{"SpecReports": specs}])).unwrap()
    }

    #[test]
    fn a_report_is_read_by_state() {
        let outcome = outcome();
        assert_eq!((outcome.passed, outcome.skipped), (vec!["a b 1".to_owned()], set(&["a b 2"])));
        assert_eq!(outcome.failed.get("a b 3").unwrap(), "why");
    }

    #[test]
    fn what_is_not_as_the_page_says() {
        let complaints = |passed: Option<&[&str]>, failed: &[&str], skipped: Option<&[&str]>, is_whole: bool| {
            let expected =
                Expectation { passed: passed.map(set), failed: set(failed), skipped: skipped.map(set), is_whole };
            outcome().complaints(&expected).len()
        };
        assert_eq!(complaints(Some(&["a b 1"]), &["a b 3"], Some(&["a b 2"]), true), 0);
        assert_eq!(complaints(None, &["a b 3"], None, true), 0);
        assert_eq!(complaints(None, &[], None, true), 1, "an unexpected failure");
        assert_eq!(complaints(None, &["a b 3", "x"], None, true), 1, "an expected failure that does not come");
        assert_eq!(complaints(None, &["a b 3"], Some(&["x"]), true), 2, "one skipped, another not");
        assert_eq!(complaints(Some(&["a b 1", "x"]), &["a b 3"], None, true), 1, "one does not pass");
        assert_eq!(complaints(Some(&["x"]), &["a b 3", "x"], Some(&["x"]), false), 0, "only some were chosen");
        let nothing = Outcome::default().complaints(&Expectation::default());
        assert_eq!(nothing, ["no spec passed"]);
    }

    #[test]
    fn the_page_lists_names_and_reasons() {
        let page = |items: &str| {
            Page::read(&format!(
                "{SKIPPED}\n{items}\n{LIST_ENDS}\n{FAILING_WITH_MIRRORS}\n{LIST_ENDS}\n- `no`: not here\n"
            ))
        };
        let armour = format!("- `x`: {NO_APPARMOR}\n- `y`: {BENCHMARK}");
        let page_of = page(&armour).unwrap();
        assert_eq!(page_of.validation(false).skipped, Some(set(&["x", "y"])));
        assert_eq!(page_of.validation(true).skipped, Some(set(&["y"])));
        assert_eq!(page_of.benchmarks().passed, Some(set(&["y"])));
        assert!(page("- `x`").is_err(), "a reason is missing");
        assert!(Page::read("nothing").is_err());
    }

    #[test]
    fn our_own_page() {
        let own = std::fs::read_to_string(super::super::root().join("docs/cri.md")).unwrap();
        let page = Page::read(&own).unwrap();
        assert_eq!(page.validation(false).skipped.unwrap().len(), 14);
        assert_eq!(page.validation(true).skipped.unwrap().len(), 5);
        assert_eq!(page.benchmarks().passed.unwrap().len(), 5);
        assert_eq!(page.failing_with_mirrors().len(), 1);
    }
}
