//! Lists of everything on this machine of the kinds that a service makes, each thing as one line that names its owner's
//! mark where it has one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::entries;
use crate::harness::call::Call;

/// A kind of thing and how to list it.
pub(super) type Kind = (&'static str, fn() -> Result<Vec<String>>);

/// Every kind.
pub(super) const KINDS: [Kind; 9] = [
    ("mount", mounts),
    ("loop device", loop_devices),
    ("cgroup", cgroups),
    ("interface", interfaces),
    ("address, route or rule", routes),
    ("nftables line", nftables),
    ("process", processes),
    ("network namespace", network_namespaces),
    ("file", files),
];

/// Every mount that any process sees, by where it is and what it is of.
fn mounts() -> Result<Vec<String>> {
    let mut mounts = BTreeSet::new();
    for process in numbers()? {
        // A process may end while it is looked at.
        let list = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
        mounts.extend(list.lines().map(|line| line.split_whitespace().skip(3).collect::<Vec<_>>().join(" ")));
    }
    Ok(mounts.into_iter().collect())
}

/// Loop devices that are in use, and the files behind them.
pub(super) fn loop_devices() -> Result<Vec<String>> {
    let devices = entries(Path::new("/sys/block"))?;
    let used = devices.into_iter().filter_map(|device| {
        let file = fs::read_to_string(Path::new(&device).join("loop/backing_file")).ok()?;
        Some(format!("{device} {}", file.trim()))
    });
    Ok(used.collect())
}

/// Control groups of every hierarchy.
pub(super) fn cgroups() -> Result<Vec<String>> {
    let mut open = vec![PathBuf::from("/sys/fs/cgroup")];
    let mut found = Vec::new();
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path().display().to_string());
                open.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// Network interfaces with their aliases.
pub(super) fn interfaces() -> Result<Vec<String>> {
    let interfaces = entries(Path::new("/sys/class/net"))?;
    let described = interfaces.into_iter().map(|path| {
        let alias = fs::read_to_string(Path::new(&path).join("ifalias")).unwrap_or_default();
        format!("{path} {}", alias.trim()).trim_end().to_owned()
    });
    Ok(described.collect())
}

fn routes() -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for words in [
        &["-o", "address", "show"][..],
        &["-4", "route", "show", "table", "all"],
        &["-6", "route", "show", "table", "all"],
        &["-4", "rule"],
        &["-6", "rule"],
    ] {
        // Lifetimes count down.
        let text = Call::new("ip").args(words).ok()?;
        lines.extend(text.lines().map(|line| line.split("valid_lft").next().unwrap_or_default().trim().to_owned()));
    }
    Ok(lines)
}

/// Every line of the rule set, with its table's name before it and without what counts up.
fn nftables() -> Result<Vec<String>> {
    let text = Call::new("nft").args(["-s", "list", "ruleset"]).ok().context("install Debian's package nftables")?;
    let mut table = "";
    let lines = text.lines().map(|line| {
        if line.starts_with("table ") {
            table = line.trim_end_matches(" {");
        }
        format!("{table} / {}", line.trim())
    });
    Ok(lines.collect())
}

/// Processes by command line and control groups, which name the instance even where the command line does not.
fn processes() -> Result<Vec<String>> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for process in numbers()? {
        let number = process.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (Ok(line), Ok(groups)) = (fs::read(process.join("cmdline")), fs::read_to_string(process.join("cgroup")))
        else {
            continue;
        };
        if number != own {
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let groups: BTreeSet<&str> = groups.lines().filter_map(|line| line.rsplit(':').next()).collect();
            found.push(format!("{number} {line} {groups:?}"));
        }
    }
    Ok(found)
}

/// Network namespaces that a process lives in.
fn network_namespaces() -> Result<Vec<String>> {
    let links = numbers()?.into_iter().filter_map(|process| fs::read_link(process.join("ns/net")).ok());
    let namespaces: BTreeSet<String> = links.map(|link| link.display().to_string()).collect();
    Ok(namespaces.into_iter().collect())
}

/// What lies in the machine's places for temporary and volatile files.
fn files() -> Result<Vec<String>> {
    let mut files = Vec::new();
    for folder in ["/tmp", "/var/tmp", "/run", "/run/netns", "/dev/shm", "/var/lib"] {
        files.extend(entries(Path::new(folder))?.into_iter().filter(|path| !path.contains("/sampan-e2e-")));
    }
    Ok(files)
}

fn numbers() -> Result<Vec<PathBuf>> {
    let all = fs::read_dir("/proc").context("read /proc")?;
    let all = all.flatten().map(|entry| entry.path());
    let is_number =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
    Ok(all.filter(is_number).collect())
}
