//! SPDY/3.1 frames (draft 3.1, section 2.2), as far as remote streams use them. Pure: bytes in, frames out.

use std::io;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::limits::MESSAGE_BYTES_MAX;

const VERSION: u16 = 3;
const CONTROL: u32 = 1 << 31;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const HEAD_BYTES: usize = 8;
const FLAG_LAST: u8 = 1;

/// The reason of a reset: the stream is not wanted.
pub(super) const REFUSED_STREAM: u32 = 3;

/// One frame from a client.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A new stream with its compressed headers.
    OpenStream {
        stream: u32,
        headers: Bytes,
    },
    /// More headers, or those of a reply; compressed.
    Headers {
        headers: Bytes,
    },
    Data {
        stream: u32,
        bytes: Bytes,
        last: bool,
    },
    Reset(u32),
    Ping(u32),
    Goodbye,
    /// Settings, window updates, and whatever else may be passed over.
    Other,
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Takes one frame off the front; None when it is not complete yet.
pub(super) fn parse(buffer: &mut BytesMut) -> io::Result<Option<Frame>> {
    let Some(mut head) = buffer.get(..HEAD_BYTES) else { return Ok(None) };
    let (first, second) = (head.get_u32(), head.get_u32());
    let flags = (second >> 24).to_le_bytes()[0];
    let length = usize::try_from(second & 0x00ff_ffff).map_err(|_large| invalid("a frame is too large"))?;
    if length > MESSAGE_BYTES_MAX {
        return Err(invalid("a frame is too large"));
    }
    if buffer.len() < HEAD_BYTES + length {
        return Ok(None);
    }
    buffer.advance(HEAD_BYTES);
    let body = buffer.split_to(length).freeze();
    if first & CONTROL == 0 {
        return Ok(Some(Frame::Data { stream: first, bytes: body, last: flags & FLAG_LAST != 0 }));
    }
    let [version_high, version_low, kind_high, kind_low] = (first & !CONTROL).to_be_bytes();
    if u16::from_be_bytes([version_high, version_low]) != VERSION {
        return Err(invalid("a frame has another version than SPDY/3"));
    }
    control(u16::from_be_bytes([kind_high, kind_low]), body).map(Some)
}

fn control(kind: u16, mut body: Bytes) -> io::Result<Frame> {
    let mut number = || if body.len() < 4 { Err(invalid("a frame is too short")) } else { Ok(body.get_u32()) };
    Ok(match kind {
        SYN_STREAM => {
            let stream = number()? & !CONTROL;
            number()?;
            if body.len() < 2 {
                return Err(invalid("a frame is too short"));
            }
            body.advance(2);
            Frame::OpenStream { stream, headers: body }
        }
        SYN_REPLY | HEADERS => {
            number()?;
            Frame::Headers { headers: body }
        }
        RST_STREAM => Frame::Reset(number()? & !CONTROL),
        PING => Frame::Ping(number()?),
        GOAWAY => Frame::Goodbye,
        _ => Frame::Other,
    })
}

fn control_frame(kind: u16, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEAD_BYTES + body.len());
    frame.put_u32(CONTROL | u32::from(VERSION) << 16 | u32::from(kind));
    frame.put_u32(u32::try_from(body.len()).unwrap_or(u32::MAX) & 0x00ff_ffff);
    frame.put_slice(body);
    frame.freeze()
}

pub(super) fn reply(stream: u32, headers: &[u8]) -> Bytes {
    control_frame(SYN_REPLY, &[&stream.to_be_bytes(), headers].concat())
}

pub(super) fn ping(id: u32) -> Bytes {
    control_frame(PING, &id.to_be_bytes())
}

pub(super) fn reset(stream: u32, reason: u32) -> Bytes {
    control_frame(RST_STREAM, &[stream.to_be_bytes(), reason.to_be_bytes()].concat())
}

/// The last stream that was accepted is of no interest to these clients.
pub(super) fn goodbye() -> Bytes {
    control_frame(GOAWAY, &[0; 8])
}

/// The head of a data frame; the data follows. An output's chunk is far shorter than what 24 bits can say.
pub(super) fn data_head(stream: u32, length: usize, last: bool) -> [u8; HEAD_BYTES] {
    let flags = if last { u32::from(FLAG_LAST) << 24 } else { 0 };
    let second = flags | u32::try_from(length).unwrap_or(u32::MAX) & 0x00ff_ffff;
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(&(stream & !CONTROL).to_be_bytes());
    head[4..].copy_from_slice(&second.to_be_bytes());
    head
}

/// Entry for fuzzing: parses everything that `bytes` hold.
pub(crate) fn fuzz(bytes: &[u8]) {
    let mut buffer = BytesMut::from(bytes);
    let mut inflater = super::headers::Inflater::new();
    while let Ok(Some(frame)) = parse(&mut buffer) {
        if let Frame::OpenStream { headers, .. } | Frame::Headers { headers } = frame
            && inflater.headers(&headers).is_err()
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_are_read_whole_or_not_yet() {
        let mut bytes = data_head(5, 3, true).to_vec();
        bytes.extend_from_slice(b"abc");
        bytes.extend_from_slice(&ping(7));
        for cut in 0..11 {
            let mut buffer = BytesMut::from(&bytes[..cut]);
            assert_eq!(parse(&mut buffer).expect("no error"), None);
        }
        let mut buffer = BytesMut::from(bytes.as_slice());
        let data = Frame::Data { stream: 5, bytes: Bytes::from_static(b"abc"), last: true };
        assert_eq!(parse(&mut buffer).expect("no error"), Some(data));
        assert_eq!(parse(&mut buffer).expect("no error"), Some(Frame::Ping(7)));
        assert!(buffer.is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz(&bytes);
            let framed = control_frame(SYN_STREAM, &bytes);
            fuzz(&framed);
        }
    }
}
