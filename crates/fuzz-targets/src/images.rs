//! Images: EROFS metadata, layer archives, layer indexes.

use sampan_image::index::{LayerIndex, StreamLayout};
use sampan_image::merge::merge;
use sampan_image::tree::{LayerTree, LayerTreeBuilder};
use sampan_oci::layer::{Entry, LayerReader, LayerSink};

const TAR_BLOCK_BYTES: usize = 512;

/// EROFS metadata, with the checksum that it has and with a right one. What is read must survive writing.
pub fn erofs_image(bytes: &[u8]) -> bool {
    let as_is = check_erofs(bytes);
    let mut resealed = bytes.to_vec();
    sampan_erofs::reseal(&mut resealed);
    check_erofs(&resealed) || as_is
}

fn check_erofs(bytes: &[u8]) -> bool {
    let Ok(contents) = sampan_erofs::read(bytes) else { return false };
    if let Ok(again) = sampan_erofs::write(&contents.tree, &contents.devices) {
        assert!(sampan_erofs::read(&again).as_ref() == Ok(&contents), "what was read is not what is written of it");
    }
    true
}

/// A layer's archive, with the headers' checksums that it has and with right ones.
pub fn layer_tar(bytes: &[u8]) -> bool {
    let as_is = check_layer(bytes);
    check_layer(&with_right_checksums(bytes)) || as_is
}

/// An archive whose headers have the checksums that they should have.
pub(crate) fn with_right_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut resealed = bytes.to_vec();
    for block in resealed.as_chunks_mut::<TAR_BLOCK_BYTES>().0 {
        if block.get(257..262) == Some(b"ustar") {
            let (before, from) = block.split_at_mut(148);
            let (checksum, after) = from.split_at_mut(8);
            let sum: u32 = before.iter().chain(&*after).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * u32::from(b' ');
            checksum.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    resealed
}

/// The archive whole and in pieces, and the image that would be made of it.
fn check_layer(bytes: &[u8]) -> bool {
    let whole = read_layer(bytes, bytes.len().max(1));
    let pieces = read_layer(bytes, 61);
    assert!(whole == pieces, "an archive means something else when it arrives in pieces");
    whole.is_some_and(|layer| check_tree(&layer.tree))
}

#[derive(Debug, PartialEq)]
struct Layer {
    tree: LayerTree,
    data_bytes: u64,
}

#[derive(Default)]
struct Sink {
    tree: LayerTreeBuilder,
    data_bytes: u64,
}

impl LayerSink for Sink {
    type Error = sampan_image::tree::TreeError;

    fn entry(&mut self, entry: Entry) -> Result<(), Self::Error> {
        assert!(entry.path.components().all(|part| part != b".." && part != b"."), "a name leads elsewhere");
        self.tree.add(entry)
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        self.data_bytes += bytes.len() as u64;
        Ok(())
    }

    fn end_of_file(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
}

fn read_layer(bytes: &[u8], piece_bytes: usize) -> Option<Layer> {
    let (mut reader, mut sink) = (LayerReader::new(), Sink::default());
    for piece in bytes.chunks(piece_bytes) {
        reader.feed(piece, &mut sink).ok()?;
    }
    reader.finish().ok()?;
    Some(Layer { tree: sink.tree.finish(), data_bytes: sink.data_bytes })
}

/// Whatever tree is accepted can be laid out and merged; what the EROFS writer takes, our reader takes too.
fn check_tree(tree: &LayerTree) -> bool {
    let layout = StreamLayout::new(tree);
    std::hint::black_box((layout.chunks(), layout.blob_bytes()));
    if let Ok(merged) = merge(&[tree], &[])
        && let Ok(image) = sampan_erofs::write(&merged.tree, &merged.devices)
    {
        assert!(sampan_erofs::read(&image).is_ok(), "we write an image that we do not read");
    }
    true
}

/// A layer's index: as a file when the bytes begin like one, else as the unpacked front part behind a right header.
pub fn layer_index(bytes: &[u8]) -> bool {
    if bytes.starts_with(b"SAMPANIX") {
        return check_index(bytes);
    }
    seal_index(bytes).is_some_and(|file| check_index(&file))
}

/// The file around a front part: header, checksum, zstd (see `sampan_image::index`).
pub(crate) fn seal_index(front: &[u8]) -> Option<Vec<u8>> {
    let stored = zstd::bulk::compress(front, 1).ok()?;
    let mut file = b"SAMPANIX".to_vec();
    file.extend(sampan_image::index::VERSION.to_le_bytes());
    file.extend(0_u32.to_le_bytes());
    file.extend((stored.len() as u64).to_le_bytes());
    file.extend((front.len() as u64).to_le_bytes());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&file).update(&stored);
    file.extend(hasher.finalize().as_bytes());
    file.extend(stored);
    Some(file)
}

fn check_index(file: &[u8]) -> bool {
    let Ok(index) = LayerIndex::decode(file) else { return false };
    let layout = StreamLayout::new(&index.tree);
    for span in 0..index.spans.len() {
        let stream = index.span_stream(span).unwrap_or_default();
        std::hint::black_box((layout.chunks_in(stream.clone()), layout.contents_in(stream)));
        std::hint::black_box(index.decode_record(&layout, span, file).is_ok());
    }
    check_tree(&index.tree)
}
