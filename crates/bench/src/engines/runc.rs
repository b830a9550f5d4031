//! runc alone: a bundle with a static busybox, no image, no network, no daemon. The least that a run can cost with it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sampan_e2e::fixtures::busybox;
use serde_json::{Value, json};

use super::NAMESPACE;
use crate::command::must;
use crate::footprint::remove_folder;

#[derive(Debug)]
pub(crate) struct Runc {
    program: PathBuf,
    folder: PathBuf,
}

impl Runc {
    /// Makes the bundle whose process is `true`.
    pub(crate) fn new(program: &Path, work: &Path) -> Result<Self> {
        let folder = work.join("runc");
        let programs = folder.join("rootfs/bin");
        fs::create_dir_all(&programs)?;
        fs::write(programs.join("busybox"), busybox::program()?.0)?;
        fs::set_permissions(programs.join("busybox"), fs::Permissions::from_mode(0o755))?;
        symlink("busybox", programs.join("true"))?;
        let this = Self { program: program.to_owned(), folder };
        must(this.command().args(["spec", "--bundle"]).arg(&this.folder))?;
        this.adapt_spec()?;
        Ok(this)
    }

    fn adapt_spec(&self) -> Result<()> {
        let path = self.folder.join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&path)?).context("read what runc spec has written")?;
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(["/bin/true"]);
        spec["linux"]["cgroupsPath"] = json!(format!("/{NAMESPACE}/runc"));
        Ok(fs::write(path, spec.to_string())?)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.folder.join("state"));
        command
    }

    /// The command that runs the bundle.
    pub(crate) fn run(&self, name: &str) -> Command {
        let mut command = self.command();
        command.args(["run", "--bundle"]).arg(&self.folder).arg(name);
        command
    }
}

impl Drop for Runc {
    fn drop(&mut self) {
        drop(remove_folder(&self.folder));
    }
}
