//! What is published is found by those who trust its maker, and by nobody else; and nothing that was changed is believed.

use super::describe::{Description, Subject};
use super::*;
use crate::index::{Compression as IndexCompression, HEADER_BYTES, LayerIndex, StreamLayout, front_range};
use crate::lazy::source::{IndexSource, PageNumber, PublishedImage, Touch, WantedImage};
use crate::testing::{archive, entry};
use crate::tree::Kind;
use crate::unpack::tests::unpack_whole;
use sampan_oci::digest::Digest;
use sampan_oci::layer::EntryKind;
use sampan_oci::manifest::{Descriptor, Layer};
use sampan_oci::media_type::Compression;
use sampan_oci::reference::ImageSource;
use sampan_registry::{Credentials, RegistryConfig};
use std::collections::BTreeMap;
use std::fs;
use tempfile::TempDir;

/// A node that has an image and one that wants it, with a cache folder between them.
struct Place {
    directory: TempDir,
    maker: Publications,
    user: Publications,
    image: Publishable,
    wanted: WantedImage,
    index: LayerIndex,
    blob: PathBuf,
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: String::new(),
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        annotations: BTreeMap::new(),
        platform: None,
    }
}

fn publications(folder: &Path, cache: &Path) -> Publications {
    let client = RegistryClient::new(RegistryConfig::default());
    Publications::new(client, folder, Some(CacheLocation::Folder(cache.to_owned())))
}

/// Made on a thread of its own: unpacking blocks.
fn place() -> Place {
    std::thread::spawn(make_place).join().unwrap()
}

/// The layer's files are pages of one letter each.
fn make_place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let file = |name: &str, pages: usize| {
        let size = pages * 4096;
        (entry(name, EntryKind::File { size: size as u64, segments: None }), vec![name.as_bytes()[0]; size])
    };
    let tar = archive(&[file("a", 3), file("b", 40)]);
    let (index, index_bytes) = unpack_whole(&tar, &tar, Compression::None).unwrap();
    assert_eq!(index.compression, IndexCompression::None);
    fs::write(path("index"), &index_bytes).unwrap();
    fs::write(path("blob"), [vec![b'a'; 3 * 4096], vec![b'b'; 40 * 4096]].concat()).unwrap();
    let source: ImageSource = format!("oci:{}:x", path("layout").display()).parse().unwrap();
    let manifest = descriptor(b"manifest");
    let layer = Layer { descriptor: descriptor(&tar), compression: Compression::None };
    let wanted = WantedImage {
        source: source.clone(),
        credentials: Credentials::anonymous(),
        manifest: manifest.digest,
        layers: vec![layer.clone()],
        diff_ids: vec![index.diff_id],
    };
    let of_layer = PublishableLayer {
        digest: layer.descriptor.digest,
        bytes: layer.descriptor.size,
        diff_id: index.diff_id,
        index: path("index"),
    };
    let image = Publishable {
        source,
        reference: "x".to_owned(),
        manifest,
        layers: vec![of_layer],
        credentials: Credentials::anonymous(),
    };
    Place {
        maker: publications(&path("maker"), &path("cache")),
        user: publications(&path("user"), &path("cache")),
        image,
        wanted,
        index,
        blob: path("blob"),
        directory,
    }
}

impl Place {
    fn trust(&self) {
        let key = self.maker.keys().list().unwrap()[0].public;
        self.user.keys().add("maker", key).unwrap();
    }

    fn cached(&self, extension: &str) -> PathBuf {
        let digest = match extension.split('.').next() {
            Some("index") => self.wanted.layers[0].descriptor.digest,
            _ => self.wanted.manifest,
        };
        self.directory.path().join(format!("cache/sha256/{}.{extension}", digest.hex()))
    }

    /// Changes a file of the cache.
    fn change(&self, extension: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.cached(extension);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }

    fn change_text(&self, extension: &str, from: &str, to: &str) {
        self.change(extension, |bytes| {
            let text = String::from_utf8(bytes.clone()).unwrap();
            assert!(text.contains(from), "{text}");
            *bytes = text.replace(from, to).into_bytes();
        });
    }

