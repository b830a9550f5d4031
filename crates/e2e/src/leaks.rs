//! Looks for what a service left on the machine after everything was removed and it was stopped.
//!
//! Every side effect of a service carries a mark: its instance's name, a path below its folders, one of its addresses.
//! Whatever appeared since the start and carries a mark is a leak. With `SAMPAN_E2E_STRICT=1`, for machines where
//! nothing else happens meanwhile, everything that appeared is one.

mod machine;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::harness::pod::text;
use crate::harness::wait::until;
use crate::service::Service;

/// How many sandboxes a service keeps ready: of each of two kinds (users of their own, and the host's) so many.
const POOL: usize = 2 * 4;
/// Indexes of layers and traces of starts, which outlive their images.
const KEPT_OF_IMAGES: [&str; 2] = ["kept", "traces"];

/// What there is of the kinds of things that a service makes, each as `kind: description`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traces(pub BTreeSet<String>);

impl Traces {
    /// What there is on the whole machine.
    pub fn global() -> Result<Self> {
        let mut traces = BTreeSet::new();
        for (kind, list) in machine::KINDS {
            let list = list().with_context(|| format!("list every {kind}"))?;
            traces.extend(list.into_iter().map(|found| format!("{kind}: {found}")));
        }
        Ok(Self(traces))
    }

    /// What is here and was not `before`, and is `service`'s.
    fn of(&self, service: &Service, before: &Self) -> Vec<String> {
        let strict = std::env::var_os("SAMPAN_E2E_STRICT").is_some_and(|value| value == "1");
        let marks = marks(service);
        let new = self.0.difference(&before.0).filter(|trace| !trace.contains("docker-registry"));
        new.filter(|trace| strict || marks.iter().any(|mark| trace.contains(mark))).cloned().collect()
    }
}

fn marks(service: &Service) -> [String; 4] {
    let folder = service.folder().display().to_string();
    [service.instance.clone(), folder, service.prefix4.clone(), service.prefix6.trim_end_matches(':').to_owned()]
}

/// Removes everything that the tests left in the service, looks, stops it and looks again.
pub fn check(service: &Service, before: &Traces) -> Result<()> {
    let mut leaks = Vec::new();
    let mut note = |when: &str, outcome: Result<()>| {
        if let Err(error) = outcome {
            leaks.push(format!("{when}: {error:#}"));
        }
    };
    note("removing every instance", remove_everything(service));
    note("with every instance removed", nothing_of_instances(service));
    note("removing every image", remove_images(service));
    note("with every image removed", nothing_of_images(service));
    note("stopping", service.stop());
    note("after the stop", nothing_at_all(service, before));
    note("in the journal", nothing_in_the_journal(service));
    ensure!(leaks.is_empty(), "{}", leaks.join("\n"));
    Ok(())
}

