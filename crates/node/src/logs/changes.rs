//! Who follows a log hears of its growth from one inotify instance, which all followers share.
//!
//! One of its own would be simpler, but the kernel ends an instance with watches only after a grace period (15 ms and more, in
//! which the thread that closes it stands still), and gives a user no more than 128 of them.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::inotify;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{OnceCell, watch};
use tokio::task::JoinHandle;

use crate::limits::LOG_CHANGES_BYTES;

/// More of a file, or another in its place.
const CHANGES: inotify::WatchFlags = inotify::WatchFlags::MODIFY.union(inotify::WatchFlags::MOVE_SELF);

/// Tells followers of files that change. Costs nothing until the first one asks.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    listening: OnceCell<Listening>,
}

#[derive(Debug)]
struct Listening {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
struct Shared {
    /// Read like a pipe.
    inotify: Receiver,
    /// By the kernel's number, which is the same for all who watch one file.
    files: Mutex<HashMap<i32, watch::Sender<()>>>,
}

/// One file, watched by one follower.
#[derive(Debug)]
pub(crate) struct Watch {
    shared: Arc<Shared>,
    number: i32,
    /// `None` only while it is dropped.
    changed: Option<watch::Receiver<()>>,
}

impl Changes {
    /// Watches `path` from now on.
    pub(crate) async fn watch(&self, path: &Path) -> io::Result<Watch> {
        let begin = || async {
            let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            let shared =
                Arc::new(Shared { inotify: Receiver::from_owned_fd_unchecked(inotify)?, files: Mutex::default() });
            let task = tokio::spawn(listen(Arc::clone(&shared)));
            Ok::<_, io::Error>(Listening { shared, task })
        };
        let Listening { shared, .. } = self.listening.get_or_try_init(begin).await?;
        let mut files = shared.lock();
        let number = inotify::add_watch(&shared.inotify, path, CHANGES)?;
        let changed = files.entry(number).or_insert_with(|| watch::Sender::new(())).subscribe();
        Ok(Watch { shared: Arc::clone(shared), number, changed: Some(changed) })
    }
}

impl Watch {
    /// Waits for a change since the last one that was waited for.
    pub(crate) async fn changed(&mut self) {
        let told = match &mut self.changed {
            Some(changed) => changed.changed().await.is_ok(),
            None => false,
        };
        if !told {
            std::future::pending().await
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut files = self.shared.lock();
        self.changed = None;
        if files.get(&self.number).is_some_and(|sender| sender.receiver_count() == 0) {
            files.remove(&self.number);
            // One whose file is gone is gone too.
            inotify::remove_watch(&self.shared.inotify, self.number).ok();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<i32, watch::Sender<()>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: Event) {
        let files = self.lock();
        if event.flags.contains(inotify::ReadFlags::QUEUE_OVERFLOW) {
            files.values().for_each(|sender| sender.send_replace(()));
        } else if let Some(sender) = files.get(&event.number) {
            sender.send_replace(());
        }
    }

    async fn hear(&self) -> io::Result<()> {
        self.inotify.readable().await?;
        let mut events = [0; LOG_CHANGES_BYTES];
        match self.inotify.try_read(&mut events) {
            Ok(read) => {
                let mut rest = events.get(..read).unwrap_or_default();
                while let Some((event, after)) = Event::split(rest) {
                    self.tell(event);
                    rest = after;
                }
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// What the kernel tells: `struct inotify_event`, whose name is empty where a file is watched.
struct Event {
    number: i32,
    flags: inotify::ReadFlags,
}

impl Event {
    fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (number, rest) = bytes.split_first_chunk()?;
        let (flags, rest) = rest.split_first_chunk()?;
        let (_cookie, rest) = rest.split_first_chunk::<4>()?;
        let (name, rest) = rest.split_first_chunk()?;
        let rest = rest.get(usize::try_from(u32::from_ne_bytes(*name)).ok()?..)?;
        let flags = inotify::ReadFlags::from_bits_retain(u32::from_ne_bytes(*flags));
        Some((Self { number: i32::from_ne_bytes(*number), flags }, rest))
    }
}

async fn listen(shared: Arc<Shared>) {
    loop {
        if let Err(error) = shared.hear().await {
            tracing::error!(%error, "who follows a log hears of nothing any more but its end; restart the service");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::Changes;

    const SOON: Duration = Duration::from_secs(10);
    const NEVER: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn each_follower_hears_of_its_own_file() {
        let (mut one, other) = (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
        let changes = Changes::default();
        let mut first = changes.watch(one.path()).await.unwrap();
        let mut second = changes.watch(one.path()).await.unwrap();
        let mut strange = changes.watch(other.path()).await.unwrap();
        one.write_all(b"more").unwrap();
        timeout(SOON, first.changed()).await.unwrap();
        timeout(SOON, second.changed()).await.unwrap();
        timeout(NEVER, strange.changed()).await.unwrap_err();
        drop(first);
        one.write_all(b"and more").unwrap();
        timeout(SOON, second.changed()).await.unwrap();
        drop(second);
        let mut again = changes.watch(one.path()).await.unwrap();
        timeout(NEVER, again.changed()).await.unwrap_err();
        std::fs::rename(one.path(), one.path().with_extension("moved")).unwrap();
        timeout(SOON, again.changed()).await.unwrap();
        std::fs::remove_file(one.path().with_extension("moved")).unwrap();
        drop((again, strange));
        assert!(changes.listening.get().unwrap().shared.lock().is_empty());
    }
}
