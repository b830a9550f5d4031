//! Damage on the disk, and a disk that has to be shared.

use super::*;
use crate::testing::layout::Layout;
use std::os::unix::fs::FileExt;

fn large_layer(name: &str, seed: u8) -> LayerBytes {
    layer_with(name, &format!("{seed} is repeated ").repeat(20_000))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_damaged_on_the_disk_is_found_and_fetched_again() {
    let mut place = place();
    let one = place.layout.image("one", &host(), &[large_layer("a", 1), large_layer("b", 2)]);
    let store = place.open().await.unwrap();
    let image = store.ensure(&one, PullPolicy::IfNotPresent, ProgressSender::none()).await.unwrap();
    let verdicts = |verified: &[VerifiedLayer]| verified.iter().map(|layer| layer.verdict).collect::<Vec<_>>();
    assert_eq!(verdicts(&store.verify(&one).await.unwrap()), [Verdict::Good, Verdict::Good]);
    let mount = store.mount(&image).unwrap();
    let blob = place.data_dir.join("images/blobs").join(image.config.rootfs.diff_ids[1].hex());
    // As a bad disk does it: behind the back of its file.
    let before = fs::read(&blob).unwrap();
    fs::File::options().write(true).open(&blob).unwrap().write_all_at(b"damage", 70_000).unwrap();
    assert_eq!(verdicts(&store.verify(&one).await.unwrap()), [Verdict::Good, Verdict::Mended]);
    assert_eq!(fs::read(&blob).unwrap(), before);
    assert!(read(&store, &image, "b").starts_with("2 is repeated 2 is repeated"));
    assert_eq!(read(&store, &image, "b").len(), "2 is repeated ".len() * 20_000);
    drop(mount);
    fs::remove_dir_all(&place.layout.directory).unwrap();
    fs::File::options().write(true).open(&blob).unwrap().write_all_at(b"damage", 0).unwrap();
    store.verify(&one).await.unwrap_err();
    assert!(blob.exists(), "what cannot be mended stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_nobody_uses_make_room_the_longest_unused_first() {
    let mut place = place();
    let names = ["first", "second", "third"];
    let references: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(number, name)| place.layout.image(name, &host(), &[large_layer(name, number as u8)]))
        .collect();
    let store = place.open().await.unwrap();
    let mut images = Vec::new();
    for reference in &references {
        images.push(store.ensure(reference, PullPolicy::IfNotPresent, ProgressSender::none()).await.unwrap());
    }
    let ids: Vec<_> = images.iter().map(|image| image.id).collect();
    let left = |listed: Vec<ImageSummary>| listed.into_iter().map(|image| image.id).collect::<Vec<_>>();
    let all = store.disk_bytes().await.unwrap();
    assert_eq!(store.gc(0).await.unwrap(), Removed::default(), "all are in use");
    let second = images.swap_remove(1);
    drop(images);
    // The first was used again.
    drop(store.ensure(&references[0], PullPolicy::Never, ProgressSender::none()).await.unwrap());
    let removed = store.gc(all - 1).await.unwrap();
    assert!(removed.freed_bytes > 100_000, "{removed:?}");
    let mut expected = vec![ids[0], ids[1]];
    let mut listed = left(store.list().await.unwrap());
    expected.sort();
    listed.sort();
    assert_eq!(listed, expected);
    store.gc(0).await.unwrap();
    assert_eq!(left(store.list().await.unwrap()), [ids[1]]);
    drop(second);
    let elsewhere = Layout::new(&place.data_dir.join("elsewhere"));
    assert!(elsewhere.directory.exists(), "what is not the store's is left alone");
}
