//! The zygote's process: nothing but the sandbox room's own loop.
//!
//! Every agent is a clone of it, and has for itself whatever page of its memory either of them writes to. So it reads its command
//! line by itself: the general way leaves a few hundred kilobytes of holes in the heap, which every agent would fill in its own way.

use std::ffi::OsString;

use anyhow::Context as _;
use rustix::process::{Signal, set_parent_process_death_signal};

use super::descriptor;

/// The descriptors that a command line hands to a zygote; `None` when it asks for something else.
fn handed_down(line: impl IntoIterator<Item = OsString>) -> Option<Vec<String>> {
    let mut words = line.into_iter().skip(1);
    if words.next()? != "internal" || words.next()? != "zygote" {
        return None;
    }
    let mut descriptors = Vec::new();
    while let Some(word) = words.next() {
        if word == "--descriptor" {
            descriptors.extend(words.next().and_then(|word| word.into_string().ok()));
        }
    }
    Some(descriptors)
}

/// Serves until the supervisor dies, where the command line says so; then a new supervisor makes a new zygote, and agents go on
/// without either.
pub(crate) fn run(line: impl IntoIterator<Item = OsString>) -> Option<anyhow::Result<()>> {
    handed_down(line).map(|descriptors| serve(&descriptors))
}

fn serve(descriptors: &[String]) -> anyhow::Result<()> {
    super::take_own_signals();
    set_parent_process_death_signal(Some(Signal::KILL)).context("the zygote cannot be bound to its supervisor")?;
    let listener = descriptor(descriptors, "zygote")?;
    match sampan_sandbox::serve_zygote(listener).context("the zygote cannot go on")? {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zygote_knows_its_own_command_line() {
        let check = |line: &str, expected: Option<&[&str]>| {
            let found = handed_down(line.split_whitespace().map(OsString::from));
            let expected = expected.map(|names| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
            assert_eq!(found, expected, "{line}");
        };
        check("sampan internal zygote --data-dir /d --descriptor zygote=7", Some(&["zygote=7"]));
        check("sampan internal zygote", Some(&[]));
        check("sampan internal daemon --descriptor ready=7", None);
        check("sampan run internal zygote", None);
        check("sampan", None);
    }
}
