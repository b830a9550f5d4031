//! Long logs are cut while they are written; nothing waits for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use sampan_kit::error_chain::ErrorChain;
use sampan_runtime::pod::Pod;

use super::{Held, Message, Worker, tell};
use crate::logs::pieces;

impl Worker {
    /// Looks at the logs of running containers, and cuts those that are long.
    pub(super) fn rotate_logs(&mut self) {
        let Held::Ready(pod) = &self.held else { return };
        for slot in self.lifecycle.slots.iter().filter(|slot| slot.is_running()) {
            let path = pod.log_path(&slot.name, slot.restarts);
            if self.rotating.contains(&slot.name) || !pieces::is_due(&path) {
                continue;
            }
            self.rotating.insert(slot.name.clone());
            let (pod, sender, name) = (Arc::clone(pod), self.sender.clone(), slot.name.clone());
            tokio::spawn(async move {
                rotate(&pod, &name, path).await;
                tell(&sender, Message::Rotated(name)).await;
            });
        }
    }
}

async fn rotate(pod: &Pod, container: &str, path: PathBuf) {
    // One that has ended in the meantime writes no more, and its log stays as it is.
    if let Err(error) = pod.reopen_log(container, &pieces::next(&path)).await {
        tracing::debug!(sandbox = pod.id(), container, error = %ErrorChain(&error), "a log cannot be cut now");
        remove_empty(&pieces::next(&path));
        return;
    }
    let cut = tokio::task::spawn_blocking(move || pieces::cut(&path, Timestamp::now())).await;
    if let Err(error) = cut.unwrap_or_else(|panic| Err(std::io::Error::other(panic))) {
        tracing::warn!(sandbox = pod.id(), container, %error, "a log is not wholly put aside; trying again");
    }
}

/// A file that nobody writes to would be taken for the log's end.
fn remove_empty(path: &Path) {
    if std::fs::metadata(path).is_ok_and(|file| file.len() == 0)
        && let Err(error) = std::fs::remove_file(path)
    {
        tracing::debug!(path = %path.display(), %error, "an empty log stays behind");
    }
}
