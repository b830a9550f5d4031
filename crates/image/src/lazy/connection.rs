//! The one FUSE connection of a service, which outlives the service.
//!
//! The connection is a mount that is attached nowhere, and some queues, each with a thread. The supervisor holds copies of all
//! of them, clones included: a queue that nobody else holds would end the connection with its process. A new daemon gets them
//! back, makes every file known again under its old number, and has the kernel ask again for whatever the old one had read and
//! not answered. Readers notice a pause.
//!
//! - **Order.** [`LazyFiles::open`], then [`LazyFiles::add`] for every file that the service before has served, then [`LazyFiles::resume`] once. Devices are touched only then: a killed service may have left one locked,
//!   until the reads are answered that it waited for.
//! - **Identity.** A file's number is its node number, its name and what the kernel asks by: it must be the same before and
//!   after a restart, and unique below one store's directory.
//! - **When nothing survived** (the supervisor died too, or somebody cut the connection) a new one is made, and
//!   [`super::device::mend_devices`] moves the loop devices that are left to it.

mod error;
#[cfg(test)]
pub(super) mod tests;

pub(crate) use error::FuseError;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use sampan_sys::fuse::protocol::{self, InitAnswer, Operation, features};
use sampan_sys::fuse::{self, FuseMount};
use sampan_sys::keeper::DescriptorKeeper;
#[cfg(test)]
use sampan_sys::loop_device;
use sampan_sys::socket::DESCRIPTORS_MAX;

use super::fuse::{Directory, LAST_NAME, Queue};
use super::partial_file::PartialFile;
use crate::limits::{FUSE_BACKGROUND_MAX, FUSE_QUEUES_MAX, FUSE_READ_BYTES_MAX, FUSE_REQUEST_BYTES_MAX};

/// Under which name the supervisor holds mount and queues, in this order.
const KEPT_NAME: &str = "lazy-files";
/// Under which name it holds mounts over them.
const KEPT_MOUNTS_NAME: &str = "lazy-mounts";

/// The incomplete blobs of one store, as files.
pub(crate) struct LazyFiles {
    directory: Arc<Directory>,
    mount: OwnedFd,
    queues: Vec<Arc<Queue>>,
    threads: Vec<JoinHandle<()>>,
    inherited: bool,
    keeper: DescriptorKeeper,
    held: Mutex<HeldMounts>,
}

/// Mounts that the supervisor holds, too.
#[derive(Default)]
struct HeldMounts {
    /// Of the services before this one.
    earlier: Vec<OwnedFd>,
    are_any: bool,
}

impl LazyFiles {
    /// Takes over the connection that `keeper` holds, or makes one with so many threads and has it kept. `root` is the
    /// directory of the store: services beside each other have different ones, and do not touch each other's devices.
    pub(crate) fn open(keeper: &DescriptorKeeper, root: &Path, threads: usize) -> Result<Self, FuseError> {
        let (connection, inherited) = match Connection::inherited(keeper.take(KEPT_NAME)) {
            Some(connection) => (connection, true),
            None => (Connection::new(keeper, threads)?, false),
        };
        let directory = Arc::new(Directory::new(prefix(root)?));
        let earlier = keeper.take(KEPT_MOUNTS_NAME);
        let mut files = Self {
            directory,
            mount: connection.mount,
            queues: connection.queues,
            threads: Vec::new(),
            inherited,
            keeper: keeper.clone(),
            held: Mutex::new(HeldMounts { are_any: !earlier.is_empty(), earlier }),
        };
        for (number, queue) in files.queues.iter().enumerate() {
            let (directory, queue) = (Arc::clone(&files.directory), Arc::clone(queue));
            let thread = std::thread::Builder::new().name(format!("lazy-files-{number}"));
            let thread = thread.spawn(move || directory.serve(&queue)).map_err(FuseError::Thread)?;
            files.threads.push(thread);
        }
        Ok(files)
    }

    /// Whether the connection is an earlier service's.
    pub(crate) fn is_inherited(&self) -> bool {
        self.inherited
    }

    /// Serves a file, and opens it through FUSE. After a restart the same number must stand for the same bytes.
    pub(crate) fn add(&self, number: u64, file: &Arc<dyn PartialFile>) -> Result<File, FuseError> {
        if number <= protocol::ROOT {
            return Err(FuseError::Number { number });
        }
        self.directory.add(number, file);
        let opened = fuse::open_file(self.mount.as_fd(), &self.directory.name(number));
        Ok(opened.map_err(|source| FuseError::Open { number, source })?.into())
    }

    /// Everything that was served before is added: has the kernel ask again for what nobody answered.
    pub(crate) fn resume(&self) -> Result<(), FuseError> {
        self.directory.all_known();
        match self.queues.first() {
            Some(queue) if self.inherited => fuse::resend(queue.as_fd()).map_err(FuseError::Resend),
            _ => Ok(()),
        }
    }

    /// Serves a file no longer. Nothing may be left that reads it: see [`super::device::switch_devices`].
    pub(crate) fn remove(&self, number: u64) {
        self.directory.remove(number);
    }

    /// Has the supervisor hold these mounts of incomplete images, too, and no others. A mount that went with a killed service
    /// would wait for reads that only its successor can answer, and the successor for its end.
    pub(crate) fn hold(&self, mounts: &[BorrowedFd<'_>]) -> Result<(), FuseError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if mounts.is_empty() {
            held.earlier.clear();
            return match std::mem::take(&mut held.are_any) {
                true => self.keeper.release(KEPT_MOUNTS_NAME).map_err(FuseError::Keep),
                false => Ok(()),
            };
        }
        let all = mounts.iter().copied().chain(held.earlier.iter().map(AsFd::as_fd)).take(DESCRIPTORS_MAX);
        let all: Vec<BorrowedFd<'_>> = all.collect();
        let kept = self.keeper.keep(KEPT_MOUNTS_NAME, &all).map_err(FuseError::Keep);
        held.are_any = true;
        kept
    }

