//! Indexes of real streams: what they promise holds at every span, and damage is noticed.

use super::*;
use crate::testing::stack::{LayerEntries, stack};
use crate::testing::{archive, compressed, entry, unpack_bytes};
use crate::tree::CHUNK_BYTES;
use crate::unpack::tests::unpack_whole;
use proptest::prelude::*;
use sampan_oci::gzip::inflate_span;
use sampan_oci::inflate::StreamPosition;
use sampan_oci::layer::EntryKind;
use sampan_oci::media_type;

/// Bytes that deflate into matches of every length, and some that do not deflate at all.
fn text(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut out = Vec::with_capacity(bytes + 64);
    while out.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let draw = state >> 33;
        if draw.is_multiple_of(3) || out.len() < 100 {
            out.extend_from_slice(&state.to_le_bytes()[..(draw % 8) as usize + 1]);
        } else {
            let back = (draw as usize % 30_000).min(out.len() - 1) + 1;
            let from = out.len() - back;
            for at in 0..(state % 60) as usize {
                out.push(out[from + at]);
            }
        }
    }
    out.truncate(bytes);
    out
}

fn large_layer() -> LayerEntries {
    let sizes = [700_000, 10, 0, 1_300_000, 65_536, 300_001];
    let sized = sizes.iter().enumerate().map(|(number, size)| {
        let kind = EntryKind::File { size: *size, segments: None };
        (entry(&format!("f{number}"), kind), text(*size as usize, number as u64 + 7))
    });
    sized.collect()
}

/// Unpacks every span by itself, from the record stored for it, and compares with the stream and the chunk digests.
fn check_spans(tar: &[u8], layer: &[u8], index: &LayerIndex, file: &[u8]) {
    let layout = StreamLayout::new(&index.tree);
    let front_end = front_range(file).unwrap().end;
    let mut chunks = Vec::new();
    for (number, span) in index.spans.iter().enumerate() {
        let range = index.record_range(front_end, number).unwrap();
        let record = index.decode_record(&layout, number, &file[range.start as usize..range.end as usize]).unwrap();
        let stream = index.span_stream(number).unwrap();
        let expected = &tar[stream.start as usize..stream.end as usize];
        let end = index.spans.get(number + 1).map_or(layer.len() as u64, |next| next.compressed_offset + 1);
        let compressed = &layer[span.compressed_offset as usize..(end as usize).min(layer.len())];
        let mut output = vec![0; expected.len()];
        match index.compression {
            Compression::Gzip => {
                let start = StreamPosition {
                    compressed: span.compressed_offset,
                    bit: span.bit,
                    uncompressed: span.stream_offset,
                };
                if span.stream_offset == 0 {
                    assert!(record.window.is_empty());
                }
                inflate_span(start, &record.window, compressed, &mut output).unwrap();
            }
            Compression::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(compressed).unwrap();
                std::io::Read::read_exact(&mut std::io::BufReader::new(decoder), &mut output).unwrap();
            }
            Compression::None => output.copy_from_slice(&compressed[..expected.len()]),
        }
        assert!(output == expected, "span {number} differs");
        chunks.extend(record.chunks);
    }
    assert_eq!(index.spans.first().map_or(0, |span| span.stream_offset), 0);
    let mut expected = Vec::new();
    for content in &index.tree.contents {
        let data = &tar[content.stream_offset as usize..][..content.stream_bytes() as usize];
        expected.extend(data.chunks(CHUNK_BYTES as usize).map(|chunk| *blake3::hash(chunk).as_bytes()));
    }
    assert!(chunks == expected, "digests of chunks differ");
}

fn check_layer(entries: &LayerEntries, compression: media_type::Compression) -> (LayerIndex, Vec<u8>) {
    let tar = archive(entries);
    let layer = compressed(&tar, compression);
    let (index, file) = unpack_whole(&layer, &tar, compression).unwrap();
    assert_eq!(index.layer_bytes, layer.len() as u64);
    assert_eq!(index.stream_bytes, tar.len() as u64);
    check_spans(&tar, &layer, &index, &file);
    (index, file)
}

#[test]
fn every_span_unpacks_from_its_own_record() {
    let (index, _) = check_layer(&large_layer(), media_type::Compression::Gzip);
    assert!(index.spans.len() >= 5, "only {} spans: nothing was tested", index.spans.len());
    let (index, _) = check_layer(&large_layer(), media_type::Compression::Zstd);
    assert_eq!(index.spans.len(), 2);
    let (index, _) = check_layer(&large_layer(), media_type::Compression::None);
    assert!(index.spans.len() >= 9);
}

#[test]
fn spans_know_their_contents() {
    let (index, _) = check_layer(&large_layer(), media_type::Compression::None);
    let layout = StreamLayout::new(&index.tree);
    assert_eq!(index.tree.contents.len(), 5, "an empty file has no content");
    assert_eq!(layout.contents_in(0..1), 0..0, "a header is no content");
    let first = &index.tree.contents[0];
    assert_eq!(layout.contents_in(first.stream_offset..first.stream_offset + 1), 0..1);
    assert_eq!(layout.contents_in(0..index.stream_bytes), 0..5);
    assert_eq!(layout.chunks_in(0..index.stream_bytes), 0..layout.chunks());
    assert_eq!(layout.blob_offset(1), Some(700_000u64.next_multiple_of(4096)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn indexes_are_read_back_and_damage_is_refused(
        layers in stack(1..2, 14),
        damage in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..6),
        reseal in any::<bool>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let layers = crate::merge::tests::accepted(layers);
        let tar = archive(&layers[0]);
        let (index, mut file) = unpack_whole(&tar, &tar, media_type::Compression::None).unwrap();
        let again = LayerIndex::decode(&file).unwrap();
        prop_assert_eq!(&again, &index);
        check_spans(&tar, &tar, &index, &file);
        if reseal {
            // Behind a right checksum stands anything at all: damage is done to the unpacked front part.
            damaged_front(&index, &damage);
        } else {
            let front = front_range(&file).unwrap().end as usize;
            for (at, byte) in damage {
                file[at.index(front)] ^= byte;
            }
            prop_assert!(LayerIndex::decode(&file).map_or(true, |read| read == index));
            file.truncate(cut.index(file.len()));
            LayerIndex::decode(&file).ok();
        }
    }
}

/// Packs a damaged front part with a right checksum; whatever is accepted must be safe to lay out and merge.
fn damaged_front(index: &LayerIndex, damage: &[(prop::sample::Index, u8)]) {
    let mut front = postcard::to_stdvec(index).unwrap();
    for (at, byte) in damage {
        let at = at.index(front.len());
        front[at] ^= byte;
    }
    let Ok(read) = LayerIndex::decode(&codec::seal(&front).unwrap()) else { return };
    StreamLayout::new(&read.tree).chunks_in(0..read.stream_bytes);
    if let Ok(merged) = crate::merge::merge(&[&read.tree], &[]) {
        sampan_erofs::write(&merged.tree, &merged.devices).ok();
    }
}

#[test]
fn unpacking_leaves_one_blob_and_nothing_else() {
    let tar = archive(&large_layer());
    let directory = tempfile::tempdir().unwrap();
    let blob = directory.path().join("blob");
    let diff_id = sampan_oci::digest::Digest::of(&tar);
    unpack_bytes(&tar, diff_id, media_type::Compression::None, &blob).unwrap();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
}
