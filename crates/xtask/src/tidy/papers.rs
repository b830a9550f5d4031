//! The papers exist, and what they point at exists.
//!
//! Checked are links of Markdown to files of the repository, and names of files or folders in backquotes that begin with
//! a top folder, as ARCHITECTURE.md's walks have them.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::Finding;

const REQUIRED: [&str; 5] = ["README.md", "ARCHITECTURE.md", "SPECIFICATION.md", "CHANGELOG.md", "LICENSE"];

/// What a path in backquotes begins with to be taken for one of the repository.
const TOP_FOLDERS: [&str; 3] = ["crates/", "docs/", "fuzz/"];

pub(super) fn check(root: &Path, files: &[PathBuf]) -> anyhow::Result<Vec<Finding>> {
    let missing = REQUIRED.iter().filter(|paper| !root.join(paper).is_file());
    let mut findings: Vec<Finding> = missing.map(|paper| Finding::new(*paper, "the paper is missing")).collect();
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "md")) {
        let place = file.to_string_lossy();
        let text = std::fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {place}"))?;
        let folder = root.join(file).parent().map_or_else(|| root.to_owned(), Path::to_owned);
        for (number, line) in text.lines().enumerate() {
            let linked = links(line).map(|target| (target, folder.join(target)));
            let named = named_paths(line).map(|target| (target, root.join(target)));
            for (target, _) in linked.chain(named).filter(|(_, path)| !path.exists()) {
                findings.push(Finding::new(format!("{place}:{}", number + 1), format!("{target} does not exist")));
            }
        }
    }
    Ok(findings)
}

/// Targets of `[text](target)` that are files, without their anchors.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    let files = targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:"));
    files.filter_map(|target| target.split('#').next()).filter(|target| !target.is_empty())
}

/// Paths in backquotes; those with a placeholder or pattern name no single file.
fn named_paths(line: &str) -> impl Iterator<Item = &str> {
    let quoted = line.split('`').skip(1).step_by(2);
    let paths = quoted.filter(|text| TOP_FOLDERS.iter().any(|folder| text.starts_with(folder)));
    paths
        .filter(|text| !text.contains(['*', '<', '{', '…', ' ']))
        .map(|text| text.split([':', '#']).next().unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let line = "See [a](docs/a.md#part), [b](https://b.example), [c](#here) and ![d](d.svg \"title\").";
        assert_eq!(links(line).collect::<Vec<_>>(), ["docs/a.md", "d.svg"]);
        let line = "`crates/erofs/src/write.rs:12` then `crates/*/src`, `cargo test` and `docs/x.md`";
        assert_eq!(named_paths(line).collect::<Vec<_>>(), ["crates/erofs/src/write.rs", "docs/x.md"]);
    }

    #[test]
    fn what_is_missing_is_named() -> anyhow::Result<()> {
        let root = tempfile::tempdir()?;
        for paper in ["README.md", "ARCHITECTURE.md", "SPECIFICATION.md", "LICENSE"] {
            std::fs::write(root.path().join(paper), "[x](LICENSE)\n[y](nowhere)\n")?;
        }
        let findings = check(root.path(), &["README.md".into()])?;
        let expected = [
            Finding::new("CHANGELOG.md", "the paper is missing"),
            Finding::new("README.md:2", "nowhere does not exist"),
        ];
        assert_eq!(findings, expected);
        Ok(())
    }
}
