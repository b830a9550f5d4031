//! Blobs over bad connections: whatever the server does, the bytes come whole and in order, or an error does.

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use sampan_registry::config::TransferConfig;
use sampan_registry::{Credentials, FailureClass, FetchError, RegistryClient, RegistryConfig};

use crate::server::{Ending, Reply, Seen, Server, TestImage, client, config, ranged, read_all};

const LAYER_BYTES: usize = 1_000_000;

/// Serves an image whose blobs are answered by `answer`.
async fn serve(answer: impl Fn(&Bytes, &Seen) -> Reply + Send + Sync + 'static) -> (Server, TestImage) {
    let image = TestImage::new(LAYER_BYTES);
    let layer = image.layer.clone();
    let server = Server::start(move |seen| match seen.path.as_str() {
        "/v2/" => Reply::status(200),
        _ => answer(&layer, seen),
    })
    .await;
    (server, image)
}

async fn pull(client: &RegistryClient, server: &Server, image: &TestImage) -> Result<Vec<u8>, FetchError> {
    let opened = client.open_blob(&server.source("app:1"), &image.layer_descriptor(), &Credentials::anonymous()).await;
    read_all(&mut opened?).await
}

/// The first `length` bytes of an answer, and then what `ending` says.
fn cut(layer: &Bytes, seen: &Seen, length: usize, ending: Ending) -> Reply {
    let range = seen.range().unwrap_or(0..layer.len());
    let piece = layer.slice(range.start..range.end.min(range.start + length));
    let reply = match seen.range() {
        Some(range) => {
            let described = format!("bytes {}-{}/{}", range.start, range.end - 1, layer.len());
            Reply::status(206).header("content-range", described)
        }
        None => Reply::status(200),
    };
    reply.header("content-length", range.len()).body(piece).ending(ending)
}

