//! The store with images from layouts: its life, its death, and what bad images leave behind.

mod access;
mod disk;
mod lazy;

use super::*;
use crate::testing::layout::{LayerBytes, Layout, TAR, TAR_GZIP, plain_layer};
use crate::testing::{archive, entry};
use sampan_kit::error_chain::ErrorChain;
use sampan_oci::layer::EntryKind;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use tempfile::TempDir;

struct Place {
    _directory: TempDir,
    data_dir: PathBuf,
    layout: Layout,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(&directory.path().join("layout"));
    Place { data_dir: directory.path().join("data"), layout, _directory: directory }
}

impl Place {
    async fn open(&self) -> Result<ImageStore, ImageError> {
        ImageStore::open(ImageStoreConfig::new(&self.data_dir, RegistryConfig::from_environment())).await
    }

    /// Opens it after it was closed. A child that another test has just forked holds the lock until its program begins, and a task
    /// of the old store may for a moment.
    async fn reopen(&self) -> ImageStore {
        loop {
            match self.open().await {
                Err(ImageError::Locked { .. }) => tokio::task::yield_now().await,
                opened => return opened.unwrap(),
            }
        }
    }

    /// Files below the store's directories, `lock` left out.
    fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        for directory in ["incoming", "blobs", "indexes", "metadata", "records"] {
            for file in fs::read_dir(self.data_dir.join("images").join(directory)).unwrap() {
                files.push(format!("{directory}/{}", file.unwrap().file_name().to_string_lossy()));
            }
        }
        files
    }
}

fn layer_with(path: &str, content: &str) -> LayerBytes {
    let kind = EntryKind::File { size: content.len() as u64, segments: None };
    plain_layer(&archive(&[(entry(path, kind), content.as_bytes().to_vec())]))
}

fn host() -> String {
    Platform::host().architecture
}

fn read(store: &ImageStore, image: &Image, path: &str) -> String {
    let mount = store.mount(image).unwrap();
    fs::read_to_string(format!("/proc/self/fd/{}/{path}", mount.as_raw_fd())).unwrap()
}

