//! Frames: an eight-byte header, then the payload.
//!
//! ```text
//! offset  bytes  little-endian
//! 0       4      payload length
//! 4       2      number of descriptors that belong to this frame
//! 6       2      protocol version
//! ```
//!
//! On a stream, a frame's descriptors are sent with its first byte, so that by its last byte they have all arrived, and
//! in order. [`FrameDecoder`] is fed bytes as they come and hands out whole frames; the first error is final.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::PROTOCOL_VERSION;
use crate::limits::{DESCRIPTORS_MAX, PAYLOAD_BYTES_MAX};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 8;

/// What is wrong with a frame. Permanent: the connection is of no use any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame announces {length} bytes, more than {PAYLOAD_BYTES_MAX}")]
    TooLong { length: usize },
    #[error("a frame announces {count} descriptors, more than {DESCRIPTORS_MAX}")]
    TooManyDescriptors { count: usize },
    #[error("the other end speaks protocol version {version}, this one {PROTOCOL_VERSION}")]
    Version { version: u16 },
    #[error("a message does not have the expected shape")]
    Shape(#[source] postcard::Error),
    #[error("a message has {bytes} bytes too many")]
    TrailingBytes { bytes: usize },
}

/// A whole frame as it arrived; its descriptors are the first `descriptors` of those not yet claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub payload: Vec<u8>,
    pub descriptors: usize,
}

impl Frame {
    /// The message inside.
    pub fn message<M: DeserializeOwned>(&self) -> Result<M, FrameError> {
        let (message, rest) = postcard::take_from_bytes(&self.payload).map_err(FrameError::Shape)?;
        if rest.is_empty() { Ok(message) } else { Err(FrameError::TrailingBytes { bytes: rest.len() }) }
    }
}

/// Header and payload of a message with this many descriptors.
pub fn encode<M: Serialize>(message: &M, descriptors: usize) -> Result<Vec<u8>, FrameError> {
    let mut bytes = postcard::to_extend(message, vec![0_u8; HEADER_BYTES]).map_err(FrameError::Shape)?;
    let length = bytes.len().saturating_sub(HEADER_BYTES);
    if length > PAYLOAD_BYTES_MAX {
        return Err(FrameError::TooLong { length });
    }
    let count = match u16::try_from(descriptors) {
        Ok(count) if descriptors <= DESCRIPTORS_MAX => count,
        _ => return Err(FrameError::TooManyDescriptors { count: descriptors }),
    };
    let length = u32::try_from(length).map_err(|_too_long| FrameError::TooLong { length })?;
    let header = length.to_le_bytes().into_iter().chain(count.to_le_bytes()).chain(PROTOCOL_VERSION.to_le_bytes());
    for (place, byte) in bytes.iter_mut().zip(header) {
        *place = byte;
    }
    Ok(bytes)
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: Vec<u8>,
}

impl FrameDecoder {
    /// Adds bytes as they arrived. Take every whole frame out with [`FrameDecoder::next_frame`] before adding more: the
    /// buffer then never holds more than one frame and one read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame; `None` while its end has not arrived.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some((header, rest)) = self.buffer.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let [l0, l1, l2, l3, c0, c1, v0, v1] = *header;
        let version = u16::from_le_bytes([v0, v1]);
        if version != PROTOCOL_VERSION {
            return Err(FrameError::Version { version });
        }
        let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        if length > PAYLOAD_BYTES_MAX {
            return Err(FrameError::TooLong { length });
        }
        let count = usize::from(u16::from_le_bytes([c0, c1]));
        if count > DESCRIPTORS_MAX {
            return Err(FrameError::TooManyDescriptors { count });
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let frame = Frame { payload: payload.to_vec(), descriptors: count };
        self.buffer.drain(..HEADER_BYTES.saturating_add(length));
        if self.buffer.is_empty() {
            // Its room too: there are as many of these as pods.
            self.buffer = Vec::new();
        }
        Ok(Some(frame))
    }

    /// Whether nothing of an unfinished frame is waiting.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

/// Entry point for fuzzing: decodes whatever frames and messages the bytes hold.
pub fn exercise(bytes: &[u8]) {
    let mut decoder = FrameDecoder::default();
    for piece in bytes.chunks(61) {
        decoder.feed(piece);
        while let Ok(Some(frame)) = decoder.next_frame() {
            let shapes = [
                frame.message::<crate::agent::FromDaemon>().is_ok(),
                frame.message::<crate::agent::FromAgent>().is_ok(),
                frame.message::<crate::zygote::ZygoteRequest>().is_ok(),
                frame.message::<crate::zygote::ZygoteReply>().is_ok(),
            ];
            std::hint::black_box(shapes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_what_exceeds_the_limits() {
        let header = |length: u32, count: u16, version: u16| {
            let mut decoder = FrameDecoder::default();
            decoder.feed(&[&length.to_le_bytes()[..], &count.to_le_bytes(), &version.to_le_bytes()].concat());
            decoder.next_frame()
        };
        assert_eq!(header(u32::MAX, 0, PROTOCOL_VERSION), Err(FrameError::TooLong { length: u32::MAX as usize }));
        assert_eq!(header(1, 251, PROTOCOL_VERSION), Err(FrameError::TooManyDescriptors { count: 251 }));
        assert_eq!(header(1, 0, 77), Err(FrameError::Version { version: 77 }));
        assert_eq!(header(1, 0, PROTOCOL_VERSION), Ok(None));
        assert_eq!(encode(&"x", 251).unwrap_err(), FrameError::TooManyDescriptors { count: 251 });
    }

    #[test]
    fn refuses_trailing_bytes() {
        let frame = Frame { payload: vec![1, 2], descriptors: 0 };
        assert_eq!(frame.message::<u8>(), Err(FrameError::TrailingBytes { bytes: 1 }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
            exercise(&bytes);
        }

        #[test]
        fn any_payload_behind_a_good_header_is_survived(payload in prop::collection::vec(any::<u8>(), 0..2048)) {
            let length = u32::try_from(payload.len()).unwrap().to_le_bytes();
            exercise(&[&length[..], &[0, 0], &PROTOCOL_VERSION.to_le_bytes(), &payload].concat());
        }

        #[test]
        fn frames_survive_any_cutting(messages in prop::collection::vec((".{0,300}", 0..9_usize), 0..9), cut in 1..97_usize) {
            let mut bytes = Vec::new();
            for (text, descriptors) in &messages {
                bytes.extend(encode(text, *descriptors).unwrap());
            }
            let (mut decoder, mut seen) = (FrameDecoder::default(), Vec::new());
            for piece in bytes.chunks(cut) {
                decoder.feed(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push((frame.message::<String>().unwrap(), frame.descriptors));
                }
            }
            prop_assert!(decoder.is_empty());
            prop_assert_eq!(seen, messages);
        }
    }
}
