//! The SQLite file: tables, rows, and reading it all at open.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::error::StoreError;
use crate::limits::{REVISIONS_SKIPPED_AFTER_BOOT, WAL_BYTES_KEPT};
use crate::memory::{Contents, Remembered};
use crate::object::{Change, Key, Object};

const FORMAT: i64 = 1;

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS objects (
    resource TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    cluster INTEGER NOT NULL, revision INTEGER NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (resource, namespace, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS history (
    revision INTEGER PRIMARY KEY, kind INTEGER NOT NULL,
    resource TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, cluster INTEGER NOT NULL, value BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
";

/// Opens (or makes) the file and reads all of it.
pub(crate) fn open(path: &Path) -> Result<(Connection, Contents), StoreError> {
    let fail = |source| StoreError::Open { path: path.to_owned(), source };
    let mut connection = Connection::open(path).map_err(fail)?;
    prepare(&connection).map_err(fail)?;
    let format: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(fail)?;
    if format > FORMAT {
        return Err(StoreError::Format { found: format, known: FORMAT });
    }
    connection.execute_batch(TABLES).map_err(fail)?;
    connection.pragma_update(None, "user_version", FORMAT).map_err(fail)?;
    skip_after_boot(&mut connection).map_err(fail)?;
    let contents = read_all(&connection, path)?;
    Ok((connection, contents))
}

fn prepare(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.busy_timeout(std::time::Duration::from_secs(2))?;
    // The file belongs to one process; without the lock two services could share it and neither would see the other's writes.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "wal_autocheckpoint", 2000)?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(())
}

fn fact<T: rusqlite::types::FromSql>(connection: &Connection, name: &str) -> Result<Option<T>, rusqlite::Error> {
    connection.query_row("SELECT value FROM facts WHERE name = ?1", [name], |row| row.get(0)).optional()
}

fn set_fact(connection: &Connection, name: &str, value: impl rusqlite::ToSql) -> Result<(), rusqlite::Error> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO facts (name, value) VALUES (?1, ?2)")?
        .execute(params![name, value])
        .map(drop)
}

/// See the crate's head: a power failure may have taken commits whose revisions clients know.
fn skip_after_boot(connection: &mut Connection) -> Result<(), rusqlite::Error> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let known: Option<String> = fact(connection, "boot")?;
    if known.as_deref() == Some(boot.as_str()) {
        return Ok(());
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    let transaction = connection.transaction()?;
    let revision = current_revision(&transaction)?;
    // A new store begins at 1, because a client's "0" means "any revision".
    let next = if known.is_some() { revision.saturating_add(REVISIONS_SKIPPED_AFTER_BOOT) } else { 1 };
    transaction.execute("DELETE FROM history", [])?;
    set_fact(&transaction, "boot", boot)?;
    set_fact(&transaction, "revision", to_sql(next))?;
    set_fact(&transaction, "compacted", to_sql(next))?;
    transaction.commit()?;
    connection.pragma_update(None, "synchronous", "NORMAL")
}

fn current_revision(connection: &Connection) -> Result<u64, rusqlite::Error> {
    let base: i64 = fact(connection, "revision")?.unwrap_or(0);
    let history: Option<i64> = connection.query_row("SELECT max(revision) FROM history", [], |row| row.get(0))?;
    Ok(from_sql(base.max(history.unwrap_or(0))))
}

fn read_all(connection: &Connection, path: &Path) -> Result<Contents, StoreError> {
    let fail = |source| StoreError::Open { path: path.to_owned(), source };
    let compacted: i64 = fact(connection, "compacted").map_err(fail)?.unwrap_or(0);
    let mut contents = Contents::new(current_revision(connection).map_err(fail)?, from_sql(compacted));

    let mut select =
        connection.prepare("SELECT revision, resource, namespace, name, cluster, value FROM objects").map_err(fail)?;
    let mut rows = select.query([]).map_err(fail)?;
    while let Some(row) = rows.next().map_err(fail)? {
        let (key, revision, bytes) = read_row(row, 0).map_err(fail)?;
        contents.place(Arc::new(Object::parse(key, revision, &bytes)?));
    }

    let mut newest: HashMap<Key, u64> = HashMap::new();
    let mut select = connection
        .prepare("SELECT kind, revision, resource, namespace, name, cluster, value FROM history ORDER BY revision")
        .map_err(fail)?;
    let mut rows = select.query([]).map_err(fail)?;
    while let Some(row) = rows.next().map_err(fail)? {
        let kind = match row.get::<_, i64>(0).map_err(fail)? {
            0 => Change::Added,
            1 => Change::Modified,
            _ => Change::Deleted,
        };
        let (key, revision, bytes) = read_row(row, 1).map_err(fail)?;
        let previous = match kind {
            Change::Deleted => newest.remove(&key),
            _ => newest.insert(key.clone(), revision),
        };
        contents.remember(Remembered { kind, key, revision, previous, bytes, parsed: None });
    }
    Ok(contents)
}

fn read_row(row: &rusqlite::Row<'_>, first: usize) -> Result<(Key, u64, Arc<[u8]>), rusqlite::Error> {
    let namespace: String = row.get(first + 2)?;
    let cluster: bool = row.get(first + 4)?;
    let key =
        Key { resource: row.get(first + 1)?, namespace: (!cluster).then_some(namespace), name: row.get(first + 3)? };
    Ok((key, from_sql(row.get(first)?), Arc::from(row.get_ref(first + 5)?.as_blob()?)))
}

/// Writes one change into an open transaction. `bytes` is the value without its revision.
pub(crate) fn write_change(
    transaction: &Transaction<'_>,
    kind: Change,
    object: &Object,
    bytes: &[u8],
) -> Result<(), rusqlite::Error> {
    let key = &object.key;
    let namespace = key.namespace.as_deref().unwrap_or("");
    let cluster = key.namespace.is_none();
    let revision = to_sql(object.revision);
    if kind == Change::Deleted {
        transaction
            .prepare_cached("DELETE FROM objects WHERE resource = ?1 AND namespace = ?2 AND name = ?3")?
            .execute(params![key.resource, namespace, key.name])?;
    } else {
        transaction
            .prepare_cached(
                "INSERT OR REPLACE INTO objects (resource, namespace, name, cluster, revision, value) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![key.resource, namespace, key.name, cluster, revision, bytes])?;
    }
    let kind = match kind {
        Change::Added => 0,
        Change::Modified => 1,
        Change::Deleted => 2,
    };
    transaction
        .prepare_cached(
            "INSERT INTO history (revision, kind, resource, namespace, name, cluster, value) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![revision, kind, key.resource, namespace, key.name, cluster, bytes])
        .map(drop)
}

/// Removes history up to and including `revision`, remembering that revisions went that far.
pub(crate) fn compact(transaction: &Transaction<'_>, revision: u64) -> Result<(), rusqlite::Error> {
    transaction.prepare_cached("DELETE FROM history WHERE revision <= ?1")?.execute([to_sql(revision)])?;
    set_fact(transaction, "compacted", to_sql(revision))?;
    set_fact(transaction, "revision", to_sql(revision))
}

/// SQLite's integers are signed. 2^63 revisions at a million a second last 292,000 years.
fn to_sql(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn from_sql(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}
