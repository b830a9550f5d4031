//! What hostile and honest streams leave on disk.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use proptest::prelude::*;
use sampan_oci::layer::{LayerReader, ReadError};
use tokio::sync::mpsc;

use super::super::pack::Source;
use super::super::place::Side;
use super::*;

/// One entry of a stream that no honest tool writes.
fn entry(name: &str, kind: u8, mode: u32, link: &str, content: &[u8]) -> Vec<u8> {
    let mut block = vec![0_u8; 512];
    let mut put = |offset: usize, bytes: &[u8]| block[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{:011o}", content.len()).as_bytes());
    put(136, b"00000000001");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.extend_from_slice(content);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

fn file(name: &str, content: &str) -> Vec<u8> {
    entry(name, b'0', 0o644, "", content.as_bytes())
}

fn unpack(from: &str, to: &Path, stream: &[u8]) -> Result<Option<String>, String> {
    let Side::Remote(from) = Side::parse(from) else { panic!("{from}") };
    let wanted = Wanted::at(to, &from).map_err(|failure| failure.line.unwrap())?;
    let (mut reader, mut unpacking) = (LayerReader::new(), Unpacking::new(wanted));
    for piece in stream.chunks(700) {
        reader.feed(piece, &mut unpacking).map_err(|error| match error {
            ReadError::Layer(error) => error.to_string(),
            ReadError::Sink(failure) => failure.line.unwrap(),
        })?;
    }
    reader.finish().map_err(|error| error.to_string())?;
    unpacking.finish().map_err(|failure| failure.line.unwrap())
}

/// A destination `to` inside a directory with a file that must stay as it is.
struct Place {
    outer: tempfile::TempDir,
    to: PathBuf,
}

impl Place {
    fn new() -> Self {
        let outer = tempfile::tempdir().unwrap();
        let to = outer.path().join("to");
        fs_write(&outer.path().join("precious"), "precious");
        std::fs::create_dir(&to).unwrap();
        Self { outer, to }
    }

    fn is_unharmed(&self) -> bool {
        let mut names: Vec<_> =
            std::fs::read_dir(self.outer.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names == ["precious", "to"]
            && std::fs::read_to_string(self.outer.path().join("precious")).unwrap() == "precious"
    }
}

fn fs_write(path: &Path, content: &str) {
    std::fs::write(path, content).unwrap();
}

#[test]
fn names_that_climb_or_begin_at_the_root_are_refused() {
    for name in ["../precious", "d/../../precious", "/etc/sampan-test", "d/../../../../etc/sampan-test"] {
        let place = Place::new();
        let stream = [entry("d/", b'5', 0o755, "", b""), file(name, "gone")].concat();
        let line = unpack("web:/d", &place.to, &stream).unwrap_err();
        assert!(line.contains("refused"), "{line}");
        assert!(place.is_unharmed() && !Path::new("/etc/sampan-test").exists(), "{name}");
    }
}

#[test]
fn links_lead_nowhere() {
    for target in ["..", "/", "../..", "/etc"] {
        let place = Place::new();
        let stream = [
            entry("d/", b'5', 0o755, "", b""),
            entry("d/way", b'2', 0o777, target, b""),
            file("d/way/precious", "gone"),
        ]
        .concat();
        let line = unpack("web:/d", &place.to, &stream).unwrap_err();
        assert!(line.contains("a symlink stands in the way"), "{line}");
        assert!(place.is_unharmed());
    }
}

#[test]
fn nothing_is_written_through_a_link() {
    let place = Place::new();
    let outside = place.outer.path().join("precious");
    let stream = [
        entry("d/", b'5', 0o755, "", b""),
        entry("d/a", b'2', 0o777, outside.to_str().unwrap(), b""),
        file("d/a", "gone"),
        entry("d/b", b'2', 0o777, outside.to_str().unwrap(), b""),
        entry("d/c", b'1', 0o644, "d/b", b""),
        file("d/c", "gone"),
    ]
    .concat();
    assert_eq!(unpack("web:/d", &place.to, &stream), Ok(None));
    assert_eq!(std::fs::read_to_string(place.to.join("d/a")).unwrap(), "gone");
    assert!(place.is_unharmed());
}

#[test]
fn links_that_were_there_before_lead_nowhere_either() {
    let place = Place::new();
    symlink(place.outer.path(), place.to.join("d")).unwrap();
    let stream = [entry("d/", b'5', 0o755, "", b""), file("d/precious", "gone")].concat();
    assert!(unpack("web:/d", &place.to, &stream).unwrap_err().contains("stands"));
    assert!(unpack("web:/d", &place.to, &file("d/precious", "gone")).unwrap_err().contains("symlink"));
    assert!(place.is_unharmed());
}

#[test]
fn hard_links_out_are_refused() {
    let place = Place::new();
    let stream = [entry("d/", b'5', 0o755, "", b""), entry("d/x", b'1', 0o644, "../precious", b"")].concat();
    assert!(unpack("web:/d", &place.to, &stream).unwrap_err().contains("refused"));
    assert!(place.is_unharmed());
}

#[test]
fn privileges_and_devices_are_left_out() {
    let place = Place::new();
    let stream = [
        entry("d/", b'5', 0o6755, "", b""),
        entry("d/root-shell", b'0', 0o6755, "", b"x"),
        entry("d/disk", b'4', 0o666, "", b""),
        entry("d/pipe", b'6', 0o666, "", b""),
    ]
    .concat();
    let line = unpack("web:/d", &place.to, &stream).unwrap().unwrap();
    assert!(line.contains("2 devices"), "{line}");
    for name in ["d", "d/root-shell"] {
        assert_eq!(std::fs::metadata(place.to.join(name)).unwrap().permissions().mode() & 0o7777, 0o755);
    }
    assert!(!place.to.join("d/disk").exists() && !place.to.join("d/pipe").exists());
}

#[test]
fn truncated_and_empty_streams_are_told() {
    let place = Place::new();
    let stream = file("f", "content");
    assert!(unpack("web:/f", &place.to, &stream[..514]).unwrap_err().contains("ends in the middle"));
    assert!(unpack("web:/f", &place.to, &[]).unwrap_err().contains("sent nothing"));
}

#[test]
fn docker_rules_for_destinations() {
    let place = Place::new();
    let tree = [entry("d/", b'5', 0o755, "", b""), file("d/f", "tree")].concat();
    let one = file("f", "one");
    let to = |name: &str| place.to.join(name);
    let read = |name: &str| std::fs::read_to_string(to(name)).unwrap();
    assert_eq!(unpack("web:/f", &to("new"), &one), Ok(None));
    assert_eq!(read("new"), "one");
    assert_eq!(unpack("web:/f", &place.to, &one), Ok(None));
    assert_eq!(read("f"), "one");
    assert_eq!(unpack("web:/d", &to("copy"), &tree), Ok(None));
    assert_eq!(read("copy/f"), "tree");
    assert_eq!(unpack("web:/d", &to("copy"), &tree), Ok(None));
    assert_eq!(read("copy/d/f"), "tree");
    assert_eq!(unpack("web:/d/.", &to("copy"), &tree), Ok(None));
    assert_eq!(read("copy/f"), "tree");
    assert!(unpack("web:/d", &to("new"), &tree).unwrap_err().contains("a directory cannot take its place"));
    assert!(unpack("web:/f", &to("none/"), &one).unwrap_err().contains("there is no such directory"));
    assert!(unpack("web:/f", &to("none/f"), &one).unwrap_err().contains("create the directory first"));
    assert!(unpack("web:/f", Path::new("/dev/null"), &one).unwrap_err().contains("neither"));
    symlink(to("new"), to("link")).unwrap();
    assert_eq!(unpack("web:/f", &to("link"), &file("f", "through")), Ok(None));
    assert_eq!(read("new"), "through");
    assert!(to("link").is_symlink());
}

#[test]
fn what_is_packed_is_what_is_unpacked() {
    let place = Place::new();
    let source = place.to.join("source");
    let deep = source.join("a".repeat(120)).join("b".repeat(120));
    std::fs::create_dir_all(&deep).unwrap();
    fs_write(&deep.join("file"), &"x".repeat(100_000));
    fs_write(&source.join("empty"), "");
    std::fs::hard_link(source.join("empty"), source.join("other-name")).unwrap();
    symlink("c".repeat(150), source.join("link")).unwrap();
    std::fs::set_permissions(source.join("empty"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let (sender, mut receiver) = mpsc::channel(10_000);
    assert_eq!(Source::open(&source).unwrap().pack(Some(b"renamed"), &sender), Ok(None));
    drop(sender);
    let mut stream = Vec::new();
    while let Ok(piece) = receiver.try_recv() {
        stream.extend_from_slice(&piece);
    }
    assert_eq!(unpack("web:/renamed", &place.to, &stream), Ok(None));
    let copy = place.to.join("renamed");
    let listed =
        std::process::Command::new("diff").args(["-r", "--no-dereference"]).args([&source, &copy]).status().unwrap();
    assert!(listed.success());
    assert_eq!(std::fs::metadata(copy.join("empty")).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(std::fs::read_link(copy.join("link")).unwrap().as_os_str().len(), 150);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Streams of hostile names and links never change anything outside, whatever their order.
    #[test]
    fn no_stream_reaches_out(steps in proptest::collection::vec((0_usize..6, 0_usize..8, 0_usize..8), 1..20)) {
        const NAMES: [&str; 8] = ["d", "d/a", "d/a/b", "d/a/precious", "d/../d/a", "d/b", "d/b/precious", "d/./c/precious"];
        const LINKS: [&str; 8] = ["..", "../..", "/", "a", "../precious", "d/a", "d/b", "d/../d/a"];
        let place = Place::new();
        let stream: Vec<u8> = steps
            .iter()
            .flat_map(|(kind, name, link)| match kind {
                0 => entry(NAMES[*name], b'5', 0o777, "", b""),
                1 | 2 => file(NAMES[*name], "gone"),
                3 => entry(NAMES[*name], b'1', 0o644, LINKS[*link], b""),
                _ => entry(NAMES[*name], b'2', 0o777, LINKS[*link], b""),
            })
            .collect();
        // Refused or not: what counts is what it leaves.
        prop_assert!(unpack("web:/d", &place.to, &stream).map_or_else(|line| !line.is_empty(), |_| true));
        prop_assert!(place.is_unharmed());
    }
}
