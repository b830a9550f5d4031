//! Rules for every Rust file and every crate's manifest.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::Finding;
use super::rust_text::code_only;

const LINES_MAX: usize = 900;

/// Words that have no place in committed code.
const FORBIDDEN: [(&str, &str); 4] = [
    ("todo!", "finish it, or leave it out"),
    ("unimplemented!", "finish it, or leave it out"),
    ("dbg!", "use tracing"),
    ("#[ignore", "a test runs or does not exist"),
];

/// The only room that may open `unsafe`.
const UNSAFE_ROOM: &str = "crates/sys/";

pub(super) fn check(root: &Path, files: &[PathBuf]) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for file in files {
        let place = file.to_string_lossy();
        let read = || std::fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {place}"));
        if place.ends_with(".rs") {
            findings.extend(check_source(&place, &read()?));
        } else if place.starts_with("crates/") && place.ends_with("/Cargo.toml") {
            findings.extend(check_manifest(&place, &read()?));
        }
    }
    Ok(findings)
}

fn check_source(place: &str, source: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !source.starts_with("//!") {
        findings
            .push(Finding::new(place, "the file does not open with //! saying what it is, why, and its invariants"));
    }
    let lines = source.lines().count();
    if lines > LINES_MAX {
        findings.push(Finding::new(place, format!("{lines} lines are more than {LINES_MAX}: split the file")));
    }
    let code = code_only(source);
    for (number, line) in code.lines().enumerate() {
        for (word, remedy) in FORBIDDEN.iter().filter(|(word, _)| contains_word(line, word)) {
            findings.push(Finding::new(format!("{place}:{}", number + 1), format!("{word} is left over: {remedy}")));
        }
    }
    findings.extend(check_allowances(place, &code));
    findings
}

/// Whether `word` occurs, and not as the end of a longer one.
fn contains_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(position, _)| {
        !line[..position].chars().next_back().is_some_and(|before| before.is_alphanumeric() || before == '_')
    })
}

/// `allow` and `expect` attributes need a reason, and `unsafe_code` is allowed in one room.
fn check_allowances(place: &str, code: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for opening in ["#[allow(", "#![allow(", "#[expect(", "#![expect("] {
        for (position, _) in code.match_indices(opening) {
            let end = code[position..].find(")]").map_or(code.len(), |length| position + length);
            let attribute = &code[position..end];
            let place = format!("{place}:{}", code[..position].matches('\n').count() + 1);
            if !attribute.contains("reason =") {
                findings.push(Finding::new(&place, "a lint is allowed without a reason"));
            }
            if attribute.contains("unsafe_code") && !place.starts_with(UNSAFE_ROOM) {
                findings.push(Finding::new(&place, format!("unsafe code is allowed outside {UNSAFE_ROOM}")));
            }
        }
    }
    findings
}

fn check_manifest(place: &str, manifest: &str) -> Vec<Finding> {
    let required = [
        ("[lints]\nworkspace = true", "the workspace's lints are not switched on"),
        ("license.workspace = true", "the licence is not the workspace's"),
        ("\ndescription = ", "a description is missing"),
    ];
    let missing = required.iter().filter(|(text, _)| !manifest.contains(text));
    missing.map(|(_, message)| Finding::new(place, *message)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(source: &str, expected: &[&str]) {
        let findings = check_source("crates/x/src/a.rs", source);
        let findings: Vec<String> =
            findings.iter().map(|finding| format!("{}: {}", finding.place, finding.message)).collect();
        assert_eq!(findings, expected);
    }

    #[test]
    fn what_is_found() {
        check("//! Good.\nfn f() { \"todo!\"; } // dbg!(1)\n", &[]);
        check("//! A.\nfn f() { todo!() }", &["crates/x/src/a.rs:2: todo! is left over: finish it, or leave it out"]);
        check("//! A.\n#[allow(dead_code)]", &["crates/x/src/a.rs:2: a lint is allowed without a reason"]);
        check("//! A.\n#[allow(\n  dead_code,\n  reason = \"x\"\n)]", &[]);
        let outside = "crates/x/src/a.rs:2: unsafe code is allowed outside crates/sys/";
        check("//! A.\n#![allow(unsafe_code, reason = \"x\")]", &[outside]);
        let head = "crates/x/src/a.rs: the file does not open with //! saying what it is, why, and its invariants";
        check("fn f() {}", &[head]);
        let long = format!("//! A.\n{}", "\n".repeat(900));
        check(&long, &["crates/x/src/a.rs: 901 lines are more than 900: split the file"]);
    }

    #[test]
    fn manifests() {
        let good = "[package]\ndescription = \"x\"\nlicense.workspace = true\n[lints]\nworkspace = true\n";
        assert_eq!(check_manifest("m", good), []);
        assert_eq!(check_manifest("m", "").len(), 3);
    }
}
