//! Our inflate against zlib-rs: every kind of data, every level, every way to slice it; resumption at every checkpoint;
//! hostile bytes.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::io::{Read, Write};

use flate2::{Compression, GzBuilder};
use proptest::prelude::*;
use sampan_oci::gzip::{DecoderState, GzipDecoder, Totals, inflate_span};
use sampan_oci::inflate::{
    CheckpointPolicy, Corruption, InflateError, OutputBuffer, Span, StreamPosition, WINDOW_BYTES,
};

#[derive(Debug)]
struct Decoded {
    bytes: Vec<u8>,
    spans: Vec<Span>,
    totals: Totals,
}

/// Decodes `gz` in slices of the given sizes (over and over) through buffers of `capacity` bytes.
fn decode(gz: &[u8], slices: &[usize], capacity: usize, policy: Option<u64>) -> Result<Decoded, InflateError> {
    let policy = policy.map(|output_bytes_min| CheckpointPolicy { output_bytes_min });
    let mut decoder = GzipDecoder::new(OutputBuffer::with_capacity(capacity), policy);
    let mut spare = OutputBuffer::with_capacity(capacity);
    let (mut bytes, mut spans) = (Vec::new(), Vec::new());
    let mut rest = gz;
    for &size in slices.iter().cycle() {
        let (mut slice, tail) = rest.split_at(size.min(rest.len()));
        rest = tail;
        loop {
            let progress = decoder.feed(slice)?;
            slice = &slice[progress.consumed..];
            if progress.state == DecoderState::NeedsInput {
                assert!(slice.is_empty(), "it wants more while it has some");
                break;
            }
            assert_eq!(decoder.output().len(), capacity, "it says full and is not");
            bytes.extend_from_slice(decoder.output());
            spans.extend(decoder.take_spans());
            // Both ways to make room.
            if bytes.len() % 2 == 0 {
                decoder.clear_output();
            } else {
                spare = decoder.replace_output(spare);
            }
        }
        if rest.is_empty() {
            break;
        }
    }
    let totals = decoder.finish()?;
    bytes.extend_from_slice(decoder.output());
    spans.extend(decoder.take_spans());
    assert_eq!(totals.uncompressed, bytes.len() as u64);
    assert_eq!(totals.compressed, gz.len() as u64);
    Ok(Decoded { bytes, spans, totals })
}

fn whole(gz: &[u8]) -> Result<Vec<u8>, InflateError> {
    decode(gz, &[usize::MAX], 1 << 16, None).map(|decoded| decoded.bytes)
}

fn compress(data: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn reference(gz: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    flate2::bufread::GzDecoder::new(gz).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Every span, decoded by itself from exactly its bytes and its pruned window, must give its part of the data.
fn check_spans(gz: &[u8], data: &[u8], spans: &[Span], output_bytes_min: u64) {
    let mut at = 0;
    for (n, span) in spans.iter().enumerate() {
        assert_eq!(span.start.uncompressed, at, "spans follow each other");
        assert!(n + 1 == spans.len() || span.uncompressed_bytes() >= output_bytes_min);
        assert!(span.window.len() <= WINDOW_BYTES);
        at = span.end.uncompressed;
        let range = span.compressed_range();
        let mut output = vec![0; span.uncompressed_bytes() as usize];
        inflate_span(span.start, &span.window, &gz[range.start as usize..range.end as usize], &mut output).unwrap();
        let expected = &data[span.start.uncompressed as usize..span.end.uncompressed as usize];
        assert!(output == expected, "span {n} at {:?} differs", span.start);
        let before = &data[..span.start.uncompressed as usize];
        for (kept, original) in span.window.iter().rev().zip(before.iter().rev()) {
            assert!(*kept == 0 || kept == original, "a window holds the bytes before its span, or zeros");
        }
    }
    assert_eq!(at, data.len() as u64);
}

#[derive(Debug, Clone)]
enum Piece {
    Run(u8, usize),
    Noise(Vec<u8>),
    Text(u64, usize),
    Again { back: usize, length: usize },
}

/// Data as tar layers have it: runs, repeats from near and far, text, noise.
fn data() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        (any::<u8>(), 1..5000_usize).prop_map(|(byte, n)| Piece::Run(byte, n)),
        prop::collection::vec(any::<u8>(), 1..800).prop_map(Piece::Noise),
        (any::<u64>(), 1..4000_usize).prop_map(|(seed, n)| Piece::Text(seed, n)),
        (1..40_000_usize, 1..2000_usize).prop_map(|(back, length)| Piece::Again { back, length }),
        (1..40_usize, 1..600_usize).prop_map(|(back, length)| Piece::Again { back, length }),
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.into_iter().fold(Vec::new(), append))
}

