//! Random stacks of layers as podman and umoci show them, against what our mount shows.
//!
//! Left out is what these tools are known to do otherwise: umoci follows symbolic links of lower layers where overlay stacking
//! does not; both make parents that no entry names with the time of day; podman takes no name twice in a layer and links to no
//! lower layer's file.

use super::{accepted, build};
use crate::testing::layout::{Layout, plain_layer};
use crate::testing::model::{Node, Tree, What, assert_same};
use crate::testing::stack::{LayerEntries, stack};
use crate::testing::{archive, read_back};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use sampan_oci::layer::{Entry, EntryKind, LayerPath};
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Keeps the entries on whose meaning all agree.
fn common(layers: Vec<LayerEntries>, is_podman: bool) -> Vec<LayerEntries> {
    let mut kept: Vec<LayerEntries> = Vec::new();
    for entries in layers {
        let hidden: Vec<LayerPath> = entries
            .iter()
            .filter(|(entry, _)| entry.kind == EntryKind::Whiteout)
            .map(|(e, _)| e.path.clone())
            .collect();
        let root = (crate::testing::entry("./", EntryKind::Directory), Vec::new());
        let mut layer = LayerEntries::from([root]);
        for (mut entry, data) in entries {
            if !with_parents(&entry, &mut layer, &hidden)
                || !is_common(&entry, &layer, &hidden)
                || (is_podman && layer.iter().any(|(known, _)| known.path == entry.path))
            {
                continue;
            }
            if let EntryKind::HardLink { target } = &entry.kind {
                let here = layer.iter().rev().find(|(known, _)| known.path == *target && known.path != entry.path);
                // umoci has by then carried out what the layer hides.
                let hides = |(entry, _): &(Entry, _)| matches!(entry.kind, EntryKind::Whiteout | EntryKind::Opaque);
                let lower_links = !is_podman && *target != entry.path && !layer.iter().any(hides);
                let lower = kept.iter().rev().flatten().find(|(known, _)| lower_links && known.path == *target);
                // A link's own attributes are believed by some and not by others.
                let Some((target, _)) = here.or(lower) else { continue };
                (entry.mode, entry.uid, entry.gid, entry.mtime) = (target.mode, target.uid, target.gid, target.mtime);
                entry.xattrs = target.xattrs.clone();
            }
            for xattr in &mut entry.xattrs {
                // In PAX, Go takes an empty value as none.
                xattr.value.push(b'.');
            }
            layer.push((entry, data));
        }
        kept.push(layer);
    }
    accepted(kept)
}

/// Names the directories above an entry, where that is possible.
fn with_parents(entry: &Entry, layer: &mut LayerEntries, hidden: &[LayerPath]) -> bool {
    let mut parents = Vec::new();
    let mut path = entry.path.clone();
    while let Some((parent, _)) = path.split_last() {
        parents.push(parent.clone());
        path = parent;
    }
    for parent in parents.into_iter().rev() {
        match layer.iter().rev().find(|(known, _)| known.path == parent) {
            Some((known, _)) if known.kind == EntryKind::Directory => {}
            None if !hidden.contains(&parent) => {
                let directory = crate::testing::entry("./", EntryKind::Directory);
                layer.push((Entry { path: parent, ..directory }, Vec::new()));
            }
            _ => return false,
        }
    }
    true
}

fn is_common(entry: &Entry, layer: &LayerEntries, hidden: &[LayerPath]) -> bool {
    let is_named = |path: &LayerPath, directory: bool| {
        let last = layer.iter().rev().find(|(known, _)| known.path == *path);
        last.is_some_and(|(known, _)| !directory || known.kind == EntryKind::Directory)
    };
    if entry.kind == EntryKind::Opaque && !is_named(&entry.path, true) {
        return false;
    }
    match entry.kind {
        EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. } => false,
        EntryKind::Whiteout => {
            !is_named(&entry.path, false) && hidden.iter().filter(|path| **path == entry.path).count() == 1
        }
        // For umoci the file that stood in between has removed the lower layers' directory.
        EntryKind::Directory if is_named(&entry.path, false) && !is_named(&entry.path, true) => false,
        _ => !hidden.contains(&entry.path),
    }
}