async fn refusal(store: &ImageStore, reference: &str) -> String {
    let error = store.ensure(reference, PullPolicy::IfNotPresent, ProgressSender::none()).await.unwrap_err();
    let said = ErrorChain(&error).to_string();
    assert!(!said.contains('\n'), "{said}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_lives_and_goes() {
    let mut place = place();
    let one = place.layout.image("one", &host(), &[layer_with("a", "shared"), layer_with("b", "of one")]);
    let two = place.layout.image("two", &host(), &[layer_with("a", "shared"), layer_with("b", "of two")]);
    let store = place.open().await.unwrap();
    let (progress, mut said) = ProgressSender::channel();
    let first = store.ensure(&one, PullPolicy::IfNotPresent, progress).await.unwrap();
    let mut last = HashMap::new();
    while let Ok(progress) = said.try_recv() {
        assert!(progress.bytes <= progress.total_bytes);
        last.insert(progress.layer, progress.state);
    }
    assert_eq!(last.into_values().collect::<Vec<_>>(), [LayerState::Done, LayerState::Done]);
    assert_eq!(first.config.config.cmd, ["one"]);
    assert_eq!(read(&store, &first, "b"), "of one");
    let second = store.ensure(&two, PullPolicy::Always, ProgressSender::none()).await.unwrap();
    assert_eq!(read(&store, &second, "a"), "shared");
    assert_eq!(read(&store, &second, "b"), "of two");
    let (progress, mut said) = ProgressSender::channel();
    let again = store.ensure(&two, PullPolicy::Always, progress).await.unwrap();
    assert_eq!(again.id, second.id);
    assert_eq!(said.try_recv().unwrap().state, LayerState::Cached);
    drop(again);

    let listed = store.list().await.unwrap();
    assert_eq!(listed.iter().map(|image| &image.references[0]).collect::<Vec<_>>(), [&one, &two]);
    assert!(listed.iter().all(|image| image.in_use && image.size_bytes > 0));
    let error = store.remove(&one).await.unwrap_err();
    assert!(matches!(error, ImageError::InUse { .. }), "{error}");
    drop(first);
    let removed = store.remove(&one).await.unwrap();
    assert!(removed.freed_bytes > 0);
    assert_eq!(removed.removed.len(), 3, "reference, image and the layer of its own: {removed:?}");
    assert_eq!(read(&store, &second, "a"), "shared");
    let id = second.id;
    drop(second);
    assert!(matches!(store.remove("nothing").await, Err(ImageError::Unknown { .. })));
    store.remove(&id.hex()[..12]).await.unwrap();
    assert_eq!(place.files(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_the_same_after_a_restart_and_open_once() {
    let mut place = place();
    let one = place.layout.image("one", &host(), &[layer_with("a", "content")]);
    let store = place.open().await.unwrap();
    let image = store.ensure(&one, PullPolicy::IfNotPresent, ProgressSender::none()).await.unwrap();
    assert!(matches!(place.open().await, Err(ImageError::Locked { .. })));
    drop(image);
    let before = store.list().await.unwrap();
    store.close().await;
    fs::write(place.data_dir.join("images/incoming/7"), "half").unwrap();
    fs::write(place.data_dir.join("images/blobs").join("0".repeat(64)), "unknown layer").unwrap();
    fs::write(place.data_dir.join("images/blobs/README"), "not ours").unwrap();
    fs::remove_dir_all(&place.layout.directory).unwrap();

    let store = place.reopen().await;
    assert_eq!(store.list().await.unwrap(), before);
    let image = store.ensure(&one, PullPolicy::Never, ProgressSender::none()).await.unwrap();
    let again = store.ensure(&one, PullPolicy::IfNotPresent, ProgressSender::none()).await.unwrap();
    assert_eq!(again.id, image.id, "the directory that it came from is gone");
    assert_eq!(read(&store, &image, "a"), "content");
    let by_id = store.ensure(&image.id.to_string(), PullPolicy::Always, ProgressSender::none()).await.unwrap();
    assert_eq!(by_id.id, image.id);
    let files = place.files();
    assert_eq!(files.len(), 5, "{files:?}");
    assert!(files.contains(&"blobs/README".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_synced_before_a_power_cut_is_distrusted() {
    let mut place = place();
    let one = place.layout.image("one", &host(), &[layer_with("a", "content")]);
    let store = place.open().await.unwrap();
    let id = store.ensure(&one, PullPolicy::IfNotPresent, ProgressSender::none()).await.unwrap().id;
    store.close().await;
    let path = place.data_dir.join("images/records").join(id.hex());
    let mut record = record::Record::read(&path).unwrap();
    assert_eq!(record.unsealed_boot, None, "closing waits for the seal");
    record.unsealed_boot = Some("another boot".to_owned());
    record.write(&Paths::new(&place.data_dir), false).unwrap();

    let store = place.reopen().await;
    assert_eq!(store.list().await.unwrap(), []);
    assert_eq!(place.files(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_images_get_one_line_and_leave_nothing() {
    let mut place = place();
    let tar = archive(&[(entry("a", EntryKind::Directory), Vec::new())]);
    let digest = sampan_oci::digest::Digest::of(&tar);
    let bad = |media_type, bytes: &[u8]| LayerBytes { media_type, bytes: bytes.to_vec(), diff_id: digest };
    let foreign = bad("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", &tar);
    let unknown = bad("application/vnd.example.layer", &tar);
    let corrupt = bad(TAR_GZIP, &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xff, 0xff, 0xff]);
    let other = bad(TAR, &archive(&[]));
    let cases = [
        (place.layout.image("foreign", &host(), &[foreign]), vec!["foreign", "sha256:"]),
        (place.layout.image("unknown", &host(), &[unknown]), vec!["application/vnd.example.layer"]),
        (place.layout.image("arch", "s390x", &[plain_layer(&tar)]), vec!["s390x", "amd64"]),
        (place.layout.image("corrupt", &host(), &[layer_with("b", "good"), corrupt]), vec!["corrupt", "gzip"]),
        (place.layout.image("diff", &host(), &[other]), vec!["unpacks to"]),
        (format!("oci:{}:missing", place.layout.directory.display()), vec!["missing"]),
        ("oci:/nowhere/at/all".to_owned(), vec!["/nowhere/at/all"]),
        ("UPPER CASE".to_owned(), vec!["UPPER CASE"]),
    ];
    let store = place.open().await.unwrap();
    for (reference, words) in cases {
        let said = refusal(&store, &reference).await;
        for word in words {
            assert!(said.contains(word) || word == "amd64", "{reference}: {said}");
        }
        assert_eq!(place.files(), Vec::<String>::new(), "{reference}");
    }
    let error = store.ensure("example.com/a:b", PullPolicy::Never, ProgressSender::none()).await.unwrap_err();
    assert!(matches!(error, ImageError::NotPresent { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tampered_layer_is_told_as_that() {
    let mut place = place();
    let layer = layer_with("a", "content");
    let digest = sampan_oci::digest::Digest::of(&layer.bytes);
    let one = place.layout.image("one", &host(), &[layer]);
    let path = place.layout.directory.join("blobs/sha256").join(digest.hex());
    let mut bytes = fs::read(&path).unwrap();
    bytes[1030] ^= 1;
    fs::write(&path, bytes).unwrap();
    let store = place.open().await.unwrap();
    let said = refusal(&store, &one).await;
    assert!(said.contains("digest") && said.contains(&digest.hex()), "{said}");
    assert_eq!(place.files(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pulls_at_once_are_one() {
    let mut place = place();
    let layers: Vec<LayerBytes> = (0..127).map(|n| layer_with(&format!("f{n}"), &format!("content {n}"))).collect();
    let one = place.layout.image("one", &host(), &layers);
    let store = place.open().await.unwrap();
    let mut pulls = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let (store, one) = (store.clone(), one.clone());
        pulls.spawn(async move { store.ensure(&one, PullPolicy::IfNotPresent, ProgressSender::none()).await.unwrap() });
    }
    let images = pulls.join_all().await;
    for n in [0, 64, 126] {
        assert_eq!(read(&store, &images[0], &format!("f{n}")), format!("content {n}"));
    }
    assert_eq!(place.files().len(), 127 * 2 + 2);
    drop(images);
    store.remove(&one).await.unwrap();
    assert_eq!(place.files(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moves_leaves_the_old_image_without_it() {
    let mut place = place();
    let one = place.layout.image("one", &host(), &[layer_with("a", "old")]);
    let store = place.open().await.unwrap();
    let old = store.ensure(&one, PullPolicy::IfNotPresent, ProgressSender::none()).await.unwrap();
    let directory = place.layout.directory.clone();
    place.layout = Layout::new(Path::new(&directory));
    place.layout.image("one", &host(), &[layer_with("a", "new")]);
    let new = store.ensure(&one, PullPolicy::Always, ProgressSender::none()).await.unwrap();
    assert_ne!(old.id, new.id);
    assert_eq!(read(&store, &old, "a"), "old");
    let listed = store.list().await.unwrap();
    let references: Vec<_> = listed.iter().map(|image| (image.id, image.references.clone())).collect();
    assert_eq!(references, [(old.id, Vec::new()), (new.id, vec![one])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_that_are_given_up_leave_nothing_and_hinder_nobody() {
    let mut place = place();
    let content = "much ".repeat(100_000);
    let layers: Vec<LayerBytes> = (0..8).map(|n| layer_with(&format!("f{n}"), &format!("{n} {content}"))).collect();
    let one = place.layout.image("one", &host(), &layers);
    let store = place.open().await.unwrap();
    for patience in 0..20 {
        let pull = store.ensure(&one, PullPolicy::IfNotPresent, ProgressSender::none());
        // The odd ones are given up in the middle, after so many turns.
        let turns = async {
            for _ in 0..patience * 8 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            image = pull => drop(image.unwrap()),
            () = turns => {}
        }
    }
    let image = store.ensure(&one, PullPolicy::IfNotPresent, ProgressSender::none()).await.unwrap();
    assert!(read(&store, &image, "f7").starts_with("7 much much"));
    store.inner.layers.abandoned(&image.config.rootfs.diff_ids).await;
    assert_eq!(place.files().len(), 8 * 2 + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_layers_is_an_empty_directory() {
    let mut place = place();
    let empty = place.layout.image("empty", &host(), &[]);
    let store = place.open().await.unwrap();
    let image = store.ensure(&empty, PullPolicy::IfNotPresent, ProgressSender::none()).await.unwrap();
    let mount = store.mount(&image).unwrap();
    assert_eq!(fs::read_dir(format!("/proc/self/fd/{}/.", mount.as_raw_fd())).unwrap().count(), 0);
}
