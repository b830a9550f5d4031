//! Seccomp profiles: the default one, compiled once for each set of capabilities, and those that people write (`local`).
//!
//! The rules are moby's (`table`); what is refused gets EPERM, as there, and what is newer than the table ENOSYS, so that C
//! libraries fall back. The program searches ranges of call numbers by bisection (`compile`): a handful of instructions a
//! call instead of a comparison with each of four hundred.

mod compile;
mod local;
mod others;
mod profile;
mod table;

pub use local::exercise;
pub(crate) use local::from_json;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::capabilities::Capabilities;

/// Compiled filters by set of capabilities; a service meets a handful.
#[derive(Debug, Default)]
pub struct FilterCache(Mutex<HashMap<Capabilities, Arc<[u8]>>>);

/// Sets kept; beyond it the cache starts anew.
const FILTERS_MAX: usize = 256;

impl FilterCache {
    /// The default profile's filter, eight bytes an instruction.
    #[must_use]
    pub fn default_filter(&self, capabilities: Capabilities) -> Arc<[u8]> {
        let mut filters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if filters.len() >= FILTERS_MAX && !filters.contains_key(&capabilities) {
            filters.clear();
        }
        let compile = || -> Arc<[u8]> {
            let program = compile::program(&profile::architectures(capabilities));
            program.into_iter().flat_map(|instruction| instruction.to_bytes()).collect()
        };
        Arc::clone(filters.entry(capabilities).or_insert_with(compile))
    }
}
