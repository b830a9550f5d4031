//! Layers that arrive while they are read, from a real HTTP server with every fault: each byte against the truth.

use super::blob_map::BlobMap;
use super::complete::{CompletionError, Target, complete};
use super::compressed::CompressedCache;
use super::decode::{Records, Stretch};
use super::event::LayerEvent;
use super::layer::{LayerParts, LazyLayer, Surroundings};
use super::pages::PageCache;
use super::partial_file::PartialFile;
use super::records::FileRecords;
use super::remote::Remote;
use super::state::ReadBy;
use super::traffic::{Class, Traffic};
use crate::index::{LayerIndex, StreamLayout, front_range};
use crate::store::registry::{Client, Origin};
use crate::testing::registry::{Fault, Registry};
use crate::testing::{archive, compressed, entry, input};
use crate::tree::Kind;
use crate::unpack::{UnpackJob, unpack};
use proptest::prelude::*;
use rustix::io::Errno;
use sampan_oci::digest::Digest;
use sampan_oci::layer::{EntryKind, Segment};
use sampan_oci::manifest::Descriptor;
use sampan_oci::media_type::Compression;
use sampan_registry::config::TransferConfig;
use sampan_registry::{Credentials, RegistryConfig};
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tempfile::TempDir;

/// Bytes that deflate to about a half, a stream of its own for each seed.
fn text(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut draw = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let mut out: Vec<u8> = Vec::with_capacity(bytes + 64);
    while out.len() < bytes {
        if draw() % 3 == 0 || out.len() < 100 {
            out.extend((0..draw() % 12).map(|_| draw() as u8));
        } else {
            let from = out.len() - (draw() % 30_000).min(out.len() - 1) - 1;
            for at in 0..draw() % 40 {
                out.push(out[from + at]);
            }
        }
    }
    out.truncate(bytes);
    out
}

struct Truth {
    layer: Vec<u8>,
    index_file: Vec<u8>,
    blob: Vec<u8>,
}

fn truth(seed: u64, compression: Compression) -> Truth {
    let mut entries = Vec::new();
    for (number, size) in [700_001, 3, 0, 900_000, 65_536, 130_000, 4096, 1_500_000, 40].into_iter().enumerate() {
        let kind = EntryKind::File { size: size as u64, segments: None };
        entries.push((entry(&format!("f{number}"), kind), text(size, seed + number as u64)));
    }
    let segments: Vec<Segment> =
        (0..60).map(|number| Segment { offset: number * 7000 + seed % 900, length: 3000 + number * 20 }).collect();
    let data: u64 = segments.iter().map(|segment| segment.length).sum();
    let kind = EntryKind::File { size: 600_000, segments: Some(segments) };
    entries.insert(3, (entry("sparse", kind), text(data as usize, seed + 77)));
    let tar = archive(&entries);
    let layer = compressed(&tar, compression);
    let directory = tempfile::tempdir().unwrap();
    let blob = directory.path().join("blob");
    let job = UnpackJob {
        digest: Digest::of(&layer),
        diff_id: Digest::of(&tar),
        compression,
        stream_bytes_max: 1 << 30,
        blob: blob.clone(),
    };
    let unpacked = unpack(&job, &mut input(&layer)).unwrap();
    Truth { blob: std::fs::read(blob).unwrap(), index_file: unpacked.index_bytes, layer }
}

/// One layer, its server, and what it reported.
struct Case {
    truth: Truth,
    registry: Registry,
    directory: TempDir,
    events: Arc<Mutex<Vec<LayerEvent>>>,
    deadline: Duration,
}

