//! The journal of host side effects.
//!
//! A sandbox's row stands here before anything of it exists on the host, and goes after everything of it is gone; all
//! that is made for it (processes, cgroups, interface, addresses, rules, disk, logs) carries its id in its name. So
//! after a crash the set of rows is exactly what may exist, and whatever else bears our names can be removed.
//!
//! # Crash consistency
//! SQLite in WAL mode, `synchronous = NORMAL` ([`crate::ledger`]): a killed daemon loses nothing; a power cut may lose the last
//! rows, but it ends every sandbox too, which the boot id stored in each row tells.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{OptionalExtension, params};

use crate::ledger::Ledger;
use crate::limits::{ID_RANGE_FIRST, ID_RANGE_LENGTH, ID_RANGES_MAX};

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// SQLite failed.
    #[error("the journal of sandboxes cannot be read or written")]
    Database(#[source] rusqlite::Error),
    /// Every range of user ids is taken.
    #[error("all {ID_RANGES_MAX} ranges of user ids are taken; remove instances before starting new ones")]
    IdRangesExhausted,
    /// The kernel does not tell its boot id.
    #[error("the kernel's boot id cannot be read")]
    BootId(#[source] std::io::Error),
}

impl From<rusqlite::Error> for JournalError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

/// How far a sandbox has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxState {
    /// Being made: after a crash it is rolled back.
    Creating,
    /// Complete: after a crash it is adopted.
    Ready,
    /// Being taken away: after a crash the removal is finished.
    Removing,
}

impl SandboxState {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Removing => "removing",
        }
    }

    fn from_text(text: &str) -> Self {
        match text {
            "ready" => Self::Ready,
            "creating" => Self::Creating,
            _ => Self::Removing,
        }
    }
}

/// One sandbox, as the journal knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxRow {
    /// The sandbox's id.
    pub id: String,
    /// The UID of the pod it was made for.
    pub pod_uid: String,
    /// `namespace/name` of that pod, for messages.
    pub pod_name: String,
    /// The first host id of its range; 0 when it shares the host's user namespace.
    pub first_id: u32,
    /// How far it has come.
    pub state: SandboxState,
    /// Made since the machine started; otherwise only its files can be left.
    pub this_boot: bool,
}

/// What the UIDs of pods begin with that the container runtime interface makes. The API server's pods have UUIDs, so that
/// neither takes the other's for its own.
pub const CRI_UID_PREFIX: &str = "cri-";

impl SandboxRow {
    /// Whether it was made for no pod yet.
    pub(crate) fn is_nobodys(&self) -> bool {
        self.pod_uid.is_empty()
    }

    /// Whether it belongs to the container runtime interface.
    #[must_use]
    pub fn is_cri(&self) -> bool {
        self.pod_uid.starts_with(CRI_UID_PREFIX)
    }
}

/// The journal.
#[derive(Debug)]
pub struct Journal {
    ledger: Ledger,
    /// Taken ranges of ids, as the rows have them.
    slots: Mutex<BTreeSet<u32>>,
    boot_id: String,
}

