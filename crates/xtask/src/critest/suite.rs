//! The program with the specs: with its images' names pointed at the registry on loopback, or as cri-tools released it.
//!
//! The released one is looked for where all programs are, and is otherwise built from its Go module, once, into the tests' cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use sampan_e2e::fixtures::cache;
use serde_json::Value;

use super::{candidates, find};

const PROGRAM: &str = "critest";
const MODULE: &str = "sigs.k8s.io/cri-tools";
const VERSION: &str = "v1.36.0";

/// The registries that the released program asks.
pub(super) const PUBLIC_REGISTRIES: [&str; 4] = ["registry.k8s.io", "k8s.gcr.io", "gcr.io", "public.ecr.aws"];
/// Where some of its images are, as it stands in the program.
const PUBLIC_NAME: &str = "gcr.io/k8s-staging-cri-tools/";

/// The one that looks for its images on loopback.
pub(super) fn with_local_images() -> anyhow::Result<PathBuf> {
    find(PROGRAM)?;
    for path in candidates(PROGRAM) {
        if !is_released(&path)? {
            return Ok(path);
        }
    }
    bail!(
        "NOTHING WAS TESTED: every {PROGRAM} here asks public registries for its images; see docs/cri.md, or use --mirrors"
    )
}

/// The one that looks for its images where everybody's are.
pub(super) fn released() -> anyhow::Result<PathBuf> {
    for path in candidates(PROGRAM) {
        if is_released(&path)? {
            return Ok(path);
        }
    }
    find("go")
        .with_context(|| format!("there is no {PROGRAM} as it was released, nor Go to build it from its module"))?;
    let folder = cache::get_or_build(&format!("cri-tools-{VERSION}"), build)?;
    let program = folder.join(PROGRAM);
    ensure!(is_released(&program)?, "{} does not ask the registries that it should", program.display());
    Ok(program)
}

fn is_released(path: &Path) -> anyhow::Result<bool> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).contains(PUBLIC_NAME))
}

fn build(folder: &Path) -> anyhow::Result<()> {
    println!("critest: building {MODULE} {VERSION}, which takes minutes");
    let module = format!("{MODULE}@{VERSION}");
    let told = Command::new("go").args(["mod", "download", "-json", &module]).env("GOWORK", "off").output()?;
    ensure!(told.status.success(), "{module} cannot be had: {}", String::from_utf8_lossy(&told.stderr));
    let told: Value = serde_json::from_slice(&told.stdout)?;
    let source = told["Dir"].as_str().context("go does not say where it has put the module")?;
    // It is a program of its own, with its own list of modules; Go's cache can only be read.
    let copy = folder.join("source");
    let copied = Command::new("cp").args(["-r", "--no-preserve=mode", source]).arg(&copy).status()?;
    ensure!(copied.success(), "the module cannot be copied");
    let built = Command::new("nice")
        .args(["go", "test", "-c", "-trimpath", "-ldflags", "-s -w", "-o"])
        .arg(folder.join(PROGRAM))
        .arg("./cmd/critest")
        .current_dir(&copy)
        .env("GOWORK", "off")
        .env("CGO_ENABLED", "0")
        .status()?;
    ensure!(built.success(), "{module} does not build");
    Ok(fs::remove_dir_all(copy)?)
}

/// Whether the kernel has it, where critest looks for that.
pub(super) fn has_apparmor() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|said| said.starts_with('Y'))
}
