//! Pulls an image and mounts it, telling where the time went: for measuring by hand.
//!
//! `pull DATA_DIR REFERENCE [always]`
#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use sampan_image::{ImageStore, ImageStoreConfig, ProgressSender, PullPolicy};
use sampan_registry::RegistryConfig;
use std::time::Instant;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [data_dir, reference, rest @ ..] = &arguments[..] else {
        return Err("pull DATA_DIR REFERENCE [always]".into());
    };
    let policy = if rest.is_empty() { PullPolicy::IfNotPresent } else { PullPolicy::Always };
    let begin = Instant::now();
    let store = ImageStore::open(ImageStoreConfig::new(data_dir, RegistryConfig::from_environment())).await?;
    println!("open   {:?}", begin.elapsed());
    let begin = Instant::now();
    let (progress, mut said) = ProgressSender::channel();
    let image = match store.ensure(reference, policy, progress).await {
        Ok(image) => image,
        Err(error) => {
            println!("{}", sampan_kit::error_chain::ErrorChain(&error));
            std::process::exit(1);
        }
    };
    println!("ensure {:?}", begin.elapsed());
    while let Ok(progress) = said.try_recv() {
        if !rest.is_empty() {
            println!("{progress:?}");
        }
    }
    let begin = Instant::now();
    let mount = store.mount(&image)?;
    println!("mount  {:?}", begin.elapsed());
    let root = rustix::fs::openat(&mount, ".", rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty())?;
    let entries = rustix::fs::Dir::new(root)?.count();
    println!("{} {} bytes, {entries} entries in its root", image.id, image.size_bytes);
    for summary in store.list().await? {
        println!("{summary:?}");
    }
    Ok(())
}
