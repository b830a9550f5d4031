//! The zygote's process: nothing but the sandbox room's own loop.

use anyhow::Context as _;
use rustix::process::{Signal, set_parent_process_death_signal};

use super::descriptor;
use crate::cli::serve::InternalArgs;

/// Serves until the supervisor dies; then a new supervisor makes a new zygote, and agents go on without either.
pub(crate) fn run(args: &InternalArgs) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("the zygote cannot be bound to its supervisor")?;
    let listener = descriptor(args, "zygote")?;
    match sampan_sandbox::serve_zygote(listener).context("the zygote cannot go on")? {}
}
