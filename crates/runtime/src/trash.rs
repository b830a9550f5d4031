//! Folders on their way out.
//!
//! Giving a disk image's blocks back takes milliseconds, and a hundred of them where the host's file system discards them on
//! its disk at once. Nobody has to wait for that: a folder is renamed into the trash, from where one thread deletes it. What
//! a killed daemon leaves there, the next one deletes first.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::limits::TRASH_QUEUED_MAX;
use crate::runtime::remove_folder;

/// The trash of one service.
#[derive(Debug)]
pub(crate) struct Trash {
    folder: PathBuf,
    thread: Mutex<Option<(SyncSender<PathBuf>, JoinHandle<()>)>>,
}

impl Trash {
    /// Takes over `folder`, which is made when it is missing, with whatever is in it.
    pub(crate) fn open(folder: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let left = std::fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
        let (queue, thrown) = sync_channel::<PathBuf>(TRASH_QUEUED_MAX);
        let thread = std::thread::Builder::new().name("trash".to_owned()).spawn(move || {
            for path in left.into_iter().chain(thrown) {
                if let Err(error) = remove_folder(&path) {
                    tracing::warn!(path = %path.display(), %error, "a removed sandbox's folder stays until the next start");
                }
            }
        })?;
        Ok(Self { folder, thread: Mutex::new(Some((queue, thread))) })
    }

    /// Removes a folder: at once from where it was, a moment later from the disk. One that is not there is removed already.
    pub(crate) fn throw(&self, folder: &Path) -> io::Result<()> {
        let Some(name) = folder.file_name() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let thrown = self.folder.join(name);
        match std::fs::rename(folder, &thrown) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result?,
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        match thread.as_ref().map(|(queue, _)| queue.try_send(thrown.clone())) {
            Some(Ok(())) => Ok(()),
            // More is thrown away than can be deleted: then whoever does has to wait.
            Some(Err(TrySendError::Full(_) | TrySendError::Disconnected(_))) | None => remove_folder(&thrown),
        }
    }

    /// Waits until it is empty; what is thrown later is deleted at once.
    pub(crate) fn close(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((queue, thread)) = thread {
            drop(queue);
            // That it panicked leaves work for the next start.
            thread.join().ok();
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
