//! A service whose own disk has no room for an image.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use sampan_e2e::fixtures::debian;
use sampan_e2e::harness::call::Call;
use sampan_e2e::leaks::{self, Traces, entries};
use sampan_e2e::service::Service;

/// Room for busybox and its instance, not for Python.
const SIZE: &str = "size=96m";

/// A small file system of its own at a folder.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn at(folder: PathBuf) -> Result<Self> {
        fs::create_dir(&folder)?;
        Call::new("mount").args(["-t", "tmpfs", "-o", SIZE, "small"]).args([&folder]).ok()?;
        Ok(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = Call::new("umount").args([&self.0]).ok() {
            eprintln!("{error:#}");
        }
    }
}

pub(crate) fn a_full_disk_of_the_host_is_an_error_with_a_reason(_: &Service) -> Result<()> {
    let service = Service::prepare("small")?;
    let disk = SmallDisk::at(service.data_dir())?;
    let before = Traces::global()?;
    service.serve()?;
    let image = service.image("python:numpy", debian::python)?;
    service.sampan(["run", "--rm", &image, "true"]).finish()?.fails_with(125, &[&image, "space"])?;
    let incoming = entries(&service.data_dir().join("images/incoming"))?;
    ensure!(incoming.is_empty(), "a pull that found no room leaves {incoming:?}");
    // What it had taken is free again.
    let busybox = service.busybox()?;
    assert_eq!(service.sampan(["run", "--rm", "--disk", "16Mi", &busybox, "echo", "room"]).ok()?, "room");
    service.stop()?;
    service.serve()?;
    let checked = leaks::check(&service, &before);
    drop(disk);
    checked
}
