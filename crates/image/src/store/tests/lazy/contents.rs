//! Images that nobody has indexed, whose layers have tables of contents of their own: true ones, lying ones, and none to be had.

use super::*;
use crate::testing::contents::{CHUNKED_DIGEST, CHUNKED_POSITION, ESTARGZ_DIGEST, Made, made};
use sampan_oci::digest::Digest;
use serde_json::{Value, json};

/// An image of an eStargz layer and a zstd:chunked one, both larger than what is pulled.
struct Site {
    stage: Stage,
    config_bytes: u64,
}

fn honest(_lines: &mut Vec<Value>) {}

/// A table that is not wholly among the bytes that are fetched first: with words that nobody reads.
fn long_winded(lines: &mut [Value]) {
    let words: String = noise(400_000, 77).into_iter().map(|byte| char::from(b'0' + byte)).collect();
    lines[0]["words"] = json!(words);
}

impl Site {
    /// `told` changes the table of the second layer.
    async fn new(told: impl FnOnce(&mut Vec<Value>)) -> Self {
        Self::with(told, |_made| {}).await
    }

    /// `done` changes the second layer's entry in the manifest.
    async fn with(told: impl FnOnce(&mut Vec<Value>), done: impl FnOnce(&mut Made)) -> Self {
        let files = |layer: u64| -> Vec<(String, Vec<u8>)> {
            let sizes = (0..8u64).map(|file| 300_000 + file as usize * 77_777).chain([50, 70_000]);
            let named =
                sizes.zip(0..).map(|(size, file)| (format!("l{layer}-f{file}"), noise(size, layer * 100 + file)));
            named.collect()
        };
        let contents: Vec<_> = [files(0), files(1)].concat();
        let made = tokio::task::block_in_place(|| {
            let mut zstd = made(Compression::Zstd, &files(1), told);
            done(&mut zstd);
            [made(Compression::Gzip, &files(0), |lines| long_winded(lines)), zstd]
        });
        let registry = Registry::start().await;
        let (reference, config_bytes) = put(&registry, &made);
        let layer_bytes = made.iter().map(|made| made.layer.len() as u64).sum();
        let directory = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::default();
        Self { stage: Stage { directory, registry, supervisor, reference, contents, layer_bytes }, config_bytes }
    }

    async fn check_all(&self, mount: &OwnedFd) {
        for (name, data) in &self.stage.contents {
            assert!(read_file(mount, name).await.unwrap() == *data, "{name}");
        }
    }
}

