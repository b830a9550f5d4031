//! The image of the storm: files whose every byte is known, half of which hardly compress.

use std::sync::Arc;

use anyhow::Result;

use super::chance::Chance;
use crate::fixtures::{Compression, Image, Layer, TarWriter, busybox};

const FILES: u64 = 16;
const FILE_BYTES: usize = 3 << 20;

/// The contents of `/data/NN`.
#[derive(Debug, Clone)]
pub(super) struct Truth {
    files: Arc<Vec<Vec<u8>>>,
}

impl Truth {
    pub(super) fn new(seed: u64) -> Self {
        let file = |nth: u64| {
            let mut chance = Chance::new(seed ^ nth << 32);
            let mut bytes = Vec::with_capacity(FILE_BYTES);
            while bytes.len() < FILE_BYTES {
                let word = chance.number();
                // Every other file has words of few letters.
                let word =
                    if nth.is_multiple_of(2) { word } else { word & 0x0303_0303_0303_0303 | 0x6060_6060_6060_6060 };
                bytes.extend(word.to_le_bytes());
            }
            bytes
        };
        Self { files: Arc::new((0..FILES).map(file).collect()) }
    }

    /// busybox, and the files above it.
    pub(super) fn image(&self) -> Result<Image> {
        let mut tar = TarWriter::in_memory().directory("data", 0o755);
        for (nth, bytes) in self.files.iter().enumerate() {
            tar = tar.file(&name(nth), 0o644, bytes);
        }
        Ok(busybox::builder(Compression::Gzip)?.layer(Layer::new(&tar.into_bytes(), Compression::Gzip)?).build())
    }

    /// All files: their names in the image, and their bytes.
    pub(super) fn files(&self) -> impl Iterator<Item = (String, &[u8])> {
        self.files.iter().enumerate().map(|(nth, bytes)| (name(nth), bytes.as_slice()))
    }
}

fn name(nth: usize) -> String {
    format!("data/{nth:02}")
}
