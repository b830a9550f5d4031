//! A terminal of one's own with a command on it: keys go in, the screen's text comes out, its size can change.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::process::{Child, Command};

use anyhow::{Context, Result};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::process::{Collector, code, wait, words};
use super::wait::DEADLINE;

/// Columns and rows.
pub type Size = (u16, u16);

/// A command on a terminal.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    child: Child,
    words: String,
    /// Everything that was shown.
    pub screen: Collector,
}

impl Terminal {
    pub(super) fn spawn(command: &Command, size: Size) -> Result<Self> {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).context("open a terminal")?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let side = OpenOptions::new().read(true).write(true).open(name.to_str()?).context("open a terminal")?;
        tcsetwinsize(&master, winsize(size))?;
        // setsid(1) makes it the leader of a session that has this terminal.
        let mut leader = Command::new("setsid");
        leader.arg("--ctty").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => leader.env(name, value),
                None => leader.env_remove(name),
            };
        }
        leader.env("TERM", "xterm").stdin(side.try_clone()?).stdout(side.try_clone()?).stderr(side);
        let child = leader.spawn().context("start setsid")?;
        drop(leader);
        let master = File::from(master);
        let screen = Collector::of(master.try_clone()?);
        Ok(Self { master, child, words: words(command), screen })
    }

    /// Types.
    pub fn keys(&mut self, keys: &[u8]) -> Result<()> {
        self.master.write_all(keys).context("type on the terminal")
    }

    /// Changes the window's size.
    pub fn resize(&self, size: Size) -> Result<()> {
        tcsetwinsize(&self.master, winsize(size)).context("resize the terminal")
    }

    /// Waits for its end; gives its exit code.
    pub fn finish(mut self) -> Result<i32> {
        let status = wait(&mut self.child, DEADLINE).with_context(|| {
            format!("`{}` does not end; it shows {:?}", self.words, String::from_utf8_lossy(&self.screen.so_far()))
        })?;
        Ok(code(status))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

const fn winsize((columns, rows): Size) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
