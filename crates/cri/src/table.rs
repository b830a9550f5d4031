//! The table of pods and containers that the interface speaks of.
//!
//! Beside the runtime's journal, which knows what exists on the host: a pod stands here once its sandbox is complete, and
//! stays after that is gone, until it is removed. A sandbox that the journal knows and this table does not is one whose
//! caller never heard of it, and is taken away at the next start.
//!
//! # Crash consistency
//! SQLite in WAL mode, `synchronous = NORMAL`, as the journal: a killed daemon loses nothing; after a power cut the last
//! rows may be missing, and with them their sandboxes.

use std::path::Path;

use prost::Message;
use rusqlite::params;
use sampan_runtime::ledger::Ledger;

use crate::records::{ContainerRecord, PodRecord};

/// Why the table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// SQLite failed.
    #[error("the table of pods and containers cannot be read or written")]
    Database(#[from] rusqlite::Error),
    /// A row is not a record.
    #[error("the table of pods and containers is damaged; stop all pods of this node and remove its file")]
    Damaged(#[from] prost::DecodeError),
}

/// The table. A write takes some 50 µs, so callers make it inline.
#[derive(Debug)]
pub(crate) struct Table {
    ledger: Ledger,
}

impl Table {
    /// Opens or makes it.
    pub(crate) fn open(path: &Path) -> Result<Self, TableError> {
        let ledger = Ledger::open(
            path,
            "CREATE TABLE IF NOT EXISTS pods (id TEXT PRIMARY KEY, record BLOB NOT NULL) STRICT, WITHOUT ROWID;
             CREATE TABLE IF NOT EXISTS containers (id TEXT PRIMARY KEY, pod_id TEXT NOT NULL, record BLOB NOT NULL)
                 STRICT, WITHOUT ROWID;
             CREATE INDEX IF NOT EXISTS containers_by_pod ON containers (pod_id);",
        )?;
        Ok(Self { ledger })
    }

    /// Writes a pod.
    pub(crate) fn put_pod(&self, record: &PodRecord) -> Result<(), TableError> {
        let (insert, blob) = ("INSERT OR REPLACE INTO pods VALUES (?1, ?2)", record.encode_to_vec());
        self.ledger.write(|database| database.prepare_cached(insert)?.execute(params![record.id, blob]))?;
        Ok(())
    }

    /// Writes a container.
    pub(crate) fn put_container(&self, record: &ContainerRecord) -> Result<(), TableError> {
        let (insert, blob) = ("INSERT OR REPLACE INTO containers VALUES (?1, ?2, ?3)", record.encode_to_vec());
        self.ledger
            .write(|database| database.prepare_cached(insert)?.execute(params![record.id, record.pod_id, blob]))?;
        Ok(())
    }

    /// Forgets a pod with its containers.
    pub(crate) fn remove_pod(&self, id: &str) -> Result<(), TableError> {
        self.ledger.write(|database| {
            let transaction = database.transaction()?;
            transaction.prepare_cached("DELETE FROM containers WHERE pod_id = ?1")?.execute([id])?;
            transaction.prepare_cached("DELETE FROM pods WHERE id = ?1")?.execute([id])?;
            transaction.commit()
        })?;
        Ok(())
    }

    /// Forgets a container.
    pub(crate) fn remove_container(&self, id: &str) -> Result<(), TableError> {
        let delete = "DELETE FROM containers WHERE id = ?1";
        self.ledger.write(|database| database.prepare_cached(delete)?.execute([id]))?;
        Ok(())
    }

    /// Everything.
    pub(crate) fn load(&self) -> Result<(Vec<PodRecord>, Vec<ContainerRecord>), TableError> {
        let blobs = |query: &str| {
            self.ledger.read(|database| {
                let mut statement = database.prepare(query)?;
                let rows = statement.query_map([], |row| row.get(0))?;
                rows.collect::<Result<Vec<Vec<u8>>, rusqlite::Error>>()
            })
        };
        let (pods, containers) = (blobs("SELECT record FROM pods")?, blobs("SELECT record FROM containers")?);
        Ok((
            pods.iter().map(|blob| PodRecord::decode(blob.as_slice())).collect::<Result<_, _>>()?,
            containers.iter().map(|blob| ContainerRecord::decode(blob.as_slice())).collect::<Result<_, _>>()?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_goes_with_its_containers_and_the_rest_survives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cri.db");
        let table = Table::open(&path).unwrap();
        for id in ["a", "b"] {
            table.put_pod(&PodRecord { id: id.to_owned(), ready: true, ..PodRecord::default() }).unwrap();
            let container = ContainerRecord { id: format!("{id}1"), pod_id: id.to_owned(), ..Default::default() };
            table.put_container(&container).unwrap();
        }
        table.put_pod(&PodRecord { id: "b".to_owned(), ready: false, ..PodRecord::default() }).unwrap();
        table.remove_pod("a").unwrap();
        drop(table);
        let (pods, containers) = Table::open(&path).unwrap().load().unwrap();
        assert_eq!(pods.iter().map(|pod| (pod.id.as_str(), pod.ready)).collect::<Vec<_>>(), [("b", false)]);
        assert_eq!(containers.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["b1"]);
    }
}