/// Takes the image in; gives its reference and the bytes of its configuration.
fn put(registry: &Registry, layers: &[Made]) -> (String, u64) {
    let diff_ids: Vec<Digest> = layers.iter().map(|made| Digest::of(&made.tar)).collect();
    let config = json!({
        "architecture": host(), "os": "linux", "config": {"Cmd": ["x"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = config.to_string().into_bytes();
    let blob = |media_type: &str, bytes: &[u8], annotations: Value| {
        let digest = registry.put_blob("some/image", bytes);
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len(), "annotations": annotations})
    };
    let layer = |made: &Made| blob(made.media_type(), &made.layer, json!(made.annotations));
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type,
        "config": blob("application/vnd.oci.image.config.v1+json", &config, json!({})),
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    });
    registry.put_manifest("some/image", "tag", media_type, manifest.to_string().as_bytes());
    (format!("{}/some/image:tag", registry.address), config.len() as u64)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_image_that_nobody_has_indexed_is_read_by_its_own_tables() {
    if !is_possible() {
        return;
    }
    let mut site = Site::new(honest).await;
    let store = site.stage.open().await;
    let mut events = store.events();
    let image = site.stage.ensure(&store).await;
    assert!(!store.is_complete(&image));
    assert_eq!(store.counters().layers_by_contents, 2);
    let details = store.details(&site.stage.reference, false).await.unwrap();
    assert!(details.layers.iter().all(|layer| layer.read_by == Some("tableOfContents")), "{details:?}");
    let mount = store.mount(&image).unwrap();
    for file in [9, 5, 18, 19] {
        let (name, data) = &site.stage.contents[file];
        assert!(read_file(&mount, name).await.unwrap() == *data, "{name}");
    }
    let fetched = store.counters().demand_bytes;
    assert!(fetched < site.stage.layer_bytes / 4, "{fetched} of {} for four files", site.stage.layer_bytes);
    store.complete(&image).await.unwrap();
    assert_eq!(events.recv().await.unwrap(), ImageEvent::Complete { image: image.id });
    let all = site.stage.layer_bytes + site.config_bytes;
    assert_eq!(site.stage.registry.blob_bytes(), all, "no byte came twice");
    site.stage.registry.fault(Fault::Status(500));
    site.check_all(&mount).await;
    let details = store.details(&site.stage.reference, false).await.unwrap();
    assert!(details.layers.iter().all(|layer| layer.complete && layer.read_by.is_none()), "{details:?}");

    // What was learnt meanwhile is an index like others.
    site.stage.registry.fault(Fault::None);
    drop((mount, image));
    store.remove(&site.stage.reference).await.unwrap();
    let image = site.stage.ensure(&store).await;
    assert!(!store.is_complete(&image));
    let counters = store.counters();
    assert_eq!((counters.layers_by_contents, counters.layers_by_own_index), (2, 2));
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_killed_store_goes_on_by_the_tables_that_it_has() {
    if !is_possible() {
        return;
    }
    let mut site = Site::new(honest).await;
    let store = site.stage.open().await;
    let image = site.stage.ensure(&store).await;
    let mount = store.mount(&image).unwrap();
    let (name, data) = &site.stage.contents[3];
    assert!(read_file(&mount, name).await.unwrap() == *data);
    drop((image, store));
    let store = site.stage.open().await;
    for file in [6, 14] {
        let (name, data) = &site.stage.contents[file];
        assert!(read_file(&mount, name).await.unwrap() == *data, "{name}");
    }
    assert_eq!(store.counters().layers_by_contents, 0, "they were not fetched again");
    let image = site.stage.ensure(&store).await;
    store.complete(&image).await.unwrap();
    site.check_all(&mount).await;
    store.close().await;
}

/// Mounts an image with a table that lies, and says what is told when it is complete.
async fn untruth(site: &mut Site) -> String {
    let store = site.stage.open().await;
    let mut events = store.events();
    let image = site.stage.ensure(&store).await;
    assert!(!store.is_complete(&image));
    let mount = store.mount(&image).unwrap();
    let (name, data) = &site.stage.contents[1];
    assert!(read_file(&mount, name).await.unwrap() == *data, "the other layer tells the truth");
    store.complete(&image).await.unwrap_err();
    let ImageEvent::Untrue { images, cause, .. } = events.recv().await.unwrap() else { panic!("nobody was told") };
    assert_eq!(images, [image.id]);
    assert_eq!(site.stage.folder("quarantine").len(), 1);
    drop((image, mount));
    // Never believed again: the layer is pulled, the other one may be used as before.
    let image = site.stage.ensure(&store).await;
    assert!(site.stage.folder("lazy").len() <= 1);
    let image_again =
        store.pull(&site.stage.reference, PullPolicy::IfNotPresent, ProgressSender::none()).await.unwrap();
    assert!(store.is_complete(&image_again));
    let mount = store.mount(&image).unwrap();
    site.check_all(&mount).await;
    drop((image, image_again, mount));
    store.close().await;
    cause
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tables_that_lie_are_found_out_and_never_believed_again() {
    if !is_possible() {
        return;
    }
    let mut site = Site::new(|lines| lines[1]["uid"] = json!(4711)).await;
    let cause = untruth(&mut site).await;
    assert!(cause.contains("describes other files"), "{cause}");

    let mut site = Site::new(|lines| lines[2]["chunkDigest"] = json!(Digest::of(b"other"))).await;
    let cause = untruth(&mut site).await;
    assert!(cause.contains("a digest that is not the layer's"), "{cause}");

    // One file less, and its bytes as another's.
    let mut site = Site::new(|lines| {
        lines.remove(lines.len() - 3);
    })
    .await;
    let cause = untruth(&mut site).await;
    assert!(cause.contains("describes other files"), "{cause}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_table_says_wrongly_is_never_read() {
    if !is_possible() {
        return;
    }
    // Two pieces in one another's places, each with its own digest: bytes that are the layer's, but not there.
    let mut site = Site::new(|lines| {
        let one = lines[1]["chunkDigest"].clone();
        lines[1]["chunkDigest"] = lines[2]["chunkDigest"].clone();
        lines[2]["chunkDigest"] = one;
    })
    .await;
    let store = site.stage.open().await;
    let image = site.stage.ensure(&store).await;
    let mount = store.mount(&image).unwrap();
    let (name, _) = &site.stage.contents[10];
    let error = read_file(&mount, name).await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    let (name, data) = &site.stage.contents[12];
    assert!(read_file(&mount, name).await.unwrap() == *data, "other files are as good as ever");
    drop((mount, image));
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_layer_whose_table_cannot_be_had_is_pulled() {
    if !is_possible() {
        return;
    }
    let other = |name: &'static str, value: String| {
        move |made: &mut Made| drop(made.annotations.insert(name.to_owned(), value))
    };
    let wrong = Digest::of(b"other").to_string();
    let mut sites = vec![
        Site::with(honest, other(CHUNKED_DIGEST, wrong.clone())).await,
        Site::with(honest, other(CHUNKED_POSITION, "100:100:100:1".to_owned())).await,
        Site::with(honest, other(CHUNKED_POSITION, format!("1:2:{}:1", u64::MAX))).await,
        Site::with(honest, |made| made.annotations.clear()).await,
        Site::with(|lines| lines[1]["name"] = json!("../out"), |_made| {}).await,
        Site::with(|lines| drop(lines[1].as_object_mut().unwrap().remove("chunkDigest")), |_made| {}).await,
    ];
    for site in &mut sites {
        let store = site.stage.open().await;
        let image = site.stage.ensure(&store).await;
        assert_eq!(store.counters().layers_by_contents, 1, "the other layer");
        assert_eq!(site.stage.folder("blobs").len(), 1);
        store.complete(&image).await.unwrap();
        let mount = store.mount(&image).unwrap();
        site.check_all(&mount).await;
        drop((mount, image));
        store.close().await;
    }
    // A registry that gives layers only whole.
    let mut site = Site::new(honest).await;
    let store = site.stage.open().await;
    site.stage.registry.fault(Fault::Whole);
    let image = site.stage.ensure(&store).await;
    assert!(store.is_complete(&image));
    assert_eq!(store.counters().layers_by_contents, 0);
    store.close().await;
    // A layer that says that it is one of eStargz, and is not.
    let files = vec![("file".to_owned(), noise(3_000_000, 5))];
    let mut plain = tokio::task::block_in_place(|| made(Compression::Gzip, &files, honest));
    plain.layer = tokio::task::block_in_place(|| compressed(&plain.tar, Compression::Gzip));
    plain.annotations = [(ESTARGZ_DIGEST.to_owned(), wrong)].into();
    let registry = Registry::start().await;
    let (reference, _) = put(&registry, &[plain]);
    site.stage.registry = registry;
    site.stage.reference = reference;
    site.stage.contents = files;
    let store = site.stage.open().await;
    let image = site.stage.ensure(&store).await;
    assert!(store.is_complete(&image));
    let mount = store.mount(&image).unwrap();
    site.check_all(&mount).await;
    store.close().await;
}
