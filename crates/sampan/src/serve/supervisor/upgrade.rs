//! The supervisor becomes the program that is installed now, without letting go of what it holds.
//!
//! It stops its children as at any stop and replaces itself (`execve(2)`): the process stays, and with it the agents that have
//! fallen to it and what a service manager knows of it. What it keeps for the daemon waits in a socket that goes along.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use sampan_sys::keeper::KeptDescriptors;
use sampan_sys::process::inherited_descriptor;
use sampan_sys::socket;

use super::Supervisor;
use crate::output;

/// Names the descriptor of the socket.
pub(super) const VARIABLE: &str = "SAMPAN_KEPT_DESCRIPTORS";

/// What the version before held; nothing where there was none.
pub(super) fn inherited() -> io::Result<KeptDescriptors> {
    let Some(number) = std::env::var_os(VARIABLE) else { return Ok(KeptDescriptors::default()) };
    let number = number.to_str().and_then(|number| number.parse().ok()).ok_or(io::ErrorKind::InvalidInput)?;
    KeptDescriptors::take_over(inherited_descriptor(number)?)
}

impl Supervisor {
    /// Comes back only where there is nothing to become; fails where it is too late to go on.
    pub(super) fn upgrade(&mut self) -> anyhow::Result<()> {
        let program = installed().context("serve: cannot tell which program this is")?;
        if let Err(error) = rustix::fs::access(&program, rustix::fs::Access::EXEC_OK) {
            output::note(&format!("cannot upgrade: {} cannot be run: {error}; going on as before", program.display()));
            return Ok(());
        }
        output::note(&format!("upgrading to what is at {} now", program.display()));
        self.stop()?;
        self.hear();
        let (ours, theirs) = socket::pair().context("serve: cannot make a pair of sockets")?;
        self.kept.hand_down(ours.as_fd()).context("serve: cannot hand down what the daemon has left")?;
        rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty())?;
        let mut command = Command::new(&program);
        command.args(std::env::args_os().skip(1)).env(VARIABLE, theirs.as_raw_fd().to_string());
        let failed = command.exec();
        Err(failed).with_context(|| format!("serve: cannot become {}", program.display()))
    }
}

/// Where this program was started from. The kernel marks the path of a file that was replaced.
fn installed() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let bytes = path.as_os_str().as_bytes();
    Ok(OsString::from_vec(bytes.strip_suffix(b" (deleted)").unwrap_or(bytes).to_vec()).into())
}