/// Our mount of some layers.
fn ours(layers: &[LayerEntries]) -> Tree {
    let directory = tempfile::tempdir().unwrap();
    let built = build(layers, directory.path());
    let mount = crate::store::mount_image(&built.files, true).unwrap();
    read_back::directory(Path::new(&format!("/proc/self/fd/{}/.", mount.as_raw_fd())))
}

fn stacks(count: usize, is_podman: bool) -> Vec<Vec<LayerEntries>> {
    let mut runner = TestRunner::deterministic();
    let strategy = stack(2..5, 40);
    (0..count).map(|_| common(strategy.new_tree(&mut runner).unwrap().current(), is_podman)).collect()
}

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    let is_root = rustix::process::geteuid().is_root();
    if !found || !is_root {
        eprintln!(
            "SKIPPED: no comparison with {program}: it is {}",
            if found { "for root only" } else { "not installed" }
        );
    }
    found && is_root
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn layout(directory: &Path, layers: &[LayerEntries]) -> String {
    let layers: Vec<_> = layers.iter().map(|layer| plain_layer(&archive(layer))).collect();
    Layout::new(directory).image("t", "amd64", &layers)
}

/// Sizes of what is compared must not be zero by some mistake of the test.
fn assert_rich(trees: &[Tree]) {
    let nodes = || trees.iter().flat_map(|tree| tree.values());
    assert!(nodes().count() > 30, "the stacks show only {} files", nodes().count());
    let is_big = |node: &Node| matches!(&node.what, What::File(bytes) if bytes.len() > 4096);
    assert!(nodes().any(is_big) && nodes().any(|node| !node.xattrs.is_empty()));
}

#[test]
fn umoci_shows_the_same() {
    if !has("umoci") {
        return;
    }
    let mut trees = Vec::new();
    for layers in stacks(8, false) {
        let directory = tempfile::tempdir().unwrap();
        layout(&directory.path().join("layout"), &layers);
        let bundle = directory.path().join("bundle");
        let image = format!("{}:t", directory.path().join("layout").display());
        run(Command::new("umoci").args(["unpack", "--image", &image]).arg(&bundle));
        let ours = ours(&layers);
        assert_same(&ours, &read_back::directory(&bundle.join("rootfs")), "umoci");
        trees.push(ours);
    }
    assert_rich(&trees);
}

#[test]
fn podman_shows_the_same() {
    if !has("podman") {
        return;
    }
    let mut trees = Vec::new();
    for (number, layers) in stacks(4, true).into_iter().enumerate() {
        // podman takes the directory's name for a repository's, which has no capitals.
        let name = format!("sampan-podman-{}-{number}", std::process::id());
        let directory = tempfile::Builder::new().prefix(&name).rand_bytes(0).tempdir().unwrap();
        let reference = layout(&directory.path().join("layout"), &layers);
        // A mount namespace of its own takes podman's mounts along when it ends.
        let script = "set -e; cd /; p=\"podman --root $1/root --runroot $1/run --storage-driver overlay\"; \
             i=$($p pull -q \"$2\"); $p image mount \"$i\"; read end";
        let mut child = Command::new("unshare")
            .args(["-m", "sh", "-c", script, "sh"])
            .arg(directory.path())
            .arg(&reference)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with('/'), "podman mounted nothing; its message stands above");
        let root = PathBuf::from(format!("/proc/{}/root{}", child.id(), line.trim()));
        let ours = ours(&layers);
        let mut theirs = read_back::directory(&root);
        // The root's attributes are podman's own.
        theirs.insert(Vec::new(), ours[&Vec::new()].clone());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_same(&ours, &theirs, "podman");
        trees.push(ours);
    }
    assert_rich(&trees);
}
