//! Serving incomplete blobs over FUSE: one flat directory with one file each.
//!
//! ```text
//!  kernel ── queue ──▶ thread of that queue ── here? ──▶ answered at once
//!                             │ missing                       ▲
//!                             └── PartialFile::want ── answer ┘   on whatever thread that comes
//! ```
//!
//! - A request is answered on the queue that it was read from; the kernel looks for it nowhere else.
//! - **Never a wrong answer on the way out.** While the service closes, what is missing is not answered at all: the kernel
//!   gives it to the next service. Until all files are known again ([`Directory::all_known`]), reads of unknown ones wait.
//! - **Interrupts are not obeyed.** The kernel sends one for any signal, and a page that fails to come is a SIGBUS to the
//!   process that mapped it. Killed readers do not need them either: they wait for a page of EROFS, not for us.

mod request;

pub(super) use request::Queue;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::io::Errno;
use sampan_sys::fuse::protocol::{self, ANSWER_HEADER_BYTES, Attributes, Operation, ProtocolError, Request};

use super::partial_file::PartialFile;
use crate::limits::{FUSE_READ_BYTES_MAX, FUSE_REQUEST_BYTES_MAX};
use request::ReadRequest;

/// A name that no file has: whoever looks it up ends one thread.
pub(super) const LAST_NAME: &str = "last";

/// The files that are served, and what waits for files that are not known yet.
pub(super) struct Directory {
    /// What the names of all files begin with.
    prefix: String,
    files: RwLock<Files>,
    closing: Arc<AtomicBool>,
    resent: AtomicU64,
}

#[derive(Default)]
struct Files {
    served: HashMap<u64, Arc<dyn PartialFile>>,
    /// Reads of unknown files; `None` once all files are known.
    parked: Option<Vec<(u64, ReadRequest)>>,
}

/// Whether a thread goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Next,
    Last,
}

impl Directory {
    /// An empty one, whose files' names begin with `prefix`.
    pub(super) fn new(prefix: String) -> Self {
        let files = Files { served: HashMap::new(), parked: Some(Vec::new()) };
        Self { prefix, files: RwLock::new(files), closing: Arc::default(), resent: AtomicU64::new(0) }
    }

    /// The name of a file.
    pub(super) fn name(&self, number: u64) -> String {
        format!("{}{number:016x}", self.prefix)
    }

