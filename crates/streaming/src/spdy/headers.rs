//! SPDY's header blocks (draft 3, section 2.6.10): names and values, deflated in one run over the whole connection, beginning
//! with a dictionary that the protocol gives.

use std::io;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::limits::SPDY_HEADER_BYTES_MAX;

const DICTIONARY: &[u8] = include_bytes!("../../data/spdy3_dictionary.bin");

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

/// The client's direction.
pub(super) struct Inflater(Decompress);

impl Inflater {
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// The headers of the next block.
    pub(super) fn headers(&mut self, block: &[u8]) -> io::Result<Vec<(String, String)>> {
        let plain = self.inflate(block)?;
        read(&plain).ok_or_else(|| invalid("a header block is damaged"))
    }

    fn inflate(&mut self, mut block: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::with_capacity(SPDY_HEADER_BYTES_MAX);
        loop {
            let (taken, given) = (self.0.total_in(), plain.len());
            match self.0.decompress_vec(block, &mut plain, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) => return Err(invalid("a header block ends its stream")),
                Ok(Status::Ok | Status::BufError) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(DICTIONARY).map_err(|error| invalid(error.to_string()))?;
                }
                Err(error) => return Err(invalid(error.to_string())),
            }
            let taken = usize::try_from(self.0.total_in() - taken).unwrap_or(usize::MAX);
            block = block.get(taken..).unwrap_or_default();
            if plain.len() == plain.capacity() {
                return Err(invalid("a header block is too large"));
            }
            if block.is_empty() {
                return Ok(plain);
            }
            if taken == 0 && plain.len() == given && self.0.total_in() > 6 {
                return Err(invalid("a header block does not go on"));
            }
        }
    }
}

/// A count, then for each header the length and bytes of its name and of its value; all numbers have 32 bits.
fn read(plain: &[u8]) -> Option<Vec<(String, String)>> {
    let mut rest = plain;
    let number = |rest: &mut &[u8]| {
        let (head, tail) = rest.split_first_chunk::<4>()?;
        *rest = tail;
        usize::try_from(u32::from_be_bytes(*head)).ok()
    };
    let count = number(&mut rest)?;
    let mut headers = Vec::new();
    for _ in 0..count {
        let mut text = || {
            let length = number(&mut rest)?;
            let (text, tail) = rest.split_at_checked(length)?;
            rest = tail;
            Some(String::from_utf8_lossy(text).into_owned())
        };
        headers.push((text()?, text()?));
    }
    Some(headers)
}

/// Our direction: replies have no headers, but even nothing must be deflated.
pub(super) struct Deflater(Compress);

impl Deflater {
    pub(super) fn new() -> io::Result<Self> {
        let mut compress = Compress::new(Compression::default(), true);
        compress.set_dictionary(DICTIONARY).map_err(|error| invalid(error.to_string()))?;
        Ok(Self(compress))
    }

    /// A block without headers.
    pub(super) fn no_headers(&mut self) -> io::Result<Vec<u8>> {
        self.block(&0_u32.to_be_bytes())
    }

    fn block(&mut self, plain: &[u8]) -> io::Result<Vec<u8>> {
        let mut block = Vec::with_capacity(plain.len() + 64);
        self.0.compress_vec(plain, &mut block, FlushCompress::Sync).map_err(|error| invalid(error.to_string()))?;
        Ok(block)
    }
}

/// Blocks as a client makes them.
#[cfg(test)]
pub(super) mod tests_support {
    use super::Deflater;

    pub(crate) fn plain(headers: &[(&str, &str)]) -> Vec<u8> {
        let number = |length: usize| u32::try_from(length).expect("short").to_be_bytes();
        let mut plain = number(headers.len()).to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend(number(text.len()));
            plain.extend(text.as_bytes());
        }
        plain
    }

    /// Several blocks of one connection.
    pub(crate) fn block(blocks: &[&[(&str, &str)]]) -> Vec<Vec<u8>> {
        let mut deflater = Deflater::new().expect("a deflater");
        blocks.iter().map(|headers| deflater.block(&plain(headers)).expect("a block")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::tests_support::plain;
    use super::*;

    #[test]
    fn blocks_are_one_run_with_the_dictionary_of_the_protocol() {
        let mut deflater = Deflater::new().expect("a deflater");
        let mut inflater = Inflater::new();
        for kind in ["error", "stdin", "stdout", "stderr", "resize"] {
            let headers = [("streamtype", kind), ("accept-encoding", "gzip")];
            let block = deflater.block(&plain(&headers)).expect("a block");
            let read = inflater.headers(&block).expect("headers");
            assert_eq!(read, headers.map(|(name, value)| (name.to_owned(), value.to_owned())));
        }
        let block = deflater.no_headers().expect("a block");
        assert_eq!(inflater.headers(&block).expect("headers"), []);
    }

    #[test]
    fn a_block_that_grows_without_end_is_refused() {
        let mut deflater = Deflater::new().expect("a deflater");
        let long = "x".repeat(4 * SPDY_HEADER_BYTES_MAX);
        let mut block = Vec::with_capacity(1 << 20);
        deflater.0.compress_vec(&plain(&[("a", &long)]), &mut block, FlushCompress::Sync).expect("a block");
        let error = Inflater::new().headers(&block).expect_err("too large");
        assert!(error.to_string().contains("too large"), "{error}");
    }
}
