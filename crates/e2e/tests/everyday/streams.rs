//! What goes in and comes out: pipes, signals, logs, attaching.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use sampan_e2e::fixtures::image::digest;
use sampan_e2e::harness::wait::until;
use sampan_e2e::service::Service;

const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes without any pattern that compresses or any line structure, zero bytes included.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

pub(crate) fn binary_data_passes_an_exec_unharmed(service: &Service) -> Result<()> {
    service.background("piped", "sleep 1000")?;
    let data = noise(24 << 20);
    let done = service.sampan(["exec", "-i", "piped", "cat"]).input(data.clone()).finish()?.expect(0)?;
    ensure!(done.output == data, "{} bytes went in, {} others came out", data.len(), done.output.len());
    let sum = service.sampan(["exec", "-i", "piped", "sh", "-c", "gzip -1 | gunzip | sha256sum"]).input(data.clone());
    ensure!(format!("sha256:{}", sum.ok()?).starts_with(&digest(&data)), "a pipeline inside changes the data");
    let counted = service.sampan(["exec", "-i", "piped", "sh", "-c", "wc -l; exit 3"]).input("a\nb\n").finish()?;
    assert_eq!(counted.expect(3)?.text(), "2");
    // A reader that has enough ends everything quietly.
    let head = service.sampan(["exec", "-i", "piped", "head", "-c", "5"]).input(data).finish()?.expect(0)?;
    assert_eq!(head.output.len(), 5);
    let (mixed, errors) = ("for i in 1 2 3; do echo o$i; echo e$i >&2; done", "e1\ne2\ne3");
    let done = service.sampan(["exec", "piped", "sh", "-c", mixed]).finish()?.expect(0)?;
    assert_eq!((done.text().as_str(), done.complaint().as_str()), ("o1\no2\no3", errors));
    service.remove(["piped"])
}

pub(crate) fn binary_data_passes_a_run_unharmed(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let data = noise(6 << 20);
    let sum = service.sampan(["run", "--rm", "-i", &busybox, "sha256sum"]).input(data.clone()).ok()?;
    ensure!(format!("sha256:{sum}").starts_with(&digest(&data)), "standard input arrives changed");
    let done = service.sampan(["run", "--rm", "-i", &busybox, "cat"]).input(data.clone()).finish()?.expect(0)?;
    ensure!(done.output == data, "{} bytes went in, {} others came out", data.len(), done.output.len());
    // Without -i nothing goes in, and the end of input is seen at once.
    assert_eq!(service.sampan(["run", "--rm", &busybox, "wc", "-c"]).input("nothing of this").ok()?, "0");
    Ok(())
}

pub(crate) fn signals_reach_a_foreground_instance(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let script = "trap 'echo got INT; exit 30' INT; trap 'echo got TERM; exit 31' TERM; \
                  trap 'echo got USR1' USR1; echo ready; while true; do sleep 0.05; done";
    for (signal, name, code) in [(Signal::INT, "INT", 30), (Signal::TERM, "TERM", 31)] {
        let running = service.sampan(["run", "--rm", &busybox, "sh", "-c", script]).start()?;
        running.output.wait_for("ready\n")?;
        running.signal(Signal::USR1)?;
        running.output.wait_for("got USR1\n")?;
        running.signal(signal)?;
        let done = running.finish(PATIENCE)?.expect(code)?;
        ensure!(done.text().ends_with(&format!("got {name}")), "{}", done.text());
    }
    Ok(())
}

pub(crate) fn logs_can_be_cut_and_followed(service: &Service) -> Result<()> {
    service.background("logging", "for i in 1 2 3 4 5; do echo line $i; done; echo oops >&2; echo end")?;
    service.wait_for_phase("logging", "Succeeded")?;
    let logs = |options: &[&str]| service.sampan(["logs"].into_iter().chain(options.iter().copied())).ok();
    let whole = logs(&["logging"])?;
    // Two pipes have no order between them.
    let (errors, output): (Vec<&str>, Vec<&str>) = whole.lines().partition(|line| *line == "oops");
    assert_eq!((errors.len(), output), (1, vec!["line 1", "line 2", "line 3", "line 4", "line 5", "end"]));
    let last = whole.lines().next_back().context("there is a last line")?;
    assert_eq!(logs(&["--tail", "1", "logging"])?, last);
    assert_eq!(logs(&["--since", "1h", "--tail", "1", "logging"])?, last);
    assert_eq!(logs(&["--since", "2099-01-01T00:00:00Z", "logging"])?, "");
    ensure!(logs(&["--timestamps", "--tail", "1", "logging"])?.starts_with("20"));
    let busybox = service.busybox()?;
    let words = ["run", "-d", "--name", "followed", &busybox, "sh", "-c"];
    let script = "echo before; until test -e /tmp/go; do sleep 0.05; done; echo after; printf unfinished";
    service.sampan(words.into_iter().chain([script])).ok()?;
    let follower = service.sampan(["logs", "-f", "followed"]).start()?;
    follower.output.wait_for("before\n")?;
    service.inside("followed", "touch /tmp/go")?;
    assert_eq!(follower.finish(PATIENCE)?.expect(0)?.text(), "before\nafter\nunfinished");
    service.remove(["logging", "followed"])
}

pub(crate) fn attaching_shows_and_feeds_the_main_process(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let script = "while read line; do echo \"heard $line\"; done; exit 5";
    service.sampan(["run", "-d", "-i", "--name", "listener", &busybox, "sh", "-c", script]).ok()?;
    let mut attached = service.sampan(["attach", "listener"]).start()?;
    let mut input = attached.take_input().context("no pipe")?;
    input.write_all(b"hello\n")?;
    attached.output.wait_for("heard hello\n")?;
    let watcher = service.sampan(["attach", "--no-stdin", "listener"]).start()?;
    until("the watcher hears something", || {
        input.write_all(b"again\n")?;
        Ok(String::from_utf8_lossy(&watcher.output.so_far()).contains("heard again\n"))
    })?;
    drop(input);
    attached.finish(PATIENCE)?.expect(5)?;
    watcher.finish(PATIENCE)?.expect(5)?;
    service.sampan(["attach", "listener"]).finish()?.fails_with(1, &["listener", "not running"])?;
    service.remove(["listener"])
}
