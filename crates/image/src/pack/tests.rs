//! A pack gives back what went in, and nothing at all when it was changed.

use super::*;
use proptest::prelude::*;

fn touch(layer: u32, page: u32, pages: u32) -> Touch {
    Touch { first: PageNumber { layer, page }, pages }
}

fn layers(count: u8) -> Vec<Digest> {
    (0..count).map(|layer| Digest::of(&[layer])).collect()
}

/// What a page holds, so that none can be taken for another.
fn content(page: PageNumber) -> Vec<u8> {
    format!("{}/{};", page.layer, page.page).into_bytes().into_iter().cycle().take(PAGE_BYTES).collect()
}

fn pack(touches: &[Touch]) -> Vec<u8> {
    let read = |page: PageNumber, into: &mut [u8]| {
        into.copy_from_slice(&content(page));
        Ok(())
    };
    build(Digest::of(b"manifest"), layers(3), "sh -c x".to_owned(), touches, read).unwrap()
}

fn unpack(file: &[u8]) -> Result<Vec<(PageNumber, Vec<u8>)>, PackError> {
    let head = PackHead::decode(file)?;
    let mut at = head_range(file)?.end as usize;
    let mut found = Vec::new();
    for (number, pages) in head.frame_pages().enumerate() {
        let end = at + head.frame_bytes(number).unwrap();
        let bytes = head.decode_frame(number, file.get(at..end).ok_or(PackError::Truncated)?)?;
        found.extend(pages.into_iter().zip(bytes.chunks(PAGE_BYTES).map(<[u8]>::to_vec)));
        at = end;
    }
    assert_eq!(head.pages() as usize, found.len());
    assert_eq!(at, head_range(file)?.end as usize + head.frames_bytes() as usize);
    Ok(found)
}

#[test]
fn a_large_pack_has_several_frames_in_order() {
    let touches = [touch(2, 7, 1500), touch(0, 0, 3), touch(2, 100, 10), touch(1, 4_000_000_000, 900)];
    let file = pack(&touches);
    let head = PackHead::decode(&file).unwrap();
    assert_eq!(head.frames(), 3);
    let found = unpack(&file).unwrap();
    assert_eq!(found.len(), 2403, "pages named twice are there once");
    assert!(found.iter().all(|(page, bytes)| *bytes == content(*page)));
    assert_eq!(found[0].0, PageNumber { layer: 2, page: 7 });
    assert_eq!(found[1500].0, PageNumber { layer: 0, page: 0 });
    assert_eq!(head.touches()[0], touch(2, 7, 1500));
    assert!(unpack(&pack(&[])).unwrap().is_empty());
}

#[test]
fn a_page_of_no_layer_is_refused_when_it_is_packed() {
    let read = |_: PageNumber, _: &mut [u8]| Ok(());
    let error = build(Digest::of(b""), layers(1), String::new(), &[touch(1, 0, 1)], read).unwrap_err();
    assert!(matches!(error, PackBuildError::Unfit(_)), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn damage_is_refused(
        touches in prop::collection::vec((0u32..3, 0u32..500, 1u32..30).prop_map(|(layer, page, pages)| touch(layer, page, pages)), 1..20),
        at in any::<prop::sample::Index>(),
        byte in 1u8..,
        cut in any::<prop::sample::Index>(),
    ) {
        let mut file = pack(&touches);
        let found = unpack(&file).unwrap();
        prop_assert!(found.iter().all(|(page, bytes)| *bytes == content(*page)));
        let at = at.index(file.len());
        file[at] ^= byte;
        prop_assert!(unpack(&file).is_err());
        file[at] ^= byte;
        file.truncate(cut.index(file.len()));
        prop_assert!(unpack(&file).is_err());
    }

    #[test]
    fn any_head_behind_a_right_checksum_is_safe(
        runs in prop::collection::vec((0u32..4, any::<u32>(), any::<u32>()), 0..4),
        frames in prop::collection::vec((any::<u32>(), 0u32..2000), 0..4),
    ) {
        let runs = runs.into_iter().map(|(layer, page, pages)| PageRun { layer, page, pages }).collect();
        let frames = frames.into_iter().map(|(stored_bytes, pages)| Frame { stored_bytes, pages, hash: [0; 32] }).collect();
        let head = PackHead { manifest: Digest::of(b""), layers: layers(3), shape: String::new(), runs, frames };
        let file = codec::seal(&postcard::to_stdvec(&head).unwrap()).unwrap();
        if let Ok(head) = PackHead::decode(&file) {
            prop_assert_eq!(head.frame_pages().flatten().count() as u64, head.pages());
        }
    }

    #[test]
    fn bytes_behind_a_right_checksum_are_safe(plain in prop::collection::vec(any::<u8>(), 0..300)) {
        PackHead::decode(&codec::seal(&plain).unwrap()).ok();
    }
}