fn append(mut data: Vec<u8>, piece: Piece) -> Vec<u8> {
    const LETTERS: &[u8; 36] = b"etaoin shrdlu.\n_=()0123456789/ABCDEF";
    match piece {
        Piece::Run(byte, n) => data.extend(std::iter::repeat_n(byte, n)),
        Piece::Noise(bytes) => data.extend(bytes),
        Piece::Text(mut state, n) => {
            for _ in 0..n {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                data.push(LETTERS[(state >> 33) as usize % LETTERS.len()]);
            }
        }
        Piece::Again { back, length } => {
            for _ in 0..length {
                data.push(data.len().checked_sub(back).map_or(7, |from| data[from]));
            }
        }
    }
    data
}

fn slicing() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        Just(vec![usize::MAX]),
        Just(vec![1]),
        prop::collection::vec(1..70_usize, 1..8),
        prop::collection::vec(1..5000_usize, 1..8),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_zlib_deflates_is_inflated(
        data in data(),
        level in 0..=9_u32,
        slices in slicing(),
        capacity in prop_oneof![1..600_usize, 600..200_000_usize],
    ) {
        let decoded = decode(&compress(&data, level), &slices, capacity, None).unwrap();
        prop_assert!(decoded.bytes == data);
        prop_assert_eq!(decoded.totals.trailing, 0);
    }

    #[test]
    fn spans_can_be_decoded_alone(
        members in prop::collection::vec((data(), 0..=9_u32), 1..4),
        slices in slicing(),
        minimum in 1..60_000_u64,
    ) {
        let gz: Vec<u8> = members.iter().flat_map(|(data, level)| compress(data, *level)).collect();
        let data: Vec<u8> = members.into_iter().flat_map(|(data, _)| data).collect();
        let decoded = decode(&gz, &slices, 100_000, Some(minimum)).unwrap();
        prop_assert!(decoded.bytes == data);
        check_spans(&gz, &data, &decoded.spans, minimum);
    }

    #[test]
    fn damaged_streams_are_refused_as_zlib_refuses_them(
        data in data(),
        level in 0..=9_u32,
        at in any::<prop::sample::Index>(),
        damage in any::<u8>(),
    ) {
        let mut gz = compress(&data, level);
        let at = at.index(gz.len());
        gz[at] ^= damage;
        match (whole(&gz), reference(&gz)) {
            (Ok(ours), Ok(theirs)) => prop_assert!(ours == theirs),
            (Err(_), Err(_)) => {}
            (ours, theirs) => prop_assert!(
                false,
                "byte {} ^ {:#x}: ours {:?}, zlib's {:?}",
                at, damage, ours.map(|o| o.len()), theirs.map(|t| t.len()),
            ),
        }
    }

    #[test]
    fn any_bytes_are_judged_as_zlib_judges_them(body in prop::collection::vec(any::<u8>(), 0..400), slices in slicing()) {
        let mut gz = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
        gz.extend(&body);
        let mut raw = Vec::new();
        let theirs = flate2::bufread::DeflateDecoder::new(&body[..]).read_to_end(&mut raw);
        match decode(&gz, &slices, 1000, Some(1)) {
            Ok(ours) => prop_assert!(ours.bytes == raw),
            Err(InflateError::Corrupt { what: Corruption::Checksum | Corruption::Length, .. }) => {
                prop_assert!(theirs.is_ok());
            }
            // It may be the trailer that is missing: then zlib, which was asked for the body alone, is content.
            Err(InflateError::Truncated { .. }) => {}
            Err(_) => prop_assert!(theirs.is_err()),
        }
    }

    #[test]
    fn resuming_anywhere_never_panics(
        body in prop::collection::vec(any::<u8>(), 0..600),
        bit in any::<u8>(),
        window in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let start = StreamPosition { compressed: 5, bit, uncompressed: 17 };
        let mut output = vec![0; 3000];
        match inflate_span(start, &window, &body, &mut output) {
            Ok(()) | Err(InflateError::Truncated { .. } | InflateError::Corrupt { .. } | InflateError::NotGzip) => {}
        }
    }
}