impl Case {
    async fn new(seed: u64, compression: Compression) -> Self {
        // The pipeline blocks, which no thread of a runtime may.
        let truth = std::thread::spawn(move || truth(seed, compression)).join().unwrap();
        let registry = Registry::start().await;
        registry.put_blob("some/image", &truth.layer);
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("index"), &truth.index_file).unwrap();
        Self { truth, registry, directory, events: Arc::default(), deadline: Duration::from_secs(30) }
    }

    fn layer(&self, open: bool) -> Arc<LazyLayer> {
        let directory = self.directory.path();
        let index = LayerIndex::decode(&std::fs::read(directory.join("index")).unwrap()).unwrap();
        let (blob_bytes, layer_bytes) = (index.tree.blob_layout().1, index.layer_bytes);
        let (pages, compressed) = if open {
            (PageCache::open(directory, blob_bytes).unwrap(), CompressedCache::open(directory, layer_bytes).unwrap())
        } else {
            (
                PageCache::create(directory, blob_bytes).unwrap(),
                CompressedCache::create(directory, layer_bytes).unwrap(),
            )
        };
        let traffic = Arc::new(Traffic::new(None));
        let events = self.events.clone();
        let around = Surroundings {
            traffic: traffic.clone(),
            clock: Arc::default(),
            report: Arc::new(move |event| events.lock().unwrap().push(event)),
            read_deadline: self.deadline,
            runtime: tokio::runtime::Handle::current(),
        };
        let parts = LayerParts {
            directory: directory.to_owned(),
            number: 7,
            front_end: front_range(&self.truth.index_file).unwrap().end,
            index,
            read_by: ReadBy::Index,
            records: Arc::new(FileRecords(File::open(directory.join("index")).unwrap())),
            remote: self.remote(traffic),
            pages,
            compressed,
        };
        LazyLayer::new(parts, around)
    }

    fn remote(&self, traffic: Arc<Traffic>) -> Remote {
        let transfer =
            TransferConfig { attempts: 2, pause_first: Duration::from_millis(5), ..TransferConfig::default() };
        let address = self.registry.address.to_string();
        let config = RegistryConfig { insecure: vec![address.clone()], transfer, ..RegistryConfig::default() };
        let source = format!("{address}/some/image:tag").parse().unwrap();
        let layer: Descriptor = serde_json::from_value(serde_json::json!({
            "digest": Digest::of(&self.truth.layer).to_string(), "size": self.truth.layer.len(),
        }))
        .unwrap();
        Remote::new(Client::new(config), Origin { source, credentials: Credentials::anonymous() }, layer, traffic)
    }

    fn target(&self) -> Target {
        Target { blob: self.directory.path().join("new-blob"), stream_bytes_max: 1 << 30 }
    }
}

/// Reads as the kernel does: what is here, or what comes after asking for it.
fn read(layer: &LazyLayer, offset: u64, bytes: usize) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0xee; bytes];
    loop {
        if let Some(filled) = layer.read_present(offset, &mut buffer).unwrap() {
            buffer.truncate(filled);
            return Ok(buffer);
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        layer.want(offset, bytes as u32, Box::new(move |answer| sender.send(answer).unwrap()));
        receiver.recv().unwrap()?;
    }
}

