//! The service: a supervisor, the zygote it keeps alive, and the daemon that does everything else.
//!
//! ```text
//! sampan serve ── supervisor (one thread; restarts the others)
//!                  ├── sampan internal zygote   (one thread; clones the agents of pods)
//!                  └── sampan internal daemon   (API server, scheduler, node, image store)
//! ```

mod cri;
mod daemon;
mod supervisor;
mod zygote;

use std::os::fd::OwnedFd;

use anyhow::Context as _;

use crate::cli::serve::{InternalArgs, Role, ServeArgs};

pub(crate) use zygote::run as run_zygote;

/// Runs the service in the foreground until it is told to stop.
pub(crate) fn run(args: ServeArgs) -> anyhow::Result<()> {
    supervisor::run(&args)
}

/// Runs one of the supervisor's children, but for the zygote ([`run_zygote`]).
pub(crate) fn internal(args: InternalArgs) -> anyhow::Result<()> {
    take_own_signals();
    match args.role {
        Role::Daemon => daemon::run(&args),
    }
}

/// The supervisor takes its signals from a descriptor and has them blocked, which its children inherit.
fn take_own_signals() {
    sampan_sys::process::reset_signals();
    sampan_sys::process::ignore_signal(rustix::process::Signal::PIPE.as_raw());
}

/// The descriptor that the supervisor handed down under a name.
fn descriptor(descriptors: &[String], name: &str) -> anyhow::Result<OwnedFd> {
    let number = descriptors.iter().find_map(|given| given.strip_prefix(name)?.strip_prefix('=')?.parse().ok());
    let number =
        number.with_context(|| format!("descriptor {name} was not handed down; start `sampan serve` instead"))?;
    sampan_sys::process::inherited_descriptor(number)
        .with_context(|| format!("descriptor {name} cannot be taken over; start `sampan serve` instead"))
}
