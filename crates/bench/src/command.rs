//! Commands with a clock and a deadline: how long one took, or how long until it had said something.
//!
//! What is measured ends early when the user interrupts it; what prepares or cleans ([`must`]) does not.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::interrupt::{self, Interrupted};

/// Nothing takes as long, not a large image on a slow link, nor converting it; who does hangs.
const DEADLINE: Duration = Duration::from_secs(1800);

/// Whether a signal of the user's ends the waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Interruptible,
    ToTheEnd,
}

/// Runs a command to its end and gives the time it took. Its output is shown only when it fails.
pub(crate) fn time(command: &mut Command) -> Result<Duration> {
    run(command, Waiting::Interruptible)
}

/// Runs a command that prepares or cleans something, and insists on its success.
pub(crate) fn must(command: &mut Command) -> Result<()> {
    run(command, Waiting::ToTheEnd).map(drop)
}

fn run(command: &mut Command, waiting: Waiting) -> Result<Duration> {
    let mut output = tempfile::tempfile()?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?);
    let begin = Instant::now();
    let mut child = spawn(command)?;
    wait_for_end(&mut child, begin, waiting)?;
    let taken = begin.elapsed();
    let status = child.wait()?;
    ensure!(status.success(), "{} fails ({status}): {}", describe(command), text(&mut output)?);
    Ok(taken)
}

/// Runs commands one after the other and gives the time until the last one has written `line` to its output.
pub(crate) fn time_until_line(commands: &mut [Command], line: &str) -> Result<Duration> {
    let (last, before) = commands.split_last_mut().context("there is nothing to run")?;
    let begin = Instant::now();
    for command in before {
        time(command)?;
    }
    let before = begin.elapsed();
    Ok(before + time_until(last, |said| said.lines().any(|word| word.trim() == line), || ())?)
}

/// Gives the time until what a command has written is `enough`, and calls `at_once` then; the command must still end well.
pub(crate) fn time_until(
    command: &mut Command,
    enough: impl Fn(&str) -> bool,
    at_once: impl FnOnce(),
) -> Result<Duration> {
    let mut errors = tempfile::tempfile()?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors.try_clone()?);
    let begin = Instant::now();
    let mut child = spawn(command)?;
    let mut output = child.stdout.take().context("the output is a pipe")?;
    let mut said = Vec::new();
    let found = read_until(&mut output, &mut said, &enough, begin);
    let taken = begin.elapsed();
    at_once();
    if found.is_err() {
        child.kill()?;
    }
    // What it says after that is not needed, but it must not wait for a reader.
    std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
    let ended = wait_for_end(&mut child, begin, Waiting::Interruptible);
    let status = child.wait()?;
    let found = found?;
    ended?;
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(found && status.success(), "{} fails ({status}): {said} {}", describe(command), text(&mut errors)?);
    Ok(taken)
}

/// Whether there was `enough` before the output's end.
fn read_until(
    output: &mut (impl Read + AsFd),
    said: &mut Vec<u8>,
    enough: &impl Fn(&str) -> bool,
    begin: Instant,
) -> Result<bool> {
    let mut buffer = [0; 4096];
    loop {
        wait_until_readable(output.as_fd(), begin, Waiting::Interruptible)?;
        let length = output.read(&mut buffer)?;
        said.extend_from_slice(&buffer[..length]);
        if enough(&String::from_utf8_lossy(said)) {
            return Ok(true);
        }
        if length == 0 {
            return Ok(false);
        }
    }
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.spawn().with_context(|| format!("start {}", command.get_program().display()))
}

/// Waits for the child's end without reaping it; kills it when it hangs.
fn wait_for_end(child: &mut Child, begin: Instant, waiting: Waiting) -> Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a process has an id")?;
    let descriptor = pidfd_open(pid, PidfdFlags::empty())?;
    let outcome = wait_until_readable(descriptor.as_fd(), begin, waiting);
    if outcome.is_err() {
        child.kill()?;
        child.wait()?;
    }
    outcome
}

fn wait_until_readable(descriptor: BorrowedFd<'_>, begin: Instant, waiting: Waiting) -> Result<()> {
    let left = DEADLINE.saturating_sub(begin.elapsed());
    let left = Timespec::try_from(left)?;
    let mut polled = vec![PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    if waiting == Waiting::Interruptible {
        polled.extend(interrupt::descriptor().map(|interrupt| PollFd::from_borrowed_fd(interrupt, PollFlags::IN)));
    }
    loop {
        match poll(&mut polled, Some(&left)) {
            Ok(0) => bail!("nothing happens for {} s", DEADLINE.as_secs()),
            Ok(_) if polled.get(1).is_some_and(|interrupt| !interrupt.revents().is_empty()) => bail!(Interrupted),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for a process"),
        }
    }
}

/// The last of what was said, where programs say why they fail.
fn text(file: &mut File) -> Result<String> {
    const SHOWN_BYTES: usize = 800;
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let shown = bytes.len().saturating_sub(SHOWN_BYTES);
    Ok(String::from_utf8_lossy(bytes.get(shown..).unwrap_or_default()).trim().to_owned())
}

/// The command as one would type it.
pub(crate) fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn the_clock_stops_at_the_line() {
        // The second process ends only when the first line was read, so the clock cannot have waited for its end.
        let mut commands = [shell("true"), shell("echo before; echo 11; exec cat >/dev/null")];
        assert!(time_until_line(&mut commands, "11").is_ok());
        let missing = time_until_line(&mut [shell("echo 12")], "11").unwrap_err();
        assert!(missing.to_string().contains("12"), "{missing}");
    }

    #[test]
    fn failures_show_what_was_said() {
        let error = time(&mut shell("echo the reason >&2; exit 3")).unwrap_err();
        assert!(error.to_string().contains("the reason"), "{error}");
    }
}
