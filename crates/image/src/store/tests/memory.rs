//! What loading holds of this machine's memory.

use super::*;
use crate::limits::{LOAD_BYTES_MAX, UNPACK_BYTES};
use crate::testing::registry::Registry;
use sampan_registry::limits::{CONNECTION_BYTES, PART_BYTES_MIN};
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread")]
async fn eight_images_at_once_share_one_budget_and_give_all_of_it_back() {
    let registry = Registry::start().await;
    let mut references = Vec::new();
    for letter in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        let layer = layer_with("file", &letter.repeat(9 << 20));
        references.push(registry.put_image(&format!("image/{letter}"), "tag", &[layer]));
    }
    let directory = tempfile::tempdir().unwrap();
    let config = RegistryConfig { insecure: vec![registry.address.to_string()], ..RegistryConfig::default() };
    let store = ImageStore::open(ImageStoreConfig::new(directory.path(), config)).await.unwrap();
    let mut pulls = JoinSet::new();
    for reference in references {
        let store = store.clone();
        pulls.spawn(async move {
            store.ensure(&reference, PullPolicy::IfNotPresent, ProgressSender::none()).await.map(drop)
        });
    }
    while let Some(pulled) = pulls.join_next().await {
        pulled.unwrap().unwrap();
    }
    let counters = store.counters();
    let unasked = LAYERS_AT_ONCE as u64 * (UNPACK_BYTES + PART_BYTES_MIN + CONNECTION_BYTES);
    let most = counters.memory_most_bytes;
    assert!((UNPACK_BYTES + 1..=LOAD_BYTES_MAX + unasked).contains(&most), "{most}");
    assert_eq!(counters.memory_bytes, 0);
    let metrics = counters.to_string();
    assert!(metrics.contains(&format!("\nsampan_image_memory_most_bytes {most}\n")), "{metrics}");
    store.close().await;
}
