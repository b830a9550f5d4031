//! One read on its way to its answer, and the queue that it came from.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use sampan_sys::fuse::protocol::{self, ANSWER_HEADER_BYTES};

use super::super::partial_file::PartialFile;
use crate::limits::{FUSE_READ_ATTEMPTS_MAX, FUSE_READ_BYTES_MAX};

/// One queue of the connection.
#[derive(Debug)]
pub(crate) struct Queue {
    device: OwnedFd,
}

impl Queue {
    pub(crate) fn new(device: OwnedFd) -> Self {
        Self { device }
    }

    /// Waits for a request.
    pub(crate) fn read(&self, into: &mut [u8]) -> Result<usize, Errno> {
        rustix::io::read(&self.device, into)
    }

    /// Sends a whole answer. Nobody can be told if that fails: the request is gone, or asked again, or the connection is.
    pub(crate) fn answer(&self, answer: &[u8]) {
        let sent = rustix::io::retry_on_intr(|| rustix::io::write(&self.device, answer));
        match sent {
            Ok(_) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => {}
            Err(error) => tracing::error!(%error, "an answer over FUSE is refused"),
        }
    }

    /// Answers with an error.
    pub(crate) fn fail(&self, unique: u64, error: Errno) {
        self.answer(&protocol::header(unique, Err(error), 0));
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// A read that waits for its answer. It is answered once; dropped without an answer it fails, unless the service closes:
/// then it is left to the next one.
pub(super) struct ReadRequest {
    queue: Arc<Queue>,
    closing: Arc<AtomicBool>,
    unique: u64,
    offset: u64,
    bytes: u32,
    attempts: u32,
    settled: bool,
}

impl ReadRequest {
    pub(super) fn new(queue: &Arc<Queue>, closing: &Arc<AtomicBool>, unique: u64, offset: u64, bytes: u32) -> Self {
        let (queue, closing) = (Arc::clone(queue), Arc::clone(closing));
        Self { queue, closing, unique, offset, bytes, attempts: 0, settled: false }
    }

    /// Answers from what is here, else has the rest fetched. `space` holds the header and the most that a read asks for.
    pub(super) fn serve(mut self, file: Arc<dyn PartialFile>, space: &mut [u8]) {
        if self.bytes > FUSE_READ_BYTES_MAX {
            return self.fail(Errno::INVAL);
        }
        match self.attempt(&*file, space) {
            Ok(true) => {}
            Ok(false) => self.want(file),
            Err(error) => {
                tracing::error!(offset = self.offset, %error, "the cache of an incomplete layer cannot be read");
                self.fail(Errno::IO);
            }
        }
    }

    /// The same on a thread that has no space for it.
    pub(super) fn serve_elsewhere(self, file: Arc<dyn PartialFile>) {
        let bytes = self.bytes.min(FUSE_READ_BYTES_MAX) as usize;
        self.serve(file, &mut vec![0; ANSWER_HEADER_BYTES + bytes]);
    }

    pub(super) fn fail(mut self, error: Errno) {
        self.settled = true;
        self.queue.fail(self.unique, error);
    }

    /// Bytes of the file in what is asked for.
    fn bytes_of(&self, file: &dyn PartialFile) -> u32 {
        let left = file.bytes().saturating_sub(self.offset);
        u32::try_from(left).map_or(self.bytes, |left| left.min(self.bytes))
    }

    /// Answers if all of it is here, and says whether it was.
    fn attempt(&mut self, file: &dyn PartialFile, space: &mut [u8]) -> std::io::Result<bool> {
        let wanted = self.bytes_of(file) as usize;
        let whole = space.get_mut(..ANSWER_HEADER_BYTES + wanted).ok_or(std::io::ErrorKind::InvalidInput)?;
        let (header, data) = whole.split_at_mut(ANSWER_HEADER_BYTES);
        let Some(read) = file.read_present(self.offset, data)? else { return Ok(false) };
        let read = u32::try_from(read.min(wanted)).unwrap_or(0);
        header.copy_from_slice(&protocol::header(self.unique, Ok(()), read));
        self.settled = true;
        self.queue.answer(space.get(..ANSWER_HEADER_BYTES + read as usize).unwrap_or_default());
        Ok(true)
    }

    fn want(mut self, file: Arc<dyn PartialFile>) {
        if self.closing.load(Ordering::SeqCst) {
            return;
        }
        if self.attempts == FUSE_READ_ATTEMPTS_MAX {
            tracing::error!(offset = self.offset, "what was fetched of an incomplete layer is not there");
            return self.fail(Errno::IO);
        }
        self.attempts += 1;
        let (offset, bytes) = (self.offset, self.bytes_of(&*file));
        let fetched = Arc::clone(&file);
        let answer = move |outcome| match outcome {
            Ok(()) => self.serve_elsewhere(fetched),
            // Fetching ends with the service; the next one fetches anew.
            Err(_) if self.closing.load(Ordering::SeqCst) => {}
            Err(error) => self.fail(error),
        };
        file.want(offset, bytes, Box::new(answer));
    }
}

impl Drop for ReadRequest {
    fn drop(&mut self) {
        if !self.settled && !self.closing.load(Ordering::SeqCst) {
            tracing::error!(offset = self.offset, "a read of an incomplete layer was forgotten");
            self.queue.fail(self.unique, Errno::IO);
        }
    }
}