#[tokio::test]
async fn parts_are_fetched_at_once_and_come_in_order() {
    let (server, image) = serve(ranged).await;
    assert_eq!(pull(&client(), &server, &image).await.unwrap(), image.layer);
    let mut starts: Vec<_> = server.seen().iter().filter_map(Seen::range).map(|range| range.start).collect();
    starts.sort_unstable();
    assert_eq!(starts, (0..LAYER_BYTES).step_by(64 << 10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_server_without_ranges_gives_one_stream() {
    let (server, image) = serve(|layer, _| Reply::ok(layer.clone())).await;
    assert_eq!(pull(&client(), &server, &image).await.unwrap(), image.layer);
    assert_eq!(server.count("/blobs/"), 1);
    let range = 500_000..500_100;
    let read =
        client().read_range(&server.source("app"), &image.layer_descriptor(), range, &Credentials::anonymous()).await;
    assert!(matches!(read, Err(FetchError::NoRanges { .. })));
}

#[tokio::test]
async fn a_broken_transfer_goes_on_from_the_byte_it_reached() {
    for ending in [Ending::Breaks, Ending::Stalls] {
        let broken = AtomicUsize::new(0);
        let (server, image) = serve(move |layer, seen| {
            let starts_third_part = seen.range().is_some_and(|range| range.start == 128 << 10);
            let breaks = starts_third_part && broken.fetch_add(1, Ordering::SeqCst) == 0;
            if breaks { cut(layer, seen, 1000, ending) } else { ranged(layer, seen) }
        })
        .await;
        assert_eq!(pull(&client(), &server, &image).await.unwrap(), image.layer);
        let resumed =
            server.seen().iter().filter_map(Seen::range).any(|range| range == ((128 << 10) + 1000..192 << 10));
        assert!(resumed, "{ending:?}: {:?}", server.seen().iter().filter_map(Seen::range).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_broken_stream_without_ranges_is_begun_again_and_skipped_forward() {
    let count = AtomicUsize::new(0);
    let (server, image) = serve(move |layer, _| {
        let reply = Reply::ok(layer.slice(..)).header("content-length", layer.len());
        match count.fetch_add(1, Ordering::SeqCst) {
            0 => reply.body(layer.slice(..300_000)).ending(Ending::Breaks),
            1 => reply.body(layer.slice(..10)).ending(Ending::Breaks),
            _ => reply,
        }
    })
    .await;
    assert_eq!(pull(&client(), &server, &image).await.unwrap(), image.layer);
    assert_eq!(server.count("/blobs/"), 3);
}

#[tokio::test]
async fn a_transfer_that_never_gets_on_ends() {
    let (server, image) = serve(|layer, seen| cut(layer, seen, 0, Ending::Breaks)).await;
    let error = pull(&client(), &server, &image).await.unwrap_err();
    assert_eq!(error.class(), FailureClass::Transient);
    assert!(error.to_string().contains("broke and could not be resumed"), "{error}");
}

#[tokio::test]
async fn a_server_that_only_crawls_counts_as_stalled() {
    let (server, image) = serve(|layer, seen| cut(layer, seen, 1, Ending::Crawls)).await;
    let transfer = TransferConfig { idle_timeout: Duration::from_millis(50), attempts: 2, ..config().transfer };
    let error = pull(&RegistryClient::new(RegistryConfig { transfer, ..config() }), &server, &image).await.unwrap_err();
    assert!(matches!(error, FetchError::Stalled { .. }), "{error}");
}

#[tokio::test]
async fn a_byte_at_a_time_is_gathered() {
    let (server, image) = serve(|layer, seen| {
        let range = seen.range().unwrap();
        let pieces = layer.slice(range.clone()).chunks(7).map(Bytes::copy_from_slice).collect();
        ranged(layer, seen).pieces(pieces)
    })
    .await;
    let opened =
        client().open_blob(&server.source("app:1"), &image.layer_descriptor(), &Credentials::anonymous()).await;
    let (mut reader, mut whole, mut chunks) = (opened.unwrap(), Vec::new(), 0);
    while let Some(chunk) = reader.next().await.unwrap() {
        whole.extend_from_slice(&chunk);
        chunks += 1;
    }
    assert_eq!(whole, image.layer);
    assert!(chunks <= 5 * LAYER_BYTES.div_ceil(64 << 10), "{chunks}");
}

#[tokio::test]
async fn lies_about_ranges_are_found_out() {
    let (server, image) = serve(|layer, _| {
        Reply::status(206).header("content-range", format!("bytes 5-9/{LAYER_BYTES}")).body(layer.slice(5..10))
    })
    .await;
    let error = pull(&client(), &server, &image).await.unwrap_err();
    assert!(matches!(error, FetchError::Malformed { .. }), "{error}");
    let (server, image) = serve(|layer, _| {
        Reply::status(206).header("content-range", "bytes 0-65535/9999999").body(layer.slice(..65536))
    })
    .await;
    let error = pull(&client(), &server, &image).await.unwrap_err();
    assert!(matches!(error, FetchError::SizeMismatch { actual: 9_999_999, .. }), "{error}");
}

#[tokio::test]
async fn signed_addresses_that_end_are_asked_for_anew() {
    let signature = Arc::new(AtomicUsize::new(0));
    let image = TestImage::new(LAYER_BYTES);
    let (layer, valid, uses) = (image.layer.clone(), Arc::clone(&signature), AtomicUsize::new(0));
    let storage = Server::start(move |seen| {
        // Every signature is good for three requests.
        let current = seen.query == format!("signature={}", valid.load(Ordering::SeqCst));
        if current && uses.fetch_add(1, Ordering::SeqCst) % 4 < 3 { ranged(&layer, seen) } else { Reply::status(403) }
    })
    .await;
    let address = storage.address;
    let server = Server::start(move |seen| match seen.path.as_str() {
        "/v2/" => Reply::status(200),
        _ => {
            let next = signature.fetch_add(1, Ordering::SeqCst) + 1;
            Reply::status(302).header("location", format!("http://{address}/blob?signature={next}"))
        }
    })
    .await;
    // One part at a time: two would take each other's signature away.
    let transfer = TransferConfig { parts_in_flight: 1, ..config().transfer };
    let client = RegistryClient::new(RegistryConfig { transfer, ..config() });
    assert_eq!(pull(&client, &server, &image).await.unwrap(), image.layer);
}

#[tokio::test]
async fn threads_read_without_the_runtime() {
    let (server, image) = serve(ranged).await;
    let opened =
        client().open_blob(&server.source("app:1"), &image.layer_descriptor(), &Credentials::anonymous()).await;
    let mut blocking = opened.unwrap().blocking();
    let read = tokio::task::spawn_blocking(move || {
        let mut whole = Vec::new();
        blocking.read_to_end(&mut whole).map(|_| (whole, blocking.position()))
    });
    assert_eq!(read.await.unwrap().unwrap(), (image.layer.to_vec(), LAYER_BYTES as u64));
}

#[tokio::test]
async fn a_waiting_reader_can_be_cancelled() {
    let (server, image) = serve(|layer, seen| cut(layer, seen, 100, Ending::Stalls)).await;
    let transfer = TransferConfig { idle_timeout: Duration::from_secs(600), ..config().transfer };
    let client = RegistryClient::new(RegistryConfig { transfer, ..config() });
    let opened = client.open_blob(&server.source("app:1"), &image.layer_descriptor(), &Credentials::anonymous()).await;
    let reader = opened.unwrap();
    let canceller = reader.canceller();
    let waiting = tokio::task::spawn_blocking(move || reader.blocking().read(&mut [0; 10]));
    canceller.cancel();
    let error = waiting.await.unwrap().unwrap_err();
    let error = error.get_ref().and_then(|error| error.downcast_ref::<FetchError>()).unwrap();
    assert_eq!(error.class(), FailureClass::Cancelled);
}

#[tokio::test]
async fn ranges_are_read_at_random() {
    let (server, image) = serve(ranged).await;
    let client = client();
    let read = async |range: std::ops::Range<u64>| {
        client.read_range(&server.source("app:1"), &image.layer_descriptor(), range, &Credentials::anonymous()).await
    };
    assert_eq!(read(999_990..1_000_000).await.unwrap(), image.layer[999_990..]);
    assert_eq!(read(0..300_000).await.unwrap(), image.layer[..300_000]);
    assert!(read(7..7).await.unwrap().is_empty());
    assert!(matches!(read(999_990..1_000_001).await, Err(FetchError::BadRange { .. })));
}

#[tokio::test]
async fn mirrors_are_asked_first_and_passed_over_when_they_fail() {
    let (server, image) = serve(ranged).await;
    let mirror = Server::start(|_| Reply::status(404)).await;
    let mirrors = [(server.address.to_string(), vec![mirror.address.to_string()])].into_iter().collect();
    let client = RegistryClient::new(RegistryConfig { mirrors, ..config() });
    assert_eq!(pull(&client, &server, &image).await.unwrap(), image.layer);
    assert_eq!(mirror.count("/blobs/"), 1);
}

/// Servers that fail by chance: every seed must end in the right bytes.
#[tokio::test]
async fn chaos_does_no_harm() {
    for seed in 0..24_u64 {
        let state = Mutex::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let (server, image) = serve(move |layer, seen| {
            let mut state = state.lock().unwrap();
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            let chance = *state >> 20;
            match chance % 8 {
                0 => Reply::status(503),
                1 => Reply::status(429).header("retry-after", "0"),
                2 | 3 => cut(layer, seen, 1 + (chance as usize >> 8) % 50_000, Ending::Breaks),
                4 => Reply::ok(layer.clone()),
                _ => ranged(layer, seen),
            }
        })
        .await;
        let transfer = TransferConfig { attempts: 12, ..config().transfer };
        let client = RegistryClient::new(RegistryConfig { transfer, ..config() });
        let bytes = pull(&client, &server, &image).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(bytes == image.layer, "seed {seed}");
    }
}

/// Callers spawn these futures.
#[test]
fn futures_can_be_sent_to_other_threads() {
    fn sendable<T: Send>(_: &T) {}
    let (client, image) = (client(), TestImage::new(1));
    let (source, descriptor) = ("localhost:1/app".parse().unwrap(), image.layer_descriptor());
    let (host, anonymous) = (sampan_oci::platform::Platform::host(), Credentials::anonymous());
    sendable(&client.resolve(&source, &host, &anonymous));
    sendable(&client.current_digest(&source, &anonymous));
    sendable(&client.open_blob(&source, &descriptor, &anonymous));
    sendable(&client.read_range(&source, &descriptor, 0..1, &anonymous));
}