impl Journal {
    /// Opens or makes the journal.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(JournalError::BootId)?;
        let ledger = Ledger::open(
            path,
            "CREATE TABLE IF NOT EXISTS sandboxes (
                 id TEXT PRIMARY KEY, pod_uid TEXT NOT NULL, pod_name TEXT NOT NULL,
                 id_slot INTEGER UNIQUE, state TEXT NOT NULL, boot_id TEXT NOT NULL) STRICT, WITHOUT ROWID;",
        )?;
        let slots = ledger.read(|database| {
            let mut taken = database.prepare("SELECT id_slot FROM sandboxes WHERE id_slot IS NOT NULL")?;
            taken.query_map([], |row| row.get(0))?.collect::<Result<BTreeSet<u32>, _>>()
        })?;
        Ok(Self { ledger, slots: Mutex::new(slots), boot_id: boot_id.trim().to_owned() })
    }

    /// Notes a sandbox that is about to be made, and gives it a range of ids unless it shares the host's.
    pub fn begin(&self, id: &str, pod_uid: &str, pod_name: &str, own_ids: bool) -> Result<SandboxRow, JournalError> {
        let slot = if own_ids { Some(self.take_slot()?) } else { None };
        let noted = self.ledger.write(|database| {
            let insert = "INSERT INTO sandboxes VALUES (?1, ?2, ?3, ?4, 'creating', ?5)";
            database.prepare_cached(insert)?.execute(params![id, pod_uid, pod_name, slot, self.boot_id])
        });
        if noted.is_err() {
            self.free_slot(slot);
        }
        noted?;
        Ok(SandboxRow {
            id: id.to_owned(),
            pod_uid: pod_uid.to_owned(),
            pod_name: pod_name.to_owned(),
            first_id: first_id(slot),
            state: SandboxState::Creating,
            this_boot: true,
        })
    }

    /// Notes that a sandbox is complete, and whose it is: one that was made beforehand was nobody's.
    pub fn complete(&self, id: &str, pod_uid: &str, pod_name: &str) -> Result<(), JournalError> {
        let update = "UPDATE sandboxes SET state = 'ready', pod_uid = ?2, pod_name = ?3 WHERE id = ?1";
        self.ledger.write(|database| database.prepare_cached(update)?.execute([id, pod_uid, pod_name]))?;
        Ok(())
    }

    /// Notes how far a sandbox has come.
    pub fn set_state(&self, id: &str, state: SandboxState) -> Result<(), JournalError> {
        let update = "UPDATE sandboxes SET state = ?2 WHERE id = ?1";
        self.ledger.write(|database| database.prepare_cached(update)?.execute([id, state.as_str()]))?;
        Ok(())
    }

    /// Forgets a sandbox of which nothing is left.
    pub fn end(&self, id: &str) -> Result<(), JournalError> {
        let slot: Option<Option<u32>> = self.ledger.write(|database| {
            let mut delete = database.prepare_cached("DELETE FROM sandboxes WHERE id = ?1 RETURNING id_slot")?;
            delete.query_row([id], |row| row.get(0)).optional()
        })?;
        self.free_slot(slot.flatten());
        Ok(())
    }

    /// Every sandbox that may have left something on the host.
    pub fn sandboxes(&self) -> Result<Vec<SandboxRow>, JournalError> {
        let rows = self.ledger.read(|database| {
            let all = "SELECT id, pod_uid, pod_name, id_slot, state, boot_id FROM sandboxes";
            let mut statement = database.prepare(all)?;
            let rows = statement.query_map([], |row| {
                let (state, boot_id): (String, String) = (row.get(4)?, row.get(5)?);
                Ok(SandboxRow {
                    id: row.get(0)?,
                    pod_uid: row.get(1)?,
                    pod_name: row.get(2)?,
                    first_id: first_id(row.get(3)?),
                    state: SandboxState::from_text(&state),
                    this_boot: boot_id == self.boot_id,
                })
            })?;
            rows.collect::<Result<_, rusqlite::Error>>()
        });
        Ok(rows?)
    }

    /// The lowest slot that nobody has.
    fn take_slot(&self) -> Result<u32, JournalError> {
        let mut slots = self.slots();
        let gap = slots.iter().zip(0..).find(|(taken, slot)| *taken != slot).map(|(_, slot)| slot);
        let free = gap.or_else(|| u32::try_from(slots.len()).ok()).filter(|slot| *slot < ID_RANGES_MAX);
        let slot = free.ok_or(JournalError::IdRangesExhausted)?;
        slots.insert(slot);
        Ok(slot)
    }

    fn free_slot(&self, slot: Option<u32>) {
        if let Some(slot) = slot {
            self.slots().remove(&slot);
        }
    }

    fn slots(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn first_id(slot: Option<u32>) -> u32 {
    slot.map_or(0, |slot| ID_RANGE_FIRST + slot * ID_RANGE_LENGTH)
}

#[cfg(test)]
mod tests {
    use super::{Journal, SandboxState};

    #[test]
    fn ranges_are_never_given_twice_and_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(&folder.path().join("journal.db")).unwrap();
        let first = journal.begin("a", "uid-a", "default/a", true).unwrap();
        let second = journal.begin("b", "uid-b", "default/b", true).unwrap();
        let host = journal.begin("c", "uid-c", "default/c", false).unwrap();
        assert_eq!(second.first_id - first.first_id, 65_536);
        assert_eq!(host.first_id, 0);
        journal.end("a").unwrap();
        assert_eq!(journal.begin("d", "uid-d", "default/d", true).unwrap().first_id, first.first_id);
        drop(journal);
        let journal = Journal::open(&folder.path().join("journal.db")).unwrap();
        let third = journal.begin("e", "uid-e", "default/e", true).unwrap();
        assert_eq!(third.first_id - second.first_id, 65_536, "what is taken stays taken");
    }

    #[test]
    fn what_began_is_still_there_after_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        let journal = Journal::open(&path).unwrap();
        journal.begin("a", "uid-a", "default/a", true).unwrap();
        journal.begin("b", "uid-b", "default/b", true).unwrap();
        journal.set_state("b", SandboxState::Ready).unwrap();
        drop(journal);
        let rows = Journal::open(&path).unwrap().sandboxes().unwrap();
        assert_eq!(rows.iter().map(|row| row.state).collect::<Vec<_>>(), [SandboxState::Creating, SandboxState::Ready]);
        assert!(rows.iter().all(|row| row.this_boot));
    }
}