fn remove_everything(service: &Service) -> Result<()> {
    let pods = service.sampan(["ps", "-aA", "-o", "json"]).finish()?.json()?;
    for pod in pods["items"].as_array().context("a list without items")? {
        let (namespace, name) = (text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
        service.sampan(["-n", namespace, "rm", "-f", name]).ok()?;
    }
    let left = service.sampan(["ps", "-aA", "-o", "json"]).finish()?.json()?;
    ensure!(left["items"].as_array().is_some_and(Vec::is_empty), "there are instances still: {}", left["items"]);
    Ok(())
}

/// What belongs to instances may take a moment to go after the object; then nothing of it may be there.
fn nothing_of_instances(service: &Service) -> Result<()> {
    let mut left = Vec::new();
    let gone = until("nothing of any instance is left", || {
        left = traces_of_instances(service)?;
        Ok(left.is_empty())
    });
    gone.with_context(|| left.join("\n"))
}

/// What is left and belongs to an instance. Sandboxes that are kept ready belong to nobody, and there are only so many.
fn traces_of_instances(service: &Service) -> Result<Vec<String>> {
    let left = traces_of_sandboxes(service)?;
    let ids: BTreeSet<&str> = left.iter().filter_map(|trace| sandbox_id(trace)).collect();
    let is_pool = ids.len() <= POOL;
    Ok(left.iter().filter(|trace| !is_pool || sandbox_id(trace).is_none()).cloned().collect())
}

/// The part of a path that is a sandbox's id: 16 hexadecimal digits.
fn sandbox_id(trace: &str) -> Option<&str> {
    let is_id = |part: &&str| part.len() == 16 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    trace.split(['/', ' ']).find(is_id)
}

fn traces_of_sandboxes(service: &Service) -> Result<Vec<String>> {
    let (data, run) = (service.data_dir(), service.run_dir());
    let mut left = Vec::new();
    for folder in [data.join("sandboxes"), data.join("pods"), data.join("images/incoming"), run.join("sandboxes")] {
        left.extend(entries(&folder)?);
    }
    let leases = entries(&data.join("network/leases"))?;
    left.extend(leases.into_iter().filter(|path| path.ends_with(".json")));
    let cgroup = format!("/{}/", service.instance);
    left.extend(machine::cgroups()?.into_iter().filter(|path| path.contains(&cgroup)));
    left.extend(machine::interfaces()?.into_iter().filter(|line| line.contains(&format!("{}/", service.instance))));
    left.extend(
        machine::loop_devices()?
            .into_iter()
            .filter(|line| line.contains("/sandboxes/"))
            .filter(|line| line.contains(&data.display().to_string())),
    );
    Ok(left)
}

fn remove_images(service: &Service) -> Result<()> {
    let images: Value = service.sampan(["images", "-o", "json"]).finish()?.json()?;
    for image in images["images"].as_array().context("a list without images")? {
        let names = image["references"].as_array().cloned().unwrap_or_default();
        let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
        let names = if names.is_empty() { vec![text(image, "/id")] } else { names };
        service.sampan(["rmi"].into_iter().chain(names)).ok()?;
    }
    Ok(())
}

/// Images are gone; what is known of them is kept for the next time, within bounds.
fn nothing_of_images(service: &Service) -> Result<()> {
    for entry in entries(&service.data_dir().join("images"))? {
        let path = Path::new(&entry);
        if path.is_dir() && !KEPT_OF_IMAGES.iter().any(|name| path.ends_with(name)) {
            only_folders(path, &[])?;
        } else if !path.is_dir() {
            ensure!(path.ends_with("lock"), "left: {entry}");
        }
    }
    Ok(())
}

/// Waits until nothing is here that was not `before`, of a service that does not run.
pub fn nothing_at_all(service: &Service, before: &Traces) -> Result<()> {
    let mut left = Vec::new();
    let gone = until("nothing is left", || {
        left = Traces::global()?.of(service, before);
        Ok(left.is_empty())
    });
    gone.with_context(|| left.join("\n"))?;
    // Which address comes next is remembered until the machine restarts, and where the lock is it stays.
    only_folders(&service.run_dir(), &["serve.lock", "cursor"])?;
    let temporary = entries(&service.temporary())?;
    ensure!(temporary.is_empty(), "temporary files: {}", temporary.join(", "));
    Ok(())
}

/// A row is a sandbox with a range of user ids; after an orderly stop without instances not even those that were kept ready have one.
fn nothing_in_the_journal(service: &Service) -> Result<()> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let journal = rusqlite::Connection::open_with_flags(service.data_dir().join("journal.db"), flags)?;
    let rows: i64 = journal.query_row("SELECT count(*) FROM sandboxes", [], |row| row.get(0))?;
    ensure!(rows == 0, "{rows} sandboxes stand in the journal");
    Ok(())
}

/// Insists that below `folder` there are only folders, and files of these names.
fn only_folders(folder: &Path, allowed: &[&str]) -> Result<()> {
    let mut open = vec![folder.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else if !allowed.iter().any(|name| entry.file_name() == *name) {
                found.push(entry.path().display().to_string());
            }
        }
    }
    if !found.is_empty() {
        bail!("left: {}", found.join(", "));
    }
    Ok(())
}

/// The paths in a folder; none when it is not there.
pub fn entries(folder: &Path) -> Result<Vec<String>> {
    match fs::read_dir(folder) {
        Ok(found) => found.map(|entry| Ok(entry?.path().display().to_string())).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("read {}", folder.display())),
    }
}
