//! What merging promises, and that no bytes can make it break.

use super::*;
use crate::limits::TRACE_SHAPES_MAX;
use proptest::prelude::*;
use sampan_oci::digest::Digest;

fn touch(layer: u32, page: u32, pages: u32) -> Touch {
    Touch { first: PageNumber { layer, page }, pages }
}

fn start() -> impl Strategy<Value = Vec<Touch>> {
    prop::collection::vec(
        (0u32..3, 0u32..200, 0u32..20).prop_map(|(layer, page, pages)| touch(layer, page, pages)),
        0..30,
    )
}

fn distinct(touches: &[Touch]) -> Vec<PageNumber> {
    let mut seen = HashSet::new();
    touches.iter().flat_map(pages_of).filter(|page| seen.insert(*page)).collect()
}

proptest! {
    #[test]
    fn the_last_start_comes_first_and_whole(starts in prop::collection::vec(start(), 1..8)) {
        let mut trace = Trace::default();
        for touches in &starts {
            trace.merge(touches);
            let pages: Vec<PageNumber> = trace.touches().iter().flat_map(pages_of).collect();
            let expected = distinct(touches);
            prop_assert_eq!(&pages[..expected.len()], &expected[..]);
            prop_assert_eq!(distinct(&trace.touches()).len(), pages.len(), "no page twice");
            trace.check().unwrap();
        }
        prop_assert_eq!(trace.starts() as usize, starts.len());
        let known: HashSet<PageNumber> = starts.iter().flatten().flat_map(pages_of).collect();
        prop_assert!(trace.touches().iter().flat_map(pages_of).all(|page| known.contains(&page)));
        prop_assert_eq!(Trace::decode(&trace.encode().unwrap()).unwrap(), trace);
    }

    #[test]
    fn what_is_never_touched_again_is_forgotten(first in start(), other in start()) {
        let mut trace = Trace::default();
        for _ in 0..9 {
            trace.merge(&first);
        }
        for _ in 0..WORTH_MAX {
            trace.merge(&other);
        }
        prop_assert_eq!(trace.touches().iter().flat_map(pages_of).collect::<Vec<_>>(), distinct(&other));
    }

    #[test]
    fn damage_is_refused(start in start(), at in any::<prop::sample::Index>(), byte in 1u8.., cut in any::<prop::sample::Index>()) {
        let mut trace = Trace::default();
        trace.merge(&start);
        let mut file = trace.encode().unwrap();
        let at = at.index(file.len());
        file[at] ^= byte;
        prop_assert!(Trace::decode(&file).is_err());
        file[at] ^= byte;
        file.truncate(cut.index(file.len()));
        prop_assert!(Trace::decode(&file).is_err());
    }

    #[test]
    fn any_stretches_behind_a_right_checksum_are_safe(
        runs in prop::collection::vec((any::<u32>(), any::<u32>(), any::<u32>(), any::<u8>()), 0..6),
    ) {
        let stretches = runs.into_iter().map(|(layer, page, pages, worth)| Stretch { layer, page, pages, worth });
        let trace = Trace { starts: u32::MAX, stretches: stretches.collect() };
        if let Ok(mut read) = Trace::decode(&trace.encode().unwrap()) {
            read.merge(&[touch(0, u32::MAX, u32::MAX)]);
            read.touches();
        }
    }

    #[test]
    fn a_shape_is_short_and_blind_to_numbers(words in prop::collection::vec("\\PC{0,60}", 0..12), one in 0u32.., two in 0u32..) {
        prop_assert!(shape_of(&words).len() <= SHAPE_BYTES_MAX);
        let with = |number: u32| [words.clone(), vec![format!("--port={number}")]].concat();
        prop_assert_eq!(shape_of(&with(one)), shape_of(&with(two)));
    }
}

#[test]
fn shapes_tell_programs_apart() {
    let shape = |line: &str| shape_of(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
    assert_eq!(shape("python3 -m http.server 8080"), "python0 -m http.server 0");
    assert_ne!(shape("python3 -c a"), shape("python3 -c b"));
    let long = "x".repeat(5000);
    assert_ne!(shape(&format!("{long}a")), shape(&format!("{long}b")));
    assert_eq!(shape_of(&["sh".into(), "-c".into(), "a\nb".into()]), "sh -c a_b");
}

#[test]
fn a_trace_never_grows_beyond_its_bound() {
    let mut trace = Trace::default();
    trace.merge(&[touch(0, 0, TRACE_PAGES_MAX as u32)]);
    trace.merge(&[touch(1, 7, TRACE_PAGES_MAX as u32 + 5)]);
    assert_eq!(trace.pages(), TRACE_PAGES_MAX as u64);
    assert_eq!(trace.touches(), [touch(1, 7, TRACE_PAGES_MAX as u32)]);
}

#[test]
fn the_store_keeps_the_newest() {
    let directory = tempfile::tempdir().unwrap();
    let store = TraceStore::new(directory.path());
    let image = Digest::of(b"image");
    assert!(store.newest(&image).is_none());
    for number in 0..TRACE_SHAPES_MAX + 3 {
        store.record(&image, &format!("shape-{number}"), &[touch(0, number as u32, 1)]).unwrap();
    }
    assert_eq!(store.list(&image).len(), TRACE_SHAPES_MAX);
    assert!(store.get(&image, &format!("shape-{}", TRACE_SHAPES_MAX + 2)).is_some());
    let trace = store.record(&image, "shape-9", &[touch(0, 9, 1)]).unwrap();
    assert!(trace.starts() >= 1);
    store.remove(&image).unwrap();
    assert!(store.list(&image).is_empty());
    store.remove(&image).unwrap();
}
