//! What is known of a sandbox's plugins, on disk: written before the first of them runs, removed after the last is undone.
//!
//! The chain is kept as it was: what has been made by it is taken away by it, whatever the administrator has written since.
//! Records outlive the boot, because plugins' own records do (addresses that `host-local` gave out).
//!
//! Beside a record lies the file that its plugins read their standard input from. Every running plugin holds a lock on it,
//! so that one that outlived the daemon is waited for before anything is undone.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::CniError;
use crate::config::check_sandbox;
use crate::leases::{make_dir, write_whole};
use crate::limits::CNI_PLUGIN_DEADLINE;

/// One sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) sandbox: String,
    /// The chain's text.
    pub(crate) chain: String,
    /// `CNI_ARGS`.
    pub(crate) arguments: String,
    /// `runtimeConfig`, for those who can use it.
    pub(crate) wishes: Map<String, Value>,
    /// What the chain came to; absent until it has.
    pub(crate) result: Option<Value>,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Records {
    folder: PathBuf,
}

impl Records {
    pub(crate) fn open(folder: &Path) -> Result<Self, CniError> {
        make_dir(folder).map_err(CniError::record)?;
        Ok(Self { folder: folder.to_owned() })
    }

    pub(crate) fn write(&self, record: &Record) -> Result<(), CniError> {
        let text =
            serde_json::to_vec(record).map_err(io::Error::from).map_err(|source| self.failed("write", source))?;
        write_whole(&self.folder, &format!("{}.json", record.sandbox), &text).map_err(CniError::record)
    }

    pub(crate) fn remove(&self, sandbox: &str) -> Result<(), CniError> {
        for kind in ["input", "json"] {
            match fs::remove_file(self.path(sandbox, kind)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.failed("remove", error)),
                _ => {}
            }
        }
        Ok(())
    }

    pub(crate) fn get(&self, sandbox: &str) -> Result<Option<Record>, CniError> {
        match fs::read(self.path(sandbox, "json")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed("read", error)),
            // Half a record cannot be: it is renamed into place. What is none is left for a person to look at.
            Ok(bytes) => match serde_json::from_slice::<Record>(&bytes) {
                Ok(record) if record.sandbox == sandbox => Ok(Some(record)),
                Ok(_other) => Err(self.failed("read", io::Error::other("it belongs to another sandbox"))),
                Err(error) => Err(self.failed("read", error.into())),
            },
        }
    }

    /// By sandbox.
    pub(crate) fn all(&self) -> Result<BTreeMap<String, Record>, CniError> {
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(&self.folder).map_err(|source| self.failed("list", source))? {
            let name = entry.map_err(|source| self.failed("list", source))?.file_name();
            let Some(sandbox) = name.to_str().and_then(|name| name.strip_suffix(".json")) else { continue };
            if check_sandbox(sandbox).is_ok()
                && let Some(record) = self.get(sandbox)?
            {
                records.insert(sandbox.to_owned(), record);
            }
        }
        Ok(records)
    }

    /// A plugin's standard input. As long as it, or a copy, is open, [`Self::wait_for_plugins`] waits.
    pub(crate) fn input(&self, sandbox: &str, bytes: &[u8]) -> Result<fs::File, CniError> {
        let write = || {
            let mut options = fs::File::options();
            let mut file =
                options.read(true).write(true).create(true).truncate(true).open(self.path(sandbox, "input"))?;
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared)?;
            file.write_all(bytes)?;
            file.rewind()?;
            Ok(file)
        };
        write().map_err(|source| self.failed("write", source))
    }

    /// Waits for plugins that an earlier daemon has started.
    pub(crate) fn wait_for_plugins(&self, sandbox: &str) -> Result<(), CniError> {
        const PAUSE: Duration = Duration::from_millis(10);
        let file = match fs::File::open(self.path(sandbox, "input")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file.map_err(|source| self.failed("read", source))?,
        };
        let begun = Instant::now();
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(()),
                Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < CNI_PLUGIN_DEADLINE => {
                    std::thread::sleep(PAUSE)
                }
                Err(error) => return Err(self.failed("wait for the plugins of", error.into())),
            }
        }
    }

    fn path(&self, sandbox: &str, kind: &str) -> PathBuf {
        self.folder.join(format!("{sandbox}.{kind}"))
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> CniError {
        CniError::Record { operation, folder: self.folder.clone(), source }
    }
}
