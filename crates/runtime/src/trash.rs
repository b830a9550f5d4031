//! Disks and folders on their way out.
//!
//! Unmounting a disk and giving its image's blocks back takes milliseconds, and a hundred of them where the host's file
//! system discards them on its own disk at once. Nobody has to wait for that: a folder is renamed into the trash, from where
//! one thread deletes it, and the last mount of a disk is let go by the same thread ([`Deferred`]). What a killed daemon
//! leaves in the trash, the next one deletes first.

use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::limits::TRASH_QUEUED_MAX;
use crate::runtime::remove_folder;
use crate::writable::Disk;

#[derive(Debug)]
enum Rubbish {
    Folder(PathBuf),
    Disk(Disk),
    /// There is no more.
    End,
}

/// The trash of one service.
#[derive(Debug)]
pub(crate) struct Trash {
    folder: PathBuf,
    queue: SyncSender<Rubbish>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Trash {
    /// Takes over `folder`, which is made when it is missing, with whatever is in it.
    pub(crate) fn open(folder: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let left = std::fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
        let (queue, thrown) = sync_channel::<Rubbish>(TRASH_QUEUED_MAX);
        let thread = std::thread::Builder::new().name("trash".to_owned()).spawn(move || {
            for rubbish in left.into_iter().map(Rubbish::Folder).chain(thrown) {
                match rubbish {
                    Rubbish::Folder(path) => delete(&path),
                    Rubbish::Disk(disk) => drop(disk),
                    Rubbish::End => return,
                }
            }
        })?;
        Ok(Self { folder, queue, thread: Mutex::new(Some(thread)) })
    }

    /// Removes a folder: at once from where it was, a moment later from the disk. One that is not there is removed already.
    pub(crate) fn throw(&self, folder: &Path) -> io::Result<()> {
        let Some(name) = folder.file_name() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let thrown = self.folder.join(name);
        match std::fs::rename(folder, &thrown) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result?,
        }
        match self.queue.try_send(Rubbish::Folder(thrown.clone())) {
            Ok(()) => Ok(()),
            // More is thrown away than can be deleted: then whoever does has to wait.
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => remove_folder(&thrown),
        }
    }

    /// A disk whose last mount this trash lets go.
    pub(crate) fn deferred(&self, disk: Disk) -> Deferred {
        Deferred { disk: Some(disk), queue: self.queue.clone() }
    }

    /// Waits until it is empty; what is thrown later is deleted at once.
    pub(crate) fn close(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // Either of them fails only when the thread has panicked, and that leaves work for the next start.
            self.queue.send(Rubbish::End).ok();
            thread.join().ok();
        }
    }
}

fn delete(path: &Path) {
    if let Err(error) = remove_folder(path) {
        tracing::warn!(path = %path.display(), %error, "a removed sandbox's folder stays until the next start");
    }
}

/// A disk that is let go by another thread.
#[derive(Debug)]
pub(crate) struct Deferred {
    /// `None` only while it is dropped.
    disk: Option<Disk>,
    queue: SyncSender<Rubbish>,
}

impl Deref for Deferred {
    type Target = Disk;

    fn deref(&self) -> &Disk {
        self.disk.as_ref().unwrap_or_else(|| unreachable!("a disk is there until it is dropped"))
    }
}

impl Drop for Deferred {
    fn drop(&mut self) {
        if let Some(disk) = self.disk.take() {
            // Where the trash is full or closed, it is let go here.
            drop(self.queue.try_send(Rubbish::Disk(disk)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Trash;

    #[test]
    fn what_is_thrown_away_is_gone_at_once_and_for_good() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(path("trash/left/by/another")).unwrap();
        let trash = Trash::open(path("trash")).unwrap();
        std::fs::create_dir_all(path("sandboxes/one/deep")).unwrap();
        trash.throw(&path("sandboxes/one")).unwrap();
        trash.throw(&path("sandboxes/one")).unwrap();
        assert!(!path("sandboxes/one").exists());
        trash.close();
        assert_eq!(std::fs::read_dir(path("trash")).unwrap().count(), 0);
        std::fs::create_dir_all(path("sandboxes/two")).unwrap();
        trash.throw(&path("sandboxes/two")).unwrap();
        assert_eq!(std::fs::read_dir(path("trash")).unwrap().count(), 0);
    }
}
