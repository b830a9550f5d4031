//! The bare download: everything that a pull must bring, by one request each, thrown away. Nobody who takes whole layers can be
//! faster than this.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sampan_e2e::fixtures::Image;

use crate::interrupt;

/// Fetches manifest, configuration and, at once, all layers of an image from the registry at `address`.
pub(super) fn all(address: &str, repository: &str, image: &Image) -> Result<Duration> {
    let begin = Instant::now();
    let get = |path: &str, size: u64| get(address, &format!("/v2/{repository}/{path}"), size);
    get(&format!("manifests/{}", image.manifest.digest), image.manifest.size)?;
    get(&format!("blobs/{}", image.config.digest), image.config.size)?;
    std::thread::scope(|scope| {
        let fetch = |digest: &str, size| get(&format!("blobs/{digest}"), size);
        let layers: Vec<_> =
            image.layers.iter().map(|layer| scope.spawn(move || fetch(&layer.blob.digest, layer.blob.size))).collect();
        layers
            .into_iter()
            .try_for_each(|layer| layer.join().unwrap_or_else(|_panic| anyhow::bail!("a download panics")))
    })?;
    Ok(begin.elapsed())
}

fn get(address: &str, target: &str, size: u64) -> Result<()> {
    let context = || format!("fetch {target}");
    let mut stream = TcpStream::connect(address).with_context(context)?;
    write!(
        stream,
        "GET {target} HTTP/1.0\r\nhost: {address}\r\naccept: application/vnd.oci.image.manifest.v1+json\r\naccept: */*\r\n\r\n"
    )?;
    let mut reader = BufReader::with_capacity(1 << 18, stream);
    let mut line = String::new();
    reader.read_line(&mut line).with_context(context)?;
    ensure!(line.contains(" 200 "), "the registry answers {:?} to {target}", line.trim());
    while !line.trim().is_empty() {
        line.clear();
        reader.read_line(&mut line).with_context(context)?;
    }
    let (mut length, mut piece) = (0, vec![0; 1 << 18]);
    loop {
        interrupt::check()?;
        match reader.read(&mut piece).with_context(context)? {
            0 => break,
            read => length += read as u64,
        }
    }
    ensure!(length == size, "{target} has {length} bytes instead of {size}");
    Ok(())
}