#[test]
fn large_data_takes_the_fast_path_in_every_direction() {
    let pieces = (0..6_000_u64).map(|n| match n % 4 {
        0 => Piece::Text(n, 900),
        1 => Piece::Again { back: 1 + (n as usize * 37) % 32_768, length: 300 },
        2 => Piece::Again { back: 1 + n as usize % 40, length: 100 },
        _ => Piece::Noise(n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes().repeat(3)),
    });
    let data = pieces.fold(Vec::new(), append);
    for level in [1, 6, 9] {
        let gz = compress(&data, level);
        for (slice, capacity) in [(usize::MAX, 1 << 20), (40_000, 300_000), (1500, 65_536)] {
            let decoded = decode(&gz, &[slice], capacity, Some(256 * 1024)).unwrap();
            assert!(decoded.bytes == data);
            // Level 1 of this encoder makes blocks without end.
            assert!(level == 1 || decoded.spans.len() > 3, "{} spans", decoded.spans.len());
            check_spans(&gz, &data, &decoded.spans, 256 * 1024);
        }
    }
}

#[test]
fn every_truncation_is_noticed() {
    let data: Vec<u8> = (0..3000_u32).flat_map(|n| (n * n).to_le_bytes()).collect();
    let gz = compress(&data, 6);
    for end in 0..gz.len() {
        assert_eq!(whole(&gz[..end]), Err(InflateError::Truncated { at: end as u64 }), "cut at {end}");
    }
}

#[test]
fn padding_and_garbage_after_the_last_member_are_ignored() {
    for tail in [&[0_u8; 700][..], b"garbage", &[0x1f], &[0x1f, 0x8b, 9]] {
        let mut gz = compress(b"hello", 6);
        gz.extend_from_slice(tail);
        let decoded = decode(&gz, &[3], 64, None).unwrap();
        assert_eq!(decoded.bytes, b"hello");
        assert_eq!(decoded.totals.trailing, tail.len() as u64);
    }
    let mut gz = compress(b"hello", 6);
    gz.extend_from_slice(&[0x1f, 0x8b]);
    assert_eq!(whole(&gz), Err(InflateError::Truncated { at: gz.len() as u64 }));
}

#[test]
fn headers_with_every_field() {
    let mut encoder =
        GzBuilder::new().filename("a").comment("b").extra(vec![9; 300]).write(Vec::new(), Compression::best());
    encoder.write_all(b"with a header").unwrap();
    let mut gz = encoder.finish().unwrap();
    for slice in [1, 7, usize::MAX] {
        assert_eq!(decode(&gz, &[slice], 4, None).unwrap().bytes, b"with a header");
    }
    gz[3] |= 0x80;
    assert_eq!(whole(&gz), Err(InflateError::Corrupt { at: 4, what: Corruption::HeaderFlags }));

    // FHCRC: CRC-16 of the ten bytes before it.
    let header = [0x1f, 0x8b, 8, 2, 0, 0, 0, 0, 0, 3];
    let checksum = crc32fast::hash(&header) as u16;
    let body = compress(b"hello", 6).split_off(10);
    let with = |checksum: u16| [&header[..], &checksum.to_le_bytes(), &body].concat();
    assert_eq!(whole(&with(checksum)).unwrap(), b"hello");
    let error = InflateError::Corrupt { at: 12, what: Corruption::HeaderChecksum };
    assert_eq!(whole(&with(!checksum)), Err(error));
}

#[test]
fn wrong_trailers_and_foreign_files() {
    let gz = compress(&[7; 1000], 6);
    let flip = |from_end: usize| {
        let mut gz = gz.clone();
        let at = gz.len() - from_end;
        gz[at] ^= 1;
        whole(&gz)
    };
    assert!(matches!(flip(8), Err(InflateError::Corrupt { what: Corruption::Checksum, .. })));
    assert!(matches!(flip(4), Err(InflateError::Corrupt { what: Corruption::Length, .. })));
    assert_eq!(whole(b"PK\x03\x04"), Err(InflateError::NotGzip));
    assert_eq!(whole(b""), Err(InflateError::Truncated { at: 0 }));
}

#[test]
fn bad_blocks_are_named() {
    let check = |bits: &[u8], what: Corruption| {
        let mut gz = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
        gz.extend_from_slice(bits);
        gz.extend_from_slice(&[0; 64]);
        match whole(&gz) {
            Err(InflateError::Corrupt { what: found, .. }) => assert_eq!(found, what),
            other => panic!("{other:?} instead of {what:?}"),
        }
    };
    check(&[0b111], Corruption::BlockType);
    check(&[0b001, 1, 0, 0, 0], Corruption::StoredLength);
    // Dynamic, HLIT 31.
    check(&[0b1111_1101, 0xff], Corruption::TooManyCodes);
    // Dynamic, all code lengths of the precode zero.
    check(&[0b0000_0101, 0], Corruption::CodeLengths);
    // Fixed: length code 257 (0000001), distance code 0 (00000): one byte back, where there is none.
    check(&[0b0000_0011, 0b0000_0010], Corruption::DistanceTooFar);
}
