//! Images that are mounted before they are here, from the first read to the last: through the kernel's EROFS, loop and FUSE.

mod contents;

use super::*;
use crate::index::{LayerIndex, front_range};
use crate::lazy::event::ImageEvent;
use crate::lazy::limits::ARRIVING_READ_AHEAD_KIB;
use crate::lazy::source::{PublishedImage, PublishedLayer, RecordSource, SourceError, WantedImage};
use crate::testing::compressed;
use crate::testing::layout::{LayerBytes, TAR_GZIP};
use crate::testing::registry::{Fault, Registry};
use async_trait::async_trait;
use sampan_oci::media_type::Compression;
use sampan_sys::keeper::{DescriptorKeeper, KeptDescriptors};
use sampan_sys::loop_device;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicUsize;

/// What this machine must have: root, loop devices, and FUSE as Linux has it since 6.9.
fn is_possible() -> bool {
    let possible = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !possible {
        eprintln!("SKIPPED: mounting images that are not here needs root and /dev/fuse");
    }
    possible
}

/// What the supervisor is to a store: it outlives it.
#[derive(Default)]
struct Supervisor {
    kept: KeptDescriptors,
    ours: Option<OwnedFd>,
}

impl Supervisor {
    fn keeper(&mut self) -> DescriptorKeeper {
        self.drain();
        let (ours, theirs) = sampan_sys::socket::pair().unwrap();
        self.kept.hand_down(ours.as_fd()).unwrap();
        self.ours = Some(ours);
        DescriptorKeeper::open(theirs).unwrap()
    }

    fn drain(&mut self) {
        if let Some(ours) = &self.ours {
            self.kept.drain(ours.as_fd()).unwrap();
        }
    }
}

/// A store, its registry, and an image of two large layers and a small one.
struct Stage {
    directory: TempDir,
    registry: Registry,
    supervisor: Supervisor,
    reference: String,
    contents: Vec<(String, Vec<u8>)>,
    layer_bytes: u64,
}

fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8 & 0x3f
    };
    (0..bytes).map(|_| next()).collect()
}

fn gzip_layer(entries: &[(sampan_oci::layer::Entry, Vec<u8>)]) -> LayerBytes {
    let tar = archive(entries);
    let diff_id = sampan_oci::digest::Digest::of(&tar);
    LayerBytes { media_type: TAR_GZIP, bytes: compressed(&tar, Compression::Gzip), diff_id }
}

impl Stage {
    async fn new() -> Self {
        let registry = Registry::start().await;
        let mut contents = Vec::new();
        let mut layers = Vec::new();
        for layer in 0..2u64 {
            let files = (0..12u64).map(|file| {
                let data = noise(300_000 + file as usize * 77_777, layer * 100 + file);
                contents.push((format!("l{layer}-f{file}"), data.clone()));
                let kind = EntryKind::File { size: data.len() as u64, segments: None };
                (entry(&format!("l{layer}-f{file}"), kind), data)
            });
            layers.push(gzip_layer(&files.collect::<Vec<_>>()));
        }
        contents.push(("small".to_owned(), b"not large".to_vec()));
        layers.push(layer_with("small", "not large"));
        let reference = registry.put_image("an/image", "tag", &layers);
        let layer_bytes = layers.iter().map(|layer| layer.bytes.len() as u64).sum();
        let directory = tempfile::tempdir().unwrap();
        Self { directory, registry, supervisor: Supervisor::default(), reference, contents, layer_bytes }
    }

    async fn open(&mut self) -> ImageStore {
        self.open_with(None).await
    }

    async fn open_with(&mut self, index_source: Option<Arc<dyn IndexSource>>) -> ImageStore {
        let keeper = self.supervisor.keeper();
        let registry =
            RegistryConfig { insecure: vec![self.registry.address.to_string()], ..RegistryConfig::default() };
        let mut config = ImageStoreConfig::new(self.directory.path(), registry);
        config.keeper = Some(keeper);
        config.lazy_bytes_min = 1 << 20;
        // Nothing is brought but what is asked for, as long as the test is short.
        config.background_bytes_per_second = Some(1000);
        config.index_source = index_source;
        let store = loop {
            // Tasks of an older store may hold its lock for a moment.
            match ImageStore::open(config.clone()).await {
                Err(ImageError::Locked { .. }) => tokio::task::yield_now().await,
                opened => break opened.unwrap(),
            }
        };
        self.supervisor.drain();
        store
    }

