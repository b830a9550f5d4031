//! A stream of JSON objects, one a line: watches and the progress of a pull.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;

use super::error::ClientError;
use crate::limits::LINE_BYTES_MAX;

/// Reads objects off a body as they arrive. Cancel safe: what has come stays in the buffer.
#[derive(Debug)]
pub(crate) struct Lines {
    body: Incoming,
    buffer: BytesMut,
    searched: usize,
}

impl Lines {
    pub(crate) fn new(body: Incoming) -> Self {
        Self { body, buffer: BytesMut::new(), searched: 0 }
    }

    /// The next object; `None` when the service ended the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Value>, ClientError> {
        loop {
            if let Some(line) = self.take_line() {
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return parse(&line).map(Some);
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(ClientError::Unexpected("a line without end".to_owned()));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(ClientError::lost(error)),
                None if self.buffer.trim_ascii().is_empty() => return Ok(None),
                None => return parse(&self.buffer.split()).map(Some),
            }
        }
    }

    fn take_line(&mut self) -> Option<Bytes> {
        let found = self.buffer.iter().skip(self.searched).position(|byte| *byte == b'\n');
        let Some(offset) = found else {
            self.searched = self.buffer.len();
            return None;
        };
        let line = self.buffer.split_to(self.searched + offset + 1).freeze();
        self.searched = 0;
        Some(line)
    }
}

fn parse(line: &[u8]) -> Result<Value, ClientError> {
    serde_json::from_slice(line).map_err(|error| ClientError::Unexpected(error.to_string()))
}
