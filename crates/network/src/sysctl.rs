//! The kernel settings that routing between sandboxes and the world needs, and a record of what was changed.
//!
//! Settings are changed only where they are not as needed, and never set back: another program may have come to rely
//! on them in the meantime. What was changed, and from what, stands in `sysctls.json` beside the leases.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::NetworkError;
use crate::leases::write_whole;

const ROOT: &str = "/proc/sys/net";
const RECORD: &str = "sysctls.json";

/// Whether the host (the calling thread's network namespace) has IPv6 and new interfaces get it.
pub(crate) fn ipv6_is_on() -> bool {
    ["all", "default"]
        .iter()
        .all(|scope| read(&format!("ipv6/conf/{scope}/disable_ipv6")).is_ok_and(|value| value == "0"))
}

/// Turns forwarding on for both families; returns what was changed, as `name: old -> new`.
///
/// An interface that listens to router advertisements stops doing so once the host forwards (`accept_ra` 1), and
/// would lose its address and default route: such interfaces are told to go on (`accept_ra` 2).
pub(crate) fn enable_forwarding(state_dir: &Path, ipv6: bool) -> Result<Vec<String>, NetworkError> {
    let mut changes = Vec::new();
    set("ipv4/ip_forward", "1", &mut changes)?;
    if ipv6 && read("ipv6/conf/all/forwarding").is_ok_and(|value| value == "0") {
        for name in listening_to_routers() {
            set(&format!("ipv6/conf/{name}/accept_ra"), "2", &mut changes)?;
        }
        set("ipv6/conf/all/forwarding", "1", &mut changes)?;
    }
    if !changes.is_empty() {
        record(state_dir, &changes)?;
    }
    Ok(changes
        .into_iter()
        .map(|Change { name, old, new }| format!("net.{}: {old} -> {new}", name.replace('/', ".")))
        .collect())
}

struct Change {
    name: String,
    old: String,
    new: &'static str,
}

fn listening_to_routers() -> Vec<String> {
    let Ok(entries) = fs::read_dir(Path::new(ROOT).join("ipv6/conf")) else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name != "all" && read(&format!("ipv6/conf/{name}/accept_ra")).is_ok_and(|value| value == "1"))
        .collect()
}

fn set(name: &str, new: &'static str, changes: &mut Vec<Change>) -> Result<(), NetworkError> {
    let failed = |operation| move |source| NetworkError::File { operation, path: path(name), source };
    let old = read(name).map_err(failed("read"))?;
    if old != new {
        fs::write(path(name), new).map_err(failed("write"))?;
        changes.push(Change { name: name.to_owned(), old, new });
    }
    Ok(())
}

/// Adds to the record; the first value that was found is the one to keep.
fn record(state_dir: &Path, changes: &[Change]) -> Result<(), NetworkError> {
    let mut found: BTreeMap<String, String> =
        fs::read(state_dir.join(RECORD)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    for change in changes {
        found.entry(change.name.clone()).or_insert_with(|| change.old.clone());
    }
    let text = serde_json::to_vec_pretty(&found).map_err(io::Error::from);
    let path = state_dir.join(RECORD);
    write_whole(state_dir, RECORD, &text.map_err(|source| NetworkError::File { operation: "write", path, source })?)
}

fn read(name: &str) -> io::Result<String> {
    Ok(fs::read_to_string(path(name))?.trim_end().to_owned())
}

fn path(name: &str) -> PathBuf {
    Path::new(ROOT).join(name)
}
