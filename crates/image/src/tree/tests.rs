//! What one layer's entries become, case by case.

use super::*;
use crate::testing::entry;
use expect_test::{Expect, expect};
use sampan_oci::layer::{Entry, EntryKind, LayerPath};

fn dir(path: &str) -> (String, EntryKind) {
    (path.to_owned(), EntryKind::Directory)
}

fn file(path: &str) -> (String, EntryKind) {
    (path.to_owned(), EntryKind::File { size: 3, segments: None })
}

fn symlink(path: &str, target: &str) -> (String, EntryKind) {
    (path.to_owned(), EntryKind::Symlink { target: target.into() })
}

fn link(path: &str, target: &str) -> (String, EntryKind) {
    (path.to_owned(), EntryKind::HardLink { target: LayerPath::of_entry(target.as_bytes()).unwrap() })
}

fn whiteout(path: &str) -> (String, EntryKind) {
    (path.to_owned(), EntryKind::Whiteout)
}

fn opaque(path: &str) -> (String, EntryKind) {
    (path.to_owned(), EntryKind::Opaque)
}

fn check(entries: &[(String, EntryKind)], expected: Expect) {
    let mut builder = LayerTreeBuilder::new();
    for (number, (path, kind)) in entries.iter().enumerate() {
        let entry = Entry { data_offset: number as u64 * 1024 + 512, ..entry(path, kind.clone()) };
        if let Err(error) = builder.add(entry) {
            expected.assert_eq(&error.to_string());
            return;
        }
    }
    let tree = builder.finish();
    tree.check(1 << 20).unwrap();
    let mut shown = String::new();
    show(&tree, 0, "", &mut shown);
    expected.assert_eq(&shown);
}

fn show(tree: &LayerTree, inode: u32, path: &str, shown: &mut String) {
    let Kind::Directory(directory) = &tree.inodes[inode as usize].kind else { return };
    for (name, child) in &directory.entries {
        let path = format!("{path}/{}", String::from_utf8_lossy(name));
        let what = match child {
            Child::Whiteout => "whiteout".to_owned(),
            Child::LowerLink(target) => format!("link to lower {}", String::from_utf8_lossy(target)),
            Child::Inode(inode) => match &tree.inodes[*inode as usize].kind {
                Kind::Directory(Directory { opaque, implied, .. }) => {
                    let mark = |set, text| if set { text } else { "" };
                    format!("directory{}{}", mark(*opaque, " opaque"), mark(*implied, " implied"))
                }
                Kind::File { .. } => format!("file {inode}"),
                Kind::Symlink { target } => format!("symlink {}", String::from_utf8_lossy(target)),
                other => format!("{other:?}"),
            },
        };
        shown.push_str(&format!("{path} {what}\n"));
        if let Child::Inode(inode) = child {
            show(tree, *inode, &path, shown);
        }
    }
}

#[test]
fn missing_parents_are_implied() {
    check(
        &[file("a/b/c"), dir("a")],
        expect![[r#"
            /a directory
            /a/b directory implied
            /a/b/c file 3
        "#]],
    );
}

#[test]
fn the_last_entry_of_a_name_wins() {
    check(
        &[dir("a"), file("a/x"), file("a"), symlink("b", "t"), dir("b"), dir("c"), file("c/x"), dir("c")],
        expect![[r#"
            /a file 1
            /b directory
            /c directory
            /c/x file 4
        "#]],
    );
}

#[test]
fn parents_that_are_symlinks_of_the_layer_are_followed_inside_the_root() {
    check(
        &[symlink("lib", "usr/lib"), file("lib/one"), symlink("usr/lib64", "/lib"), file("usr/lib64/two")],
        expect![[r#"
            /lib symlink usr/lib
            /usr directory implied
            /usr/lib directory implied
            /usr/lib/one file 5
            /usr/lib/two file 6
            /usr/lib64 symlink /lib
        "#]],
    );
}

#[test]
fn what_climbs_or_loops_is_refused_by_name() {
    check(
        &[symlink("out", "../../etc"), file("out/passwd")],
        expect![[r#"tar entry "out/passwd" is refused: a symbolic link on its way leads out of the image's root"#]],
    );
    check(
        &[symlink("a", "b"), symlink("b", "a"), file("a/x")],
        expect![[r#"tar entry "a/x" is refused: too many symbolic links on its way"#]],
    );
    check(&[file("a"), file("a/b")], expect![[r#"tar entry "a/b" is refused: its parent "a" is not a directory"#]]);
    check(&[dir("a"), link("b", "a")], expect![[r#"tar entry "b" is refused: a hard link to the directory "a""#]]);
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    check(
        &[
            whiteout("gone"),
            file("kept"),
            whiteout("kept"),
            dir("d"),
            whiteout("d"),
            whiteout("e"),
            dir("e"),
            opaque("f"),
        ],
        expect![[r#"
            /d directory opaque
            /e directory opaque
            /f directory opaque implied
            /gone whiteout
            /kept file 4
        "#]],
    );
}

#[test]
fn hard_links_share_an_inode_or_name_a_lower_file() {
    check(
        &[
            file("a"),
            link("b", "a"),
            file("a"),
            symlink("s", "d"),
            link("d/x", "s/y"),
            link("z", "d/x"),
            link("a", "a"),
        ],
        expect![[r#"
            /a file 1
            /b file 2
            /d directory implied
            /d/x link to lower d/y
            /s symlink d
            /z link to lower d/y
        "#]],
    );
}

#[test]
fn bookkeeping_of_aufs_serves_links_and_is_dropped() {
    check(
        &[dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2"), link("a", ".wh..wh.plnk/1.2")],
        expect![[r#"
            /a file 1
        "#]],
    );
}

#[test]
fn sparse_files_take_the_blocks_that_hold_data() {
    let content = Content { stream_offset: 0, size: 100_000, segments: Some(vec![(10, 5), (4095, 2), (50_000, 1)]) };
    let runs: Vec<_> = content.runs(8192).iter().map(|run| (run.file_offset, run.blob_offset, run.length)).collect();
    assert_eq!(runs, [(0, 8192, 8192), (49152, 16384, 4096)]);
    assert_eq!(content.blob_bytes(), 12288);
    assert_eq!(content.stream_bytes(), 8);
}

#[test]
fn names_and_attributes_without_end_are_refused() {
    let mut builder = LayerTreeBuilder::new();
    let value = vec![0; 120 << 10];
    let mut large = entry("a", EntryKind::Fifo);
    large.xattrs = vec![sampan_oci::layer::Xattr { name: b"user.a".to_vec(), value }];
    let refused = (0..10_000).find_map(|_| builder.add(large.clone()).err());
    assert!(matches!(refused, Some(TreeError::TooLarge { .. })), "{refused:?}");
}
