//! Streams: gzip, spans of it, the agent's frames, and the headers that open a remote stream.

use http::{HeaderMap, HeaderName, HeaderValue};
use sampan_oci::gzip::{DecoderState, GzipDecoder, inflate_span as inflate};
use sampan_oci::inflate::{CheckpointPolicy, OutputBuffer, Span, StreamPosition};

/// Output after which a stream is let go: what expands without end is the caller's to stop.
const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// A checkpoint this often, so that small inputs have some.
const CHECKPOINTS: CheckpointPolicy = CheckpointPolicy { output_bytes_min: 512 };

/// A gzip stream, whole and in pieces. Every span of it must unpack by itself.
pub fn gzip(bytes: &[u8]) -> bool {
    let whole = decode(bytes, bytes.len().max(1), 1 << 16);
    let pieces = decode(bytes, 7, 1 << 9);
    match (whole, pieces) {
        (Decoded::Whole(data, spans), Decoded::Whole(other, others)) => {
            assert!(data == other, "a stream means something else when it arrives in pieces");
            assert!(spans == others, "the spans depend on how a stream arrives");
            check_spans(bytes, &data, &spans);
            true
        }
        (Decoded::Refused, Decoded::Refused) => false,
        (Decoded::TooLong, _) | (_, Decoded::TooLong) => true,
        (Decoded::Refused, _) => panic!("what is accepted in pieces is refused as a whole"),
        (_, Decoded::Refused) => panic!("what is accepted as a whole is refused in pieces"),
    }
}

enum Decoded {
    Refused,
    /// Longer than is looked at here.
    TooLong,
    Whole(Vec<u8>, Vec<Span>),
}

fn decode(bytes: &[u8], piece_bytes: usize, buffer_bytes: usize) -> Decoded {
    let mut decoder = GzipDecoder::new(OutputBuffer::with_capacity(buffer_bytes), Some(CHECKPOINTS));
    let (mut data, mut spans) = (Vec::new(), Vec::new());
    for mut piece in bytes.chunks(piece_bytes) {
        loop {
            let Ok(progress) = decoder.feed(piece) else { return Decoded::Refused };
            piece = piece.get(progress.consumed..).unwrap_or_default();
            if progress.state == DecoderState::NeedsInput {
                break;
            }
            data.extend_from_slice(decoder.output());
            decoder.clear_output();
            spans.extend(decoder.take_spans());
            if data.len() >= OUTPUT_BYTES_MAX {
                return Decoded::TooLong;
            }
        }
    }
    if decoder.finish().is_err() {
        return Decoded::Refused;
    }
    data.extend_from_slice(decoder.output());
    spans.extend(decoder.take_spans());
    Decoded::Whole(data, spans)
}

fn check_spans(bytes: &[u8], data: &[u8], spans: &[Span]) {
    let index = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
    for span in spans {
        let compressed = span.compressed_range();
        let compressed = bytes.get(index(compressed.start)..index(compressed.end));
        let expected = data.get(index(span.start.uncompressed)..index(span.end.uncompressed));
        let (Some(compressed), Some(expected)) = (compressed, expected) else {
            panic!("a span lies outside the stream")
        };
        let mut output = vec![0; expected.len()];
        let inflated = inflate(span.start, &span.window, compressed, &mut output);
        assert!(inflated.is_ok() && output == expected, "a span does not unpack to its part of the stream");
    }
}

/// One span with a window from elsewhere: a bit number, two lengths (of window and output), the window, the stream.
pub fn inflate_span(bytes: &[u8]) -> bool {
    let Some(([bit, window_low, window_high, output_low, output_high], rest)) = bytes.split_first_chunk() else {
        return false;
    };
    let window_bytes = usize::from(u16::from_le_bytes([*window_low, *window_high])).min(32 << 10);
    let Some((window, compressed)) = rest.split_at_checked(window_bytes) else { return false };
    let start = StreamPosition { compressed: 0, bit: bit & 7, uncompressed: 1 << 20 };
    let mut output = vec![0; usize::from(u16::from_le_bytes([*output_low, *output_high]))];
    inflate(start, window, compressed, &mut output).is_ok()
}

/// Frames and messages between daemon, zygote and agent.
pub fn wire_frames(bytes: &[u8]) -> bool {
    sampan_wire::frame::exercise(bytes);
    let mut decoder = sampan_wire::frame::FrameDecoder::default();
    decoder.feed(bytes);
    matches!(decoder.next_frame(), Ok(Some(_)))
}

/// The headers of a request that wants to become a stream, a line each.
pub fn handshake(bytes: &[u8]) -> bool {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').take(64) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    let wanted = sampan_streaming::wants_upgrade(&headers);
    let agreed = sampan_streaming::Handshake::agree(&headers);
    if let Ok(handshake) = &agreed {
        std::hint::black_box(handshake.response());
    }
    wanted && agreed.is_ok()
}

/// A request of the kernel's FUSE. What is accepted lies inside its bytes.
pub fn fuse_request(bytes: &[u8]) -> bool {
    use sampan_sys::fuse::protocol::{Operation, parse};
    let Ok(request) = parse(bytes) else { return false };
    if let Operation::LookUp { name } = request.operation {
        assert!(!name.is_empty() && name.len() < bytes.len() && !name.contains(&b'/'), "a name that is none");
    }
    true
}
