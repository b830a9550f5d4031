//! What comes with images from elsewhere besides themselves: start packs, traces, descriptions, layers' own tables of contents.

use sampan_image::index::LayerIndex;
use sampan_image::lazy::source::Touch;
use sampan_image::pack::{PAGE_BYTES, PackHead, head_range};
use sampan_image::publish::describe::{Description, read_artifact};
use sampan_image::toc::TocHint;
use sampan_image::trace::Trace;
use sampan_oci::digest::Digest;
use sampan_oci::manifest::{Descriptor, Layer};
use sampan_oci::media_type::Compression;
use std::collections::BTreeMap;

/// A start pack: as a file when the bytes begin like one, else as the unpacked head behind a right header.
pub fn start_pack(bytes: &[u8]) -> bool {
    if bytes.starts_with(b"SAMPANPK") {
        return check_pack(bytes);
    }
    seal(b"SAMPANPK", bytes).is_some_and(|file| check_pack(&file))
}

/// The file around a head: header, checksum, zstd (see `sampan_image::pack`).
fn seal(magic: &[u8; 8], head: &[u8]) -> Option<Vec<u8>> {
    let stored = zstd::bulk::compress(head, 1).ok()?;
    let mut file = magic.to_vec();
    file.extend(sampan_image::pack::VERSION.to_le_bytes());
    file.extend(0_u32.to_le_bytes());
    file.extend((stored.len() as u64).to_le_bytes());
    file.extend((head.len() as u64).to_le_bytes());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&file).update(&stored);
    file.extend(hasher.finalize().as_bytes());
    file.extend(stored);
    Some(file)
}

fn check_pack(file: &[u8]) -> bool {
    let (Ok(head), Ok(range)) = (PackHead::decode(file), head_range(file)) else { return false };
    let mut at = usize::try_from(range.end).unwrap_or(usize::MAX);
    let mut pages = 0;
    for (number, frame) in head.frame_pages().enumerate() {
        assert!(frame.iter().all(|page| (page.layer as usize) < head.layers.len()), "a page of no layer");
        pages += frame.len() as u64;
        let end = at.saturating_add(head.frame_bytes(number).unwrap_or_default());
        if let Some(stored) = file.get(at..end)
            && let Ok(unpacked) = head.decode_frame(number, stored)
        {
            assert_eq!(unpacked.len(), frame.len() * PAGE_BYTES, "a frame of another length");
        }
        at = end;
    }
    assert_eq!(pages, head.pages(), "pages are lost between frames");
    true
}

/// A trace, as a file; whatever is accepted can be merged and is written as it was read.
pub fn start_trace(bytes: &[u8]) -> bool {
    let sealed = seal_trace(bytes);
    let read = Trace::decode(bytes).ok().or_else(|| Trace::decode(&sealed?).ok());
    let Some(mut trace) = read else { return false };
    assert!(trace.encode().is_ok_and(|again| Trace::decode(&again).as_ref() == Ok(&trace)));
    let touches: Vec<Touch> = trace.touches();
    let pages = trace.pages();
    trace.merge(&touches);
    assert_eq!(trace.pages(), pages, "a start that reads the same reads no other pages");
    true
}

fn seal_trace(plain: &[u8]) -> Option<Vec<u8>> {
    let stored = zstd::bulk::compress(plain, 1).ok()?;
    let mut file = b"SAMPANTR".to_vec();
    file.extend(1_u32.to_le_bytes());
    file.extend(u32::try_from(plain.len()).ok()?.to_le_bytes());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&file).update(&stored);
    file.extend(hasher.finalize().as_bytes());
    file.extend(stored);
    Some(file)
}

/// Descriptions of published files, alone and in an artifact's manifest. What is read is what is written of it.
pub fn publication(bytes: &[u8]) -> bool {
    let mut read = read_artifact(bytes);
    read.extend(Description::parse(bytes));
    for description in &read {
        let again = Description::parse(description.to_json().to_string().as_bytes());
        assert_eq!(again.as_ref(), Some(description), "what was read is not what is written of it");
        std::hint::black_box(description.subject.statement(&description.head));
    }
    !read.is_empty()
}

/// A layer's own table of contents: as the JSON of one, as an eStargz member, and as the footer of a layer.
pub fn layer_toc(bytes: &[u8]) -> bool {
    let estargz = TocHint::Estargz { digest: Digest::of(bytes) };
    let size = bytes.len() as u64;
    std::hint::black_box((estargz.locate(bytes, size).is_ok(), estargz.read(bytes, &(0..size)).is_ok()));
    let Ok(stored) = zstd::bulk::compress(bytes, 1) else { return false };
    let stored_bytes = stored.len() as u64;
    let hint = TocHint::ZstdChunked { digest: Digest::of(&stored), offset: 1 << 20, stored_bytes, bytes: size };
    let place = hint.first_range(u64::MAX);
    let Ok(toc) = hint.read(&stored, &place) else { return false };
    let mut stream = 0;
    for piece in &toc.pieces {
        assert_eq!(piece.stream_offset, stream, "pieces leave gaps");
        assert!(!piece.compressed.is_empty() && piece.compressed.end <= place.start, "a piece lies outside the layer");
        stream += piece.bytes;
    }
    let (_, blob_bytes) = toc.tree.blob_layout();
    assert!(blob_bytes >= stream, "the blob has no room for its files");
    let (media_type, annotations) = (String::new(), BTreeMap::new());
    let descriptor =
        Descriptor { media_type, digest: Digest::of(b"layer"), size: place.start, annotations, platform: None };
    let layer = Layer { descriptor, compression: Compression::Zstd };
    if let Ok((index, file)) = toc.into_index(&layer, Digest::of(b"tar")) {
        assert_eq!(LayerIndex::decode(&file).ok().as_ref(), Some(&index), "what is written is not what is read");
    }
    true
}
