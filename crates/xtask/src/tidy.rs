//! `cargo xtask tidy`: what compilers and clippy do not check about this repository.
//!
//! Every check turns the repository into findings, one line each; any finding makes the run fail. Checks read only
//! what git tracks or would track, and what `cargo metadata --locked` says.

mod layers;
mod licences;
mod papers;
mod rust_text;
mod sources;
mod workspace;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use workspace::Workspace;

/// Crates in several versions that are put up with, because dependencies of dependencies disagree.
const DUPLICATES_MAX: usize = 16;

/// Something to put right: where, and what.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    place: String,
    message: String,
}

impl Finding {
    fn new(place: impl Into<String>, message: impl Into<String>) -> Finding {
        Finding { place: place.into(), message: message.into() }
    }
}

/// Runs all checks on the repository that this program was built from.
pub(crate) fn run(out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let workspace = Workspace::load(&root)?;
    let duplicates = workspace.duplicates();
    for duplicate in &duplicates {
        writeln!(out, "note: {duplicate}")?;
    }
    let mut findings = layers::check(&workspace);
    findings.extend(licences::check(&workspace));
    findings.extend(sources::check(&root, &workspace.files)?);
    findings.extend(papers::check(&root, &workspace.files)?);
    if duplicates.len() > DUPLICATES_MAX {
        let message = format!("{} crates are there in several versions, {DUPLICATES_MAX} at most", duplicates.len());
        findings.push(Finding::new("Cargo.lock", message));
    }
    findings.sort();
    for finding in &findings {
        writeln!(out, "{}: {}", finding.place, finding.message)?;
    }
    writeln!(out, "tidy: {} files, {} findings", workspace.files.len(), findings.len())?;
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
