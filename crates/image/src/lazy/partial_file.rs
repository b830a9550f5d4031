//! The joint between incomplete blobs and the kernel: what the FUSE side asks, what the fetching side answers.
//!
//! - **Order.** [`PartialFile::read_present`] first; [`PartialFile::want`] where that says that something is missing; then
//!   `read_present` again, once the answer has come.
//! - **Concurrency.** Both are called from several threads at one time, for overlapping ranges too.
//! - **Time.** Neither waits for the network: the calling thread is one of the few that serve every image. `want` takes the
//!   request down and returns; its answer may come before it returns, on the same thread.
//! - **Failure.** A reader gets an error only where the answer is one. An answer that is dropped without having been called
//!   counts as `EIO`, unless the connection is closing: then the next service is asked again.

use rustix::io::Errno;

/// How a wish for a range ends; called at most once.
pub(crate) type Answer = Box<dyn FnOnce(Result<(), Errno>) + Send>;

/// One incomplete blob, as the FUSE side serves it.
pub(crate) trait PartialFile: Send + Sync {
    /// Length of the blob, a multiple of 4,096. The same for as long as the file is served.
    fn bytes(&self) -> u64;

    /// Copies what is wanted if all of it is here: `Ok(Some(n))` bytes (fewer than wanted only at the end of the blob),
    /// `Ok(None)` when a part is missing.
    fn read_present(&self, offset: u64, into: &mut [u8]) -> std::io::Result<Option<usize>>;

    /// Asks for a range inside the blob. `answer` is called once, from any thread: `Ok` when `read_present` will now
    /// succeed, an error number when it never will (`EIO` after the deadline).
    fn want(&self, offset: u64, bytes: u32, answer: Answer);
}
