//! What containers do: they number their lines, and end with a code that is known before.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::storm::chance::Chance;

/// Where a container finds the folder that it shares with the storm.
pub(super) const SHARED: &str = "/shared";
/// What makes all leave that may.
pub(super) const LEAVE: &str = "leave";

/// A program for a shell.
#[derive(Debug, Clone)]
pub(super) struct Script {
    pub(super) text: String,
    pub(super) code: i32,
    /// How many lines it writes, where that is known before.
    pub(super) lines: Option<u64>,
}

impl Script {
    /// Ends by itself, soon.
    pub(super) fn short(chance: &mut Chance) -> Self {
        let (lines, code) = (chance.below(200), i32::try_from(chance.below(120)).unwrap_or_default());
        let pause = chance.below(300);
        let text = format!(
            "n=0; while [ $n -lt {lines} ]; do echo line $n; n=$((n + 1)); done; sleep 0.{pause:03}; exit {code}"
        );
        Self { text, code, lines: Some(lines) }
    }

    /// Goes on until it is told to stop.
    pub(super) fn endless() -> Self {
        let text = "n=0; while true; do echo line $n; n=$((n + 1)); sleep 0.05; done".to_owned();
        Self { text, code: 137, lines: None }
    }

    /// Goes on until TERM, or until all leave; then leaves how many lines it wrote in the shared folder.
    pub(super) fn witness(name: &str, code: i32, pause: Duration, leaves: bool) -> Self {
        let leave = if leaves { format!(" || [ -e {SHARED}/{LEAVE} ]") } else { String::new() };
        let text = format!(
            "trap stop=1 TERM; n=0; until [ -n \"$stop\" ]{leave}; do echo line $n; n=$((n + 1)); sleep {:.3}; done; \
             echo $n > {SHARED}/{name}; exit {code}",
            pause.as_secs_f64()
        );
        Self { text, code, lines: None }
    }

    /// The command.
    pub(super) fn command(&self) -> [&str; 3] {
        ["/bin/sh", "-c", &self.text]
    }

    /// Insists that a log is whole: every line from the first to the last, each once.
    pub(super) fn wrote(&self, log: &str) -> Result<()> {
        let count = numbered(log)?;
        ensure!(self.lines.is_none_or(|lines| lines == count), "{count} lines of {:?} are in the log", self.lines);
        Ok(())
    }
}

/// How many lines a log has, all of which must be `line 0`, `line 1` and so on.
pub(super) fn numbered(log: &str) -> Result<u64> {
    let mut count = 0;
    for line in log.lines() {
        ensure!(line == format!("line {count}"), "after {count} lines the log says {line:?}");
        count += 1;
    }
    Ok(count)
}

/// The text of a log as the container runtime interface has it written: time, stream, whole or part, text.
pub(super) fn text_of(path: &Path) -> Result<String> {
    let log = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let texts =
        log.lines().map(|line| line.splitn(4, ' ').nth(3).with_context(|| format!("a line of a log: {line:?}")));
    Ok(texts.collect::<Result<Vec<_>>>()?.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_and_a_line_said_twice_are_seen() {
        assert_eq!(numbered("line 0\nline 1\n").unwrap(), 2);
        assert!(numbered("line 0\nline 2\n").is_err());
        assert!(numbered("line 0\nline 0\n").is_err());
        let script = Script { text: String::new(), code: 0, lines: Some(2) };
        assert!(script.wrote("line 0\n").is_err());
        assert!(script.wrote("line 0\nline 1").is_ok());
    }
}