/// Random reads by several threads at once.
fn read_about(layer: &Arc<LazyLayer>, blob: &[u8], seed: u64, reads: usize) {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let mut state = seed * 31 + thread;
                for _ in 0..reads {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let offset = (state >> 20) % (blob.len() as u64 / 4096) * 4096;
                    let length = (((state >> 50) % 24 + 1) * 4096) as usize;
                    let got = read(layer, offset, length).unwrap();
                    let expected = &blob[offset as usize..(offset as usize + length).min(blob.len())];
                    assert!(got == expected, "bytes at {offset} differ");
                }
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_byte_is_right_and_none_comes_twice() {
    for (seed, compression) in [(1, Compression::Gzip), (2, Compression::Zstd), (3, Compression::None)] {
        let case = Case::new(seed, compression).await;
        let layer = case.layer(false);
        let first = read(&layer, 0, 4096).unwrap();
        assert!(first == case.truth.blob[..4096]);
        if compression != Compression::Zstd {
            assert!(case.registry.blob_bytes() < case.truth.layer.len() as u64 / 3, "one page is not all");
        }
        let (reading, blob) = (layer.clone(), case.truth.blob.clone());
        tokio::task::spawn_blocking(move || read_about(&reading, &blob, seed, 12)).await.unwrap();
        assert!(case.registry.blob_bytes() <= case.truth.layer.len() as u64, "bytes came twice");
        let index = complete(&layer, case.target()).await.unwrap();
        assert!(index == case.truth.index_file);
        assert!(std::fs::read(case.target().blob).unwrap() == case.truth.blob);
        assert_eq!(case.registry.blob_bytes(), case.truth.layer.len() as u64, "bytes came twice, or never");
        layer.finish(File::open(case.target().blob).unwrap());
        assert!(read(&layer, 0, case.truth.blob.len()).unwrap() == case.truth.blob);
        assert_eq!(*case.events.lock().unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_background_waits_for_a_start_that_finds_all_it_reads() {
    let case = Case::new(13, Compression::Gzip).await;
    let layer = case.layer(false);
    let traffic = layer.surroundings().traffic.clone();
    let held_back = || async {
        let way = traffic.give_way(Class::Background, || false);
        tokio::time::timeout(Duration::from_millis(10), way).await.is_err()
    };
    layer.accept(std::iter::once((0, &case.truth.blob[..4096]))).unwrap();
    layer.read_present(0, &mut [0; 4096]).unwrap().unwrap();
    assert!(!held_back().await, "it began long ago");
    layer.begins();
    assert!(!held_back().await, "nobody has read since");
    layer.read_present(0, &mut [0; 4096]).unwrap().unwrap();
    assert!(held_back().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_here_before_a_kill_is_here_afterwards() {
    let case = Case::new(4, Compression::Gzip).await;
    let layer = case.layer(false);
    let (reading, blob) = (layer.clone(), case.truth.blob.clone());
    tokio::task::spawn_blocking(move || read_about(&reading, &blob, 9, 4)).await.unwrap();
    while !layer.is_idle() {
        // Readers have gone before the ends of their spans have come.
        tokio::task::yield_now().await;
    }
    let (pages, bytes) = (layer.pages.all_present(), case.registry.blob_bytes());
    layer.close();
    drop(layer);
    let again = case.layer(true);
    assert_eq!(again.pages.all_present(), pages);
    let (reading, blob) = (again.clone(), case.truth.blob.clone());
    tokio::task::spawn_blocking(move || read_about(&reading, &blob, 9, 4)).await.unwrap();
    assert_eq!(case.registry.blob_bytes(), bytes, "the same reads need nothing new");
    complete(&again, case.target()).await.unwrap();
    assert_eq!(case.registry.blob_bytes(), case.truth.layer.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_registry_without_ranges_gives_the_layer_in_one_go() {
    let case = Case::new(5, Compression::Gzip).await;
    case.registry.fault(Fault::Whole);
    let layer = case.layer(false);
    let reading = layer.clone();
    let reader = tokio::task::spawn_blocking(move || read(&reading, 3 << 20, 8192));
    complete(&layer, case.target()).await.unwrap();
    assert!(reader.await.unwrap().unwrap() == case.truth.blob[3 << 20..(3 << 20) + 8192]);
    assert!(std::fs::read(case.target().blob).unwrap() == case.truth.blob);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reader_waits_until_the_registry_is_well_again() {
    for fault in [Fault::Status(503), Fault::Status(403), Fault::Cut(5000), Fault::Corrupt] {
        let case = Case::new(6, Compression::Gzip).await;
        case.registry.fault(fault);
        let layer = case.layer(false);
        let reading = layer.clone();
        let reader = tokio::task::spawn_blocking(move || read(&reading, 1 << 20, 4096));
        while case.registry.requests() < 2 {
            tokio::task::yield_now().await;
        }
        case.registry.fault(Fault::None);
        let got = reader.await.unwrap().unwrap();
        assert!(got == case.truth.blob[1 << 20..(1 << 20) + 4096], "{fault:?}");
    }
}

#[test]
fn a_runtime_ends_with_its_transfers() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let elsewhere = runtime();
    let case = elsewhere.block_on(Case::new(6, Compression::Gzip));
    case.registry.fault(Fault::Silence);
    let ending = runtime();
    let entered = ending.enter();
    let layer = case.layer(false);
    drop(entered);
    layer.want(1 << 20, 4096, Box::new(|_answer| {}));
    while case.registry.requests() == 0 {
        std::thread::yield_now();
    }
    // The thread that unpacks begins beside the request, and waits for the answer.
    std::thread::sleep(Duration::from_millis(100));
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drop(ending);
        done.send(()).unwrap();
    });
    ended.recv_timeout(Duration::from_secs(60)).expect("a thread still waits for bytes that nobody brings");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reader_of_bytes_that_stay_wrong_gets_an_error_and_nothing_else() {
    for (fault, word) in [(Fault::Corrupt, ""), (Fault::Status(403), "denies"), (Fault::Status(404), "has lost blob")] {
        let mut case = Case::new(7, Compression::Gzip).await;
        case.deadline = Duration::from_millis(900);
        case.registry.fault(fault);
        let layer = case.layer(false);
        let reading = layer.clone();
        let error = tokio::task::spawn_blocking(move || read(&reading, 1 << 20, 4096)).await.unwrap().unwrap_err();
        assert_eq!(error, Errno::IO);
        let events = case.events.lock().unwrap().clone();
        let told = |event: &LayerEvent| match event {
            LayerEvent::Trouble { cause, readers_failed, .. } => *readers_failed > 0 && cause.contains(word),
            LayerEvent::Complete { .. } => false,
        };
        assert!(events.iter().any(told), "{fault:?}: {events:?}");
    }
}

/// Puts another index into a layer's folder: one that was made of other bytes and says that it is of these.
fn forge(case: &Case, forged: &Truth, change: impl FnOnce(&mut LayerIndex)) {
    let mut index = LayerIndex::decode(&forged.index_file).unwrap();
    change(&mut index);
    let records: Vec<Vec<u8>> = (0..index.spans.len())
        .map(|span| {
            let front_end = front_range(&forged.index_file).unwrap().end;
            let range = LayerIndex::decode(&forged.index_file).unwrap().record_range(front_end, span).unwrap();
            forged.index_file[range.start as usize..range.end as usize].to_vec()
        })
        .collect();
    let bytes = index.encode(&records).unwrap();
    std::fs::write(case.directory.path().join("index"), bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_index_that_lies_is_found_out() {
    let mode: fn(&mut LayerIndex) = |index| index.tree.inodes.iter_mut().for_each(|inode| inode.mode ^= 0o022);
    let size: fn(&mut LayerIndex) = |index| index.tree.contents[0].stream_offset += 512;
    for lie in [mode, size] {
        let mut case = Case::new(8, Compression::Gzip).await;
        forge(&case, &case.truth, lie);
        let forged = std::fs::read(case.directory.path().join("index")).unwrap();
        case.truth.index_file = forged;
        let layer = case.layer(false);
        let error = complete(&layer, case.target()).await.unwrap_err();
        assert!(matches!(error, CompletionError::Untrue(_)), "{error}");
        assert!(!Path::new(&case.target().blob).exists());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_start_pack_that_lies_is_found_out() {
    let case = Case::new(9, Compression::Gzip).await;
    let layer = case.layer(false);
    let good = &case.truth.blob[4096..8192];
    layer.expect_pack([1, 2].into());
    layer.accept([(1, good), (u32::MAX, good)].into_iter()).unwrap();
    assert!(read(&layer, 4096, 4096).unwrap() == good);
    assert_eq!(case.registry.blob_bytes(), 0, "it was in the pack");
    let reading = layer.clone();
    let waits = tokio::task::spawn_blocking(move || read(&reading, 8192, 4096));
    layer.accept([(2, good)].into_iter()).unwrap();
    layer.pack_ended();
    assert!(waits.await.unwrap().unwrap() == good);
    let error = complete(&layer, case.target()).await.unwrap_err();
    assert!(matches!(error, CompletionError::Untrue(_)), "{error}");
}

/// Unpacks every stretch of up to three spans by an index, from bytes that are all here; what comes out is somebody else's
/// business.
fn unpack_all(layer: &[u8], index: &LayerIndex, records: &[Vec<u8>]) -> usize {
    let directory = tempfile::tempdir().unwrap();
    let pages = PageCache::create(directory.path(), index.tree.blob_layout().1).unwrap();
    let cache = CompressedCache::create(directory.path(), index.layer_bytes).unwrap();
    cache.put(0, &bytes::Bytes::copy_from_slice(layer)).unwrap();
    let (map, layout) = (BlobMap::new(&index.tree.contents), StreamLayout::new(&index.tree));
    for first in 0..index.spans.len() {
        let spans = first..(first + 3).min(index.spans.len());
        let decoded = spans.clone().map(|span| index.decode_record(&layout, span, &records[span]));
        let Ok(decoded) = decoded.collect::<Result<Vec<_>, _>>() else { continue };
        let stretch = Stretch {
            index,
            map: &map,
            pages: &pages,
            compressed: &cache,
            spans,
            records: Records::Spans(decoded),
            given_up: &|| true,
            arrived: &|| {},
        };
        stretch.unpack().ok();
    }
    pages.all_present().total() as usize
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn no_index_however_false_harms_its_reader(
        contents in prop::collection::vec((any::<prop::sample::Index>(), -9000i64..9000, -9000i64..9000), 0..3),
        spans in prop::collection::vec((any::<prop::sample::Index>(), -4000i64..4000, -4000i64..4000, 0u8..8), 0..3),
        cut in any::<bool>(),
    ) {
        let truth = TRUTH.get_or_init(|| truth(11, Compression::Gzip));
        let mut index = LayerIndex::decode(&truth.index_file).unwrap();
        let front_end = front_range(&truth.index_file).unwrap().end;
        let records: Vec<Vec<u8>> = (0..index.spans.len())
            .map(|span| {
                let range = index.record_range(front_end, span).unwrap();
                truth.index_file[range.start as usize..range.end as usize].to_vec()
            })
            .collect();
        for (at, offset, size) in &contents {
            let content = at.get(&index.tree.contents);
            let number = index.tree.contents.iter().position(|other| other == content).unwrap();
            let content = &mut index.tree.contents[number];
            content.stream_offset = content.stream_offset.saturating_add_signed(*offset);
            content.size = content.size.saturating_add_signed(*size);
        }
        for (at, compressed, stream, bit) in &spans {
            let number = at.index(index.spans.len());
            let span = &mut index.spans[number];
            span.compressed_offset = span.compressed_offset.saturating_add_signed(*compressed);
            span.stream_offset = span.stream_offset.saturating_add_signed(*stream);
            span.bit = *bit;
        }
        // The sizes of files must be those of their contents: then this is accepted, or refused for something else.
        for inode in &mut index.tree.inodes {
            if let Kind::File { size, content: Some(content) } = &mut inode.kind {
                *size = index.tree.contents[*content as usize].size;
            }
        }
        let file = index.encode(&records).unwrap();
        if let Ok(read) = LayerIndex::decode(&file) {
            let layer = if cut { &truth.layer[..truth.layer.len() / 2] } else { &truth.layer[..] };
            let present = unpack_all(layer, &read, &records);
            if contents.is_empty() && spans.is_empty() && !cut {
                prop_assert_eq!(present as u64 * 4096, truth.blob.len() as u64);
            }
        }
    }
}

static TRUTH: OnceLock<Truth> = OnceLock::new();