    /// Answers nothing any more that is not here: it is left to the next service. To be called before what fetches is stopped.
    pub(crate) fn close(&self) {
        self.directory.close();
    }

    /// Requests that an earlier service read, and that this one was asked again.
    #[cfg(test)]
    pub(crate) fn resent(&self) -> u64 {
        self.directory.resent()
    }

    /// Numbers of files that loop devices read, of this service or of one before it; each once.
    #[cfg(test)]
    pub(crate) fn survivors(&self) -> Result<Vec<u64>, FuseError> {
        let files = loop_device::backing_files().map_err(FuseError::device("look for the"))?;
        let number = |path: &PathBuf| self.directory.number(path.to_str()?.trim_start_matches('/'));
        let mut numbers: Vec<u64> = files.iter().filter_map(number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }

    /// How the kernel names the file behind a loop device.
    pub(super) fn backing_path(&self, number: u64) -> PathBuf {
        PathBuf::from(format!("/{}", self.directory.name(number)))
    }
}

impl std::fmt::Debug for LazyFiles {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("LazyFiles").field("inherited", &self.inherited).finish_non_exhaustive()
    }
}

/// Ends the threads. What they have not answered is left to the next service, for which the supervisor holds the connection.
impl Drop for LazyFiles {
    fn drop(&mut self) {
        self.close();
        // Each look-up ends the one thread that takes it. Where the connection is cut all fail, and the threads ended before.
        for _ in self.threads.iter().filter(|thread| !thread.is_finished()).collect::<Vec<_>>() {
            if fuse::open_file(self.mount.as_fd(), LAST_NAME).is_ok() {
                tracing::error!("a file of that name is not served");
            }
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that served incomplete images broke");
            }
        }
    }
}

/// A connection that is past its first request.
struct Connection {
    mount: OwnedFd,
    queues: Vec<Arc<Queue>>,
}

impl Connection {
    /// The one of an earlier service, if it is there and whole.
    fn inherited(kept: Vec<OwnedFd>) -> Option<Self> {
        let mut kept = kept.into_iter();
        let mount = kept.next()?;
        let queues: Vec<Arc<Queue>> = kept.map(|queue| Arc::new(Queue::new(queue))).collect();
        let connected = fuse::is_connected(queues.first()?.as_fd());
        if connected.as_ref().is_ok_and(|connected| *connected) {
            return Some(Self { mount, queues });
        }
        tracing::warn!(?connected, "the FUSE connection that was kept is cut; incomplete images move to a new one");
        None
    }

    fn new(keeper: &DescriptorKeeper, threads: usize) -> Result<Self, FuseError> {
        let FuseMount { mount, queue } = FuseMount::new("sampan").map_err(FuseError::Mount)?;
        let first = Queue::new(queue);
        greet(&first)?;
        let mut queues = vec![Arc::new(first)];
        while let Some(first) = queues.first().filter(|_| queues.len() < threads.min(FUSE_QUEUES_MAX)) {
            let clone = fuse::clone_queue(first.as_fd()).map_err(FuseError::Mount)?;
            queues.push(Arc::new(Queue::new(clone)));
        }
        let kept: Vec<BorrowedFd<'_>> =
            std::iter::once(mount.as_fd()).chain(queues.iter().map(|queue| queue.as_fd())).collect();
        keeper.keep(KEPT_NAME, &kept).map_err(FuseError::Keep)?;
        Ok(Self { mount, queues })
    }
}

/// Answers the first request, which the mount has queued.
fn greet(queue: &Queue) -> Result<(), FuseError> {
    const WANTED: u64 = features::ASYNC_READ
        | features::ASYNC_DIRECT_IO
        | features::PARALLEL_DIRECTORY
        | features::ABORT_ERROR
        | features::MAX_PAGES
        | features::EXTENDED
        | features::RESEND;
    let mut buffer = vec![0; FUSE_REQUEST_BYTES_MAX];
    let read = rustix::io::retry_on_intr(|| queue.read(&mut buffer)).map_err(|errno| FuseError::Mount(errno.into()))?;
    let request = protocol::parse(buffer.get(..read).unwrap_or_default());
    let request = request.map_err(|error| FuseError::Mount(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    let (minor, offered) = match request.operation {
        Operation::Init { major: protocol::MAJOR, minor, features } => (minor, features),
        _ => return Err(FuseError::Version),
    };
    if offered & features::RESEND == 0 {
        return Err(FuseError::NoResend);
    }
    let answer = InitAnswer {
        minor,
        features: offered & WANTED,
        read_bytes_max: FUSE_READ_BYTES_MAX,
        background_max: FUSE_BACKGROUND_MAX,
    };
    queue.answer(&protocol::init_answer(request.unique, answer));
    Ok(())
}

/// Where the names of a store's files begin: they stand in the kernel's list of loop devices, beside those of others.
fn prefix(root: &Path) -> Result<String, FuseError> {
    let root = root.canonicalize().map_err(FuseError::Root)?;
    let hash = blake3::hash(root.as_os_str().as_bytes());
    Ok(format!("sampan-lazy-{}-", hash.to_hex().get(..16).unwrap_or_default()))
}
