//! Entries for fuzzing: everything here takes any bytes and must neither panic nor grow without bound.

use bytes::Bytes;

/// Frames of a SPDY client, and the headers in them.
pub fn spdy_frames(bytes: &[u8]) {
    crate::spdy::fuzz_frames(bytes);
}

/// One WebSocket message of a client.
pub fn websocket_message(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    drop(crate::websocket::parse(&bytes));
    drop(crate::websocket::forward::parse(&bytes));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_message_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            super::websocket_message(&bytes);
            super::websocket_message(&[&[4], bytes.as_slice()].concat());
        }
    }
}
