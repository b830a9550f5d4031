//! What cargo and git know about the repository.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde::Deserialize;

/// Dependencies are looked at as the product has them.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: HashSet<String>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
}

#[derive(Deserialize)]
pub(super) struct Package {
    id: String,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) license: Option<String>,
    pub(super) dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
pub(super) struct Dependency {
    pub(super) name: String,
    /// Set for crates of this workspace.
    path: Option<String>,
}

impl Package {
    /// Names of the workspace's crates that this one depends on, in tests too.
    pub(super) fn rooms(&self) -> BTreeSet<&str> {
        self.dependencies.iter().filter(|other| other.path.is_some()).map(|other| other.name.as_str()).collect()
    }
}

pub(super) struct Workspace {
    pub(super) members: Vec<Package>,
    pub(super) foreign: Vec<Package>,
    /// Tracked files and new ones that git does not ignore, relative to the root.
    pub(super) files: Vec<PathBuf>,
}

impl Workspace {
    pub(super) fn load(root: &Path) -> anyhow::Result<Workspace> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let arguments = ["metadata", "--format-version=1", "--locked", "--filter-platform", PLATFORM];
        let metadata = output(Command::new(cargo).current_dir(root).args(arguments))?;
        let metadata: Metadata = serde_json::from_slice(&metadata).context("cannot understand cargo metadata")?;
        let used: HashSet<&str> = metadata.resolve.nodes.iter().map(|node| node.id.as_str()).collect();
        let packages = metadata.packages.into_iter().filter(|package| used.contains(package.id.as_str()));
        let (members, foreign) = packages.partition(|package| metadata.workspace_members.contains(&package.id));

        let listed = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
        let listed = output(Command::new("git").current_dir(root).args(listed))?;
        let listed = String::from_utf8(listed).context("a file name is not UTF-8")?;
        let files = listed.split_terminator('\0').map(PathBuf::from).filter(|file| root.join(file).is_file());
        Ok(Workspace { members, foreign, files: files.collect() })
    }

    /// Crates that are there in several versions, as `cargo tree --duplicates` finds them.
    pub(super) fn duplicates(&self) -> Vec<String> {
        let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for package in &self.foreign {
            versions.entry(&package.name).or_default().insert(&package.version);
        }
        let several = versions.into_iter().filter(|(_, versions)| versions.len() > 1);
        several
            .map(|(name, versions)| {
                let versions: Vec<&str> = versions.into_iter().collect();
                format!("{name} is there in the versions {}", versions.join(" and "))
            })
            .collect()
    }
}

fn output(command: &mut Command) -> anyhow::Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{:?} fails: {}", command.get_program(), complaint.trim());
    Ok(output.stdout)
}