    /// The number of the file of that name.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        let digits = name.strip_prefix(&self.prefix).filter(|digits| digits.len() == 16)?;
        u64::from_str_radix(digits, 16).ok()
    }

    /// Serves a file from now on, to those too who asked for it before.
    pub(super) fn add(&self, number: u64, file: &Arc<dyn PartialFile>) {
        let mut files = self.write();
        files.served.insert(number, Arc::clone(file));
        let parked = files.parked.iter_mut().flat_map(|parked| parked.extract_if(.., |(node, _)| *node == number));
        let parked: Vec<_> = parked.collect();
        drop(files);
        for (_, request) in parked {
            request.serve_elsewhere(Arc::clone(file));
        }
    }

    /// Serves a file no longer: later reads of it fail.
    pub(super) fn remove(&self, number: u64) {
        self.write().served.remove(&number);
    }

    /// No more files of an earlier service will be added: what waits for unknown ones fails.
    pub(super) fn all_known(&self) {
        let parked = self.write().parked.take().unwrap_or_default();
        for (node, request) in parked {
            tracing::error!(node, "a reader waits for a layer that this service does not know");
            request.fail(Errno::IO);
        }
    }

    /// From now on nothing that is missing is answered.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Requests that were taken over from a service that did not answer them.
    #[cfg(test)]
    pub(super) fn resent(&self) -> u64 {
        self.resent.load(Ordering::Relaxed)
    }

    /// Serves one queue until its connection ends or [`LAST_NAME`] is looked up.
    pub(super) fn serve(self: &Arc<Self>, queue: &Arc<Queue>) {
        // Both are touched here, so that the kernel never has to make room for a page while a kill is pending: that would
        // fail the request.
        let mut request = vec![1; FUSE_REQUEST_BYTES_MAX];
        let mut space = vec![1; ANSWER_HEADER_BYTES + FUSE_READ_BYTES_MAX as usize];
        loop {
            let read = match queue.read(&mut request) {
                Ok(read) => read,
                Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => continue,
                Err(Errno::NODEV | Errno::CONNABORTED) => {
                    tracing::error!("the FUSE connection was cut: incomplete images fail until the service restarts");
                    return;
                }
                Err(error) => {
                    tracing::error!(%error, "a FUSE queue cannot be read");
                    return;
                }
            };
            let step = match protocol::parse(request.get(..read).unwrap_or_default()) {
                Ok(request) => self.handle(queue, &request, &mut space),
                Err(error) => refuse(queue, error),
            };
            if step == Step::Last {
                return;
            }
        }
    }

    fn handle(self: &Arc<Self>, queue: &Arc<Queue>, request: &Request<'_>, space: &mut [u8]) -> Step {
        let unique = request.unique;
        if request.is_resent() && self.resent.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::info!("readers whom an earlier service left waiting are served");
        }
        match request.operation {
            Operation::Read { offset, bytes } => {
                self.read_file(request.node, ReadRequest::new(queue, &self.closing, unique, offset, bytes), space);
            }
            Operation::LookUp { name } => return self.look_up(queue, request, name),
            Operation::GetAttributes => match self.attributes(request.node) {
                Some(attributes) => queue.answer(&protocol::attributes_answer(unique, attributes)),
                None => queue.fail(unique, Errno::STALE),
            },
            Operation::Open if self.attributes(request.node).is_some() => queue.answer(&protocol::open_answer(unique)),
            Operation::Open => queue.fail(unique, Errno::STALE),
            Operation::FileSystemStatus => queue.answer(&protocol::status_answer(unique)),
            Operation::Release | Operation::Destroy => queue.answer(&protocol::header(unique, Ok(()), 0)),
            Operation::Forget => {}
            Operation::Init { .. } => queue.fail(unique, Errno::PROTO),
            Operation::Interrupt { .. } | Operation::Other(_) => queue.fail(unique, Errno::NOSYS),
        }
        Step::Next
    }

    fn look_up(&self, queue: &Queue, request: &Request<'_>, name: &[u8]) -> Step {
        let known = std::str::from_utf8(name).ok().and_then(|name| {
            let number = self.number(name).filter(|_| request.node == protocol::ROOT)?;
            Some((number, self.read().served.get(&number)?.bytes()))
        });
        match known {
            Some((number, bytes)) => queue.answer(&protocol::entry_answer(request.unique, number, bytes)),
            None => queue.fail(request.unique, Errno::NOENT),
        }
        if name == LAST_NAME.as_bytes() && self.is_closing() { Step::Last } else { Step::Next }
    }

    fn attributes(&self, node: u64) -> Option<Attributes> {
        if node == protocol::ROOT {
            return Some(Attributes::Directory);
        }
        self.read().served.get(&node).map(|file| Attributes::File { node, bytes: file.bytes() })
    }

    fn read_file(&self, node: u64, request: ReadRequest, space: &mut [u8]) {
        let file = self.read().served.get(&node).map(Arc::clone);
        if let Some(file) = file {
            return request.serve(file, space);
        }
        let mut files = self.write();
        // It may have become known since.
        let file = files.served.get(&node).map(Arc::clone);
        match (&file, &mut files.parked) {
            (None, Some(parked)) => return parked.push((node, request)),
            _ => drop(files),
        }
        match file {
            Some(file) => request.serve(file, space),
            None => request.fail(Errno::IO),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Files> {
        self.files.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Files> {
        self.files.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refuse(queue: &Queue, error: ProtocolError) -> Step {
    tracing::error!(%error, "the kernel sent what cannot be read");
    if let Some(unique) = error.unique {
        queue.fail(unique, Errno::PROTO);
    }
    Step::Next
}
