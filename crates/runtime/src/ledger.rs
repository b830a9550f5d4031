//! A small SQLite database whose writers do not wait for the disk.
//!
//! In WAL mode a write is an append to a log in the page cache (`synchronous = NORMAL`). Now and then the log is carried into
//! the database, which waits for the disk twice, and behind whatever else is on its way there. SQLite has the writer do that
//! who happens to come; here it is a thread with a connection of its own. Only a log that has grown very long is carried over
//! by a writer after all.
//!
//! # Crash consistency
//! That of SQLite: a log that nobody has carried over is found by the next who opens the database.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

use crate::limits::{LEDGER_LOG_PAGES_MAX, LEDGER_WRITES_A_CHECKPOINT};

/// The database.
#[derive(Debug)]
pub struct Ledger {
    connection: Mutex<Connection>,
    /// Since the last checkpoint was asked for.
    written: AtomicU32,
    due: SyncSender<()>,
}

impl Ledger {
    /// Opens the database, or makes it; `schema` is run each time.
    pub fn open(path: &Path, schema: &str) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.execute_batch(schema)?;
        let (due, asked) = sync_channel(1);
        let checkpoints = path.to_owned();
        let thread = std::thread::Builder::new().name("checkpoints".to_owned());
        match thread.spawn(move || carry_over(&checkpoints, &asked)) {
            Ok(_) => connection.pragma_update(None, "wal_autocheckpoint", LEDGER_LOG_PAGES_MAX)?,
            Err(error) => tracing::warn!(%error, "writers of a database carry its log over themselves"),
        }
        Ok(Self { connection: Mutex::new(connection), written: AtomicU32::new(0), due })
    }

    /// Looks into it.
    pub fn read<T>(&self, look: impl FnOnce(&Connection) -> T) -> T {
        look(&self.lock())
    }

    /// Changes it. That takes some 50 µs, so callers do it inline.
    pub fn write<T>(&self, change: impl FnOnce(&mut Connection) -> T) -> T {
        let changed = change(&mut self.lock());
        if self.written.fetch_add(1, Ordering::Relaxed) >= LEDGER_WRITES_A_CHECKPOINT {
            self.written.store(0, Ordering::Relaxed);
            // One that is asked for already comes soon enough.
            self.due.try_send(()).ok();
        }
        changed
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes checkpoints as they are asked for, until nobody can ask any more. Writers go on meanwhile.
fn carry_over(path: &Path, asked: &Receiver<()>) {
    let mut kept = None;
    while asked.recv().is_ok() {
        let connection = match kept.take() {
            Some(connection) => Ok(connection),
            None => Connection::open(path),
        };
        let carried = connection.and_then(|connection| {
            connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_row| Ok(()))?;
            Ok(connection)
        });
        match carried {
            Ok(connection) => kept = Some(connection),
            Err(error) => tracing::warn!(path = %path.display(), %error, "a database's log grows; trying again later"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_carried_over_while_others_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.db");
        let ledger = Ledger::open(&path, "CREATE TABLE IF NOT EXISTS notes (number INTEGER PRIMARY KEY)").unwrap();
        let in_database = |number: u32| {
            // Without the log: what is in the file itself.
            let copy = folder.path().join("copy.db");
            std::fs::copy(&path, &copy).unwrap();
            let count =
                |copy: Connection| copy.query_row("SELECT max(number) FROM notes", [], |row| row.get::<_, u32>(0));
            Connection::open(&copy).and_then(count).is_ok_and(|found| found >= number)
        };
        let mut number = 0;
        while !in_database(LEDGER_WRITES_A_CHECKPOINT / 2) {
            number += 1;
            assert!(number < 100 * LEDGER_WRITES_A_CHECKPOINT, "no checkpoint was made");
            ledger.write(|database| database.execute("INSERT INTO notes VALUES (?1)", [number])).unwrap();
        }
        let all: u32 =
            ledger.read(|database| database.query_row("SELECT count(*) FROM notes", [], |row| row.get(0))).unwrap();
        assert_eq!(all, number);
        drop(ledger);
        let again = Ledger::open(&path, "CREATE TABLE IF NOT EXISTS notes (number INTEGER PRIMARY KEY)").unwrap();
        let found: u32 =
            again.read(|database| database.query_row("SELECT count(*) FROM notes", [], |row| row.get(0))).unwrap();
        assert_eq!(found, number);
    }
}