    async fn find(&self) -> Option<PublishedImage> {
        self.user.find(&self.wanted).await
    }

    /// Whether the layer's index is found.
    async fn finds_index(&self) -> bool {
        self.find().await.is_some_and(|found| found.layers[0].is_some())
    }

    /// Signs, with the maker's key, any file as the layer's index.
    fn sign_as_index(&self, file: &[u8], head_bytes: usize) {
        let layer = &self.image.layers[0];
        let subject = Subject::Index { layer: layer.digest, layer_bytes: layer.bytes, diff_id: layer.diff_id };
        let head = describe::Head::of(&file[..head_bytes]);
        let keys = self.maker.keys();
        let description = Description::signed(keys, Digest::of(file), file.len() as u64, subject, head, "").unwrap();
        fs::write(self.cached("index"), file).unwrap();
        fs::write(self.cached("index.json"), description.to_json().to_string()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_found_by_whom_its_maker_is_trusted() {
    let place = place();
    assert!(place.find().await.is_none(), "nothing is there yet");
    let report = place.maker.publish(place.image.clone()).await.unwrap();
    assert_eq!(report.files.iter().map(|file| file.kind).collect::<Vec<_>>(), ["index"]);
    assert!(report.artifact.is_none() && report.cache.is_some());
    assert!(place.find().await.is_none(), "its maker is not trusted");
    place.trust();
    let found = place.find().await.unwrap();
    let layer = found.layers[0].as_ref().unwrap();
    assert_eq!(layer.front, place.index);
    let file = fs::read(place.directory.path().join("index")).unwrap();
    let range = layer.front.record_range(front_range(&file).unwrap().end, 0).unwrap();
    let record = layer.records.read(range).await.unwrap();
    layer.front.decode_record(&StreamLayout::new(&layer.front.tree), 0, &record).unwrap();
    assert!(layer.records.read(0..file.len() as u64 + 1).await.is_err());
    place.user.keys().remove("maker").unwrap();
    assert!(place.find().await.is_none(), "its maker is trusted no more");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forged_is_not_used() {
    let place = place();
    place.trust();
    let publish = async || place.maker.publish(place.image.clone()).await.unwrap();
    publish().await;
    assert!(place.finds_index().await);

    place.change_text("index.json", "vnd.sampan.signatures", "vnd.sampan.signatures.not");
    assert!(!place.finds_index().await, "unsigned");
    publish().await;
    let diff_id = place.index.diff_id.to_string();
    place.change_text("index.json", &diff_id, &Digest::of(b"other").to_string());
    assert!(!place.finds_index().await, "another diffID");
    publish().await;
    place.change("index", |bytes| bytes[HEADER_BYTES + 5] ^= 1);
    assert!(!place.finds_index().await, "a damaged front part");

    // An inode table that says something else, behind a right checksum, under the old signature.
    publish().await;
    let mut forged = place.index.clone();
    for inode in &mut forged.tree.inodes {
        inode.mode = if matches!(inode.kind, Kind::File { .. }) { 0o6777 } else { inode.mode };
    }
    let file = forged.encode(&[Vec::new()]).unwrap();
    place.change("index", |bytes| *bytes = file.clone());
    assert!(!place.finds_index().await, "a forged inode table");
    // An extent that lies elsewhere.
    let mut forged = place.index.clone();
    forged.tree.contents.truncate(1);
    forged.tree.inodes.iter_mut().for_each(|inode| {
        if let Kind::File { content, .. } = &mut inode.kind {
            *content = None;
        }
    });
    let file = forged.encode(&[Vec::new()]).unwrap();
    place.change("index", |bytes| *bytes = file.clone());
    assert!(!place.finds_index().await, "a forged extent");
    publish().await;
    assert!(place.finds_index().await, "the right one is back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_window_is_refused_when_it_is_read() {
    let place = place();
    place.trust();
    place.maker.publish(place.image.clone()).await.unwrap();
    place.change("index", |bytes| *bytes.last_mut().unwrap() ^= 1);
    let found = place.find().await.unwrap();
    let layer = found.layers[0].as_ref().unwrap();
    let file = fs::read(place.cached("index")).unwrap();
    let last = layer.front.spans.len() - 1;
    let range = layer.front.record_range(front_range(&file).unwrap().end, last).unwrap();
    let record = layer.records.read(range).await.unwrap();
    assert!(layer.front.decode_record(&StreamLayout::new(&layer.front.tree), last, &record).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_signature_does_not_make_a_wrong_file_right() {
    let place = place();
    place.trust();
    place.maker.publish(place.image.clone()).await.unwrap();
    let mut of_other = place.index.clone();
    of_other.layer_digest = Digest::of(b"another layer");
    let file = of_other.encode(&[Vec::new()]).unwrap();
    place.sign_as_index(&file, front_range(&file).unwrap().end as usize);
    assert!(!place.finds_index().await, "it says itself that it is another layer's");
    place.sign_as_index(b"rubbish", 7);
    assert!(!place.finds_index().await, "it is no index");
    let file = fs::read(place.directory.path().join("index")).unwrap();
    place.sign_as_index(&file, HEADER_BYTES);
    assert!(!place.finds_index().await, "the signature ends before the front part does");
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_and_traces_travel_with_the_index() {
    let place = place();
    place.trust();
    let touches = [(0, 7, 4), (0, 0, 2)];
    let touches = touches.map(|(layer, page, pages)| Touch { first: PageNumber { layer, page }, pages });
    let manifest = place.wanted.manifest;
    let blobs = [(place.index.diff_id, place.blob.clone())];
    let error = place.maker.make_pack("x", manifest, &blobs, None).unwrap_err();
    assert!(matches!(error, PublishError::NoTrace { .. }), "{error}");
    place.maker.traces().record(&manifest, "sh", &touches).unwrap();
    let report = place.maker.make_pack("x", manifest, &blobs, None).unwrap();
    assert_eq!((report.pages, report.command.as_str()), (6, "sh"));
    assert_eq!(place.maker.pack(&manifest), Some(report));
    let report = place.maker.publish(place.image.clone()).await.unwrap();
    assert_eq!(report.files.iter().map(|file| file.kind).collect::<Vec<_>>(), ["index", "pack", "trace"]);

    let found = place.find().await.unwrap();
    assert_eq!(found.trace, touches);
    let mut pack = found.pack.unwrap();
    let pages: Vec<u32> = pack.pages().iter().map(|page| page.page).collect();
    assert_eq!(pages, [7, 8, 9, 10, 0, 1]);
    let packed = pack.next().await.unwrap().unwrap();
    assert_eq!(packed.pages, pack.pages());
    assert_eq!(packed.bytes.len(), 6 * 4096);
    assert!(packed.bytes[..4 * 4096].iter().all(|byte| *byte == b'b'));
    assert!(packed.bytes[4 * 4096..].iter().all(|byte| *byte == b'a'));
    assert_eq!(pack.next().await.unwrap(), None);

    // A frame that was changed is noticed when it comes, a head before anything is used.
    place.change("pack", |bytes| *bytes.last_mut().unwrap() ^= 1);
    let mut pack = place.find().await.unwrap().pack.unwrap();
    assert!(pack.next().await.is_err());
    place.change("pack", |bytes| bytes[40] ^= 1);
    place.change("trace", |bytes| bytes[50] ^= 1);
    let found = place.find().await.unwrap();
    assert!(found.pack.is_none() && found.trace.is_empty() && found.layers[0].is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_published_says_why() {
    let place = place();
    let mut image = place.image.clone();
    image.layers[0].digest = Digest::of(b"the same files, packed otherwise");
    let error = place.maker.publish(image.clone()).await.unwrap_err();
    assert!(matches!(error, PublishError::OtherPacking { .. }), "{error}");
    image.layers[0].index = place.directory.path().join("none");
    let error = place.maker.publish(image).await.unwrap_err();
    assert!(matches!(error, PublishError::NoIndex { .. }), "{error}");
    let client = RegistryClient::new(RegistryConfig::default());
    let without_cache = Publications::new(client, &place.directory.path().join("maker"), None);
    let error = without_cache.publish(place.image.clone()).await.unwrap_err();
    assert!(matches!(error, PublishError::NoRegistry { .. }), "{error}");
}