    /// The image known and gone: its indexes are kept.
    async fn forgotten(&mut self) -> ImageStore {
        let store = self.open().await;
        let image = store.ensure(&self.reference, PullPolicy::IfNotPresent, ProgressSender::none()).await.unwrap();
        assert!(store.is_complete(&image), "the first pull is a whole one");
        drop(image);
        store.remove(&self.reference).await.unwrap();
        store
    }

    async fn ensure(&self, store: &ImageStore) -> Arc<Image> {
        store.ensure(&self.reference, PullPolicy::IfNotPresent, ProgressSender::none()).await.unwrap()
    }

    fn folder(&self, name: &str) -> Vec<String> {
        let files = fs::read_dir(self.directory.path().join("images").join(name)).unwrap();
        files.map(|file| file.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }
}

/// How many KiB a mounted image reads ahead.
fn read_ahead(store: &ImageStore, image: &Digest) -> u32 {
    let metadata = store.inner.paths.metadata(image);
    let device = loop_device::find(|path| path == metadata).unwrap().pop().unwrap();
    let name = device.path().file_name().unwrap().to_owned();
    let setting = Path::new("/sys/block").join(name).join("queue/read_ahead_kb");
    fs::read_to_string(setting).unwrap().trim().parse().unwrap()
}

/// Reads through the kernel, on a thread that may wait.
async fn read_file(mount: &OwnedFd, name: &str) -> std::io::Result<Vec<u8>> {
    let path = format!("/proc/self/fd/{}/{name}", mount.as_raw_fd());
    tokio::task::spawn_blocking(move || fs::read(path)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_image_that_was_here_before_is_mounted_at_once_and_arrives_behind_its_readers() {
    if !is_possible() {
        return;
    }
    let mut stage = Stage::new().await;
    let store = stage.forgotten().await;
    let before = stage.registry.blob_bytes();
    let mut events = store.events();
    let image = stage.ensure(&store).await;
    assert!(!store.is_complete(&image));
    assert_eq!(stage.folder("lazy").len(), 2, "the small layer is pulled");
    let mount = store.mount(&image).unwrap();
    let (name, data) = &stage.contents[5];
    assert!(read_file(&mount, name).await.unwrap() == *data);
    let fetched = stage.registry.blob_bytes() - before;
    assert!(fetched < stage.layer_bytes / 4, "{fetched} of {} for one file", stage.layer_bytes);
    let counters = store.counters();
    assert!(counters.misses > 0 && counters.demand_bytes > 0, "{counters}");

    store.complete(&image).await.unwrap();
    assert_eq!(events.recv().await.unwrap(), ImageEvent::Complete { image: image.id });
    assert!(store.is_complete(&image));
    assert_eq!(stage.folder("lazy"), Vec::<String>::new());
    assert_eq!(stage.registry.blob_bytes() - before, stage.layer_bytes + config_bytes(&stage), "no byte came twice");
    stage.registry.fault(Fault::Status(500));
    for (name, data) in &stage.contents {
        assert!(read_file(&mount, name).await.unwrap() == *data, "{name}");
    }
    assert_eq!(stage.folder("kept"), Vec::<String>::new(), "the blobs have indexes of their own");
    drop((mount, image));
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_read_ahead_for_a_start_and_more_when_it_is_over() {
    if !is_possible() {
        return;
    }
    let mut stage = Stage::new().await;
    let store = stage.forgotten().await;
    let image = stage.ensure(&store).await;
    let _mount = store.mount(&image).unwrap();
    let read_ahead = || read_ahead(&store, &image.id);
    assert_eq!(read_ahead(), 0);
    store.inner.read_ahead_while_arriving(&image.id).unwrap();
    assert_eq!(read_ahead(), ARRIVING_READ_AHEAD_KIB);
    store.complete(&image).await.unwrap();
    store.inner.read_ahead_again(&image.id).unwrap();
    let whole = read_ahead();
    store.inner.read_ahead_while_arriving(&image.id).unwrap();
    assert_eq!(read_ahead(), whole, "whoever is late changes nothing");
    store.close().await;
}

/// The configuration is a blob, too, and is fetched with the manifest.
fn config_bytes(stage: &Stage) -> u64 {
    stage.registry.last_config_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_store_that_is_killed_is_followed_by_one_that_goes_on() {
    if !is_possible() {
        return;
    }
    let mut stage = Stage::new().await;
    let store = stage.forgotten().await;
    let image = stage.ensure(&store).await;
    let mount = store.mount(&image).unwrap();
    let (name, data) = &stage.contents[2];
    assert!(read_file(&mount, name).await.unwrap() == *data);
    stage.registry.fault(Fault::Status(503));
    // A read that the old store cannot answer, and the new one does.
    let (waiting_name, expected) = stage.contents[20].clone();
    let path = format!("/proc/self/fd/{}/{waiting_name}", mount.as_raw_fd());
    let asked = stage.registry.requests();
    let waiting = std::thread::spawn(move || fs::read(path));
    while stage.registry.requests() == asked {
        tokio::task::yield_now().await;
    }
    drop(image);
    drop(store);
    let store = stage.open().await;
    stage.registry.fault(Fault::None);
    let image = stage.ensure(&store).await;
    let got = tokio::task::spawn_blocking(move || waiting.join().unwrap()).await.unwrap().unwrap();
    assert!(got == expected, "the reader saw nothing but a pause");
    store.complete(&image).await.unwrap();
    assert_eq!(stage.folder("lazy"), Vec::<String>::new());
    for (name, data) in &stage.contents {
        assert!(read_file(&mount, name).await.unwrap() == *data, "{name}");
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_layer_that_had_just_arrived_when_the_store_was_killed_is_read_as_one_that_is_here() {
    let mut stage = Stage::new().await;
    let disk = sampan_sys::read_ahead::below(&File::open(stage.directory.path()).unwrap()).unwrap();
    if !is_possible() || disk.is_none() {
        eprintln!("SKIPPED: the folder for temporary files is to be on a disk");
        return;
    }
    let store = stage.open().await;
    drop(stage.ensure(&store).await);
    let images = stage.directory.path().join("images");
    let mut whole = Vec::new();
    for folder in ["blobs", "indexes"] {
        let paths = stage.folder(folder).into_iter().map(|name| images.join(folder).join(name));
        whole.extend(paths.map(|path| (fs::read(&path).unwrap(), path)));
    }
    store.remove(&stage.reference).await.unwrap();
    let image = stage.ensure(&store).await;
    let (id, mount) = (image.id, store.mount(&image).unwrap());
    assert_eq!(read_ahead(&store, &id), 0);
    drop((image, store));
    for (bytes, path) in whole {
        fs::write(path, bytes).unwrap();
    }
    let store = stage.open().await;
    assert_eq!(stage.folder("lazy"), Vec::<String>::new());
    assert!(read_ahead(&store, &id) > 0);
    // Or its devices had been moved already.
    let metadata = store.inner.paths.metadata(&id);
    loop_device::find(|path| path == metadata).unwrap().pop().unwrap().set_read_ahead(0).unwrap();
    drop(store);
    let store = stage.open().await;
    assert!(read_ahead(&store, &id) > 0);
    for (name, data) in &stage.contents {
        assert!(read_file(&mount, name).await.unwrap() == *data, "{name}");
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_layer_that_a_failed_pull_began_arrives_for_the_others() {
    if !is_possible() {
        return;
    }
    let mut stage = Stage::new().await;
    let store = stage.forgotten().await;
    let diff_ids = stage.folder("kept").iter().map(|name| format!("sha256:{name}").parse().unwrap()).collect();
    // Another pull, which counts on the same layers and is still going on.
    let pins = crate::store::layers::Layers::pin(&store.inner, diff_ids);
    let small = layer_with("small", "not large").bytes;
    stage.registry.remove_blob("an/image", &small);
    store.ensure(&stage.reference, PullPolicy::IfNotPresent, ProgressSender::none()).await.unwrap_err();
    assert_eq!(stage.folder("lazy").len(), 2);
    stage.registry.put_blob("an/image", &small);
    let image = stage.ensure(&store).await;
    drop(pins);
    let complete = tokio::time::timeout(Duration::from_secs(60), store.complete(&image));
    complete.await.expect("nobody completes it").unwrap();
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_index_that_is_not_the_truth_is_told_and_never_believed_again() {
    if !is_possible() {
        return;
    }
    let mut stage = Stage::new().await;
    let store = stage.forgotten().await;
    if let Some(name) = stage.folder("kept").pop() {
        let path = stage.directory.path().join("images/kept").join(name);
        let file = fs::read(&path).unwrap();
        let mut index = crate::index::LayerIndex::decode(&file).unwrap();
        let front_end = crate::index::front_range(&file).unwrap().end;
        index.tree.inodes.iter_mut().for_each(|inode| inode.uid = 4711);
        let forged = [index.encode_front().unwrap(), file[front_end as usize..].to_vec()].concat();
        fs::remove_file(&path).unwrap();
        fs::write(&path, forged).unwrap();
    }
    let mut events = store.events();
    let image = stage.ensure(&store).await;
    let mount = store.mount(&image).unwrap();
    store.complete(&image).await.unwrap_err();
    let ImageEvent::Untrue { images, .. } = events.recv().await.unwrap() else { panic!("nobody was told") };
    assert_eq!(images, [image.id]);
    assert_eq!(stage.folder("quarantine").len(), 1);
    drop((image, mount));
    drop(stage.ensure(&store).await);
    assert_eq!(stage.folder("lazy").len(), 1, "the other index is as good as before");
    let image = store.pull(&stage.reference, PullPolicy::IfNotPresent, ProgressSender::none()).await.unwrap();
    assert!(store.is_complete(&image));
    let mount = store.mount(&image).unwrap();
    let (name, data) = &stage.contents[0];
    assert!(read_file(&mount, name).await.unwrap() == *data);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_image_that_goes_while_it_arrives_leaves_nothing() {
    if !is_possible() {
        return;
    }
    let mut stage = Stage::new().await;
    let store = stage.forgotten().await;
    let image = stage.ensure(&store).await;
    drop(store.mount(&image).unwrap());
    drop(image);
    store.remove(&stage.reference).await.unwrap();
    while !stage.folder("incoming").is_empty() {
        // What was being made goes when its threads have noticed.
        tokio::task::yield_now().await;
    }
    for folder in ["lazy", "blobs", "indexes", "metadata", "records", "incoming"] {
        assert_eq!(stage.folder(folder), Vec::<String>::new(), "{folder}");
    }
    let image = stage.ensure(&store).await;
    let pulled = store.pull(&stage.reference, PullPolicy::IfNotPresent, ProgressSender::none()).await.unwrap();
    assert_eq!(pulled.id, image.id);
    assert!(store.is_complete(&image));
    store.close().await;
}

/// Published indexes, as somebody whom this node trusts gives them; counts how often it is asked.
#[derive(Debug, Default)]
struct Published {
    indexes: Vec<Vec<u8>>,
    asked: AtomicUsize,
}

/// An index file in memory.
struct Bytes(Vec<u8>);

#[async_trait]
impl RecordSource for Bytes {
    async fn read(&self, range: std::ops::Range<u64>) -> Result<bytes::Bytes, SourceError> {
        Ok(bytes::Bytes::copy_from_slice(&self.0[range.start as usize..range.end as usize]))
    }
}

#[async_trait]
impl IndexSource for Published {
    async fn find(&self, wanted: &WantedImage) -> Option<PublishedImage> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let layer = |diff_id| {
            let file = self.indexes.iter().find(|file| LayerIndex::decode(file).unwrap().diff_id == diff_id)?;
            let front_end = front_range(file).unwrap().end;
            Some(PublishedLayer {
                front: LayerIndex::decode(file).unwrap(),
                front_end,
                records: Arc::new(Bytes(file.clone())),
            })
        };
        let layers = wanted.diff_ids.iter().map(|diff_id| layer(*diff_id)).collect();
        Some(PublishedImage { layers, pack: None, trace: Vec::new() })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_published_index_is_used_and_found_again_after_a_kill() {
    if !is_possible() {
        return;
    }
    let mut stage = Stage::new().await;
    drop(stage.forgotten().await);
    let kept = stage.directory.path().join("images/kept");
    let indexes = stage.folder("kept").into_iter().map(|name| fs::read(kept.join(name)).unwrap()).collect();
    fs::remove_dir_all(&kept).unwrap();
    let published = Arc::new(Published { indexes, asked: AtomicUsize::new(0) });
    let store = stage.open_with(Some(published.clone())).await;
    let image = stage.ensure(&store).await;
    assert_eq!(stage.folder("lazy").len(), 2);
    let mount = store.mount(&image).unwrap();
    let (name, data) = &stage.contents[4];
    assert!(read_file(&mount, name).await.unwrap() == *data);
    assert_eq!(published.asked.load(Ordering::Relaxed), 1);
    drop((image, store));
    let store = stage.open_with(Some(published.clone())).await;
    let (name, data) = &stage.contents[21];
    assert!(read_file(&mount, name).await.unwrap() == *data);
    assert_eq!(published.asked.load(Ordering::Relaxed), 2, "it was needed again, once");
    let image = stage.ensure(&store).await;
    store.complete(&image).await.unwrap();
    for (name, data) in &stage.contents {
        assert!(read_file(&mount, name).await.unwrap() == *data, "{name}");
    }
    store.close().await;
}
