//! `-it`: a terminal inside that behaves like the one outside.

use anyhow::{Result, ensure};
use sampan_e2e::harness::wait::until;
use sampan_e2e::service::Service;

const SIZE: (u16, u16) = (93, 31);

pub(crate) fn a_terminal_inside_has_the_size_of_the_one_outside(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let mut terminal = service.sampan(["run", "--rm", "-it", &busybox, "sh"]).on_terminal(SIZE)?;
    terminal.screen.wait_for("# ")?;
    terminal.keys(b"stty size; tty; echo mark-$((40 + 2))\n")?;
    terminal.screen.wait_for("mark-42")?;
    let shown = String::from_utf8_lossy(&terminal.screen.so_far()).into_owned();
    ensure!(shown.contains("31 93") && shown.contains("/dev/"), "{shown:?}");
    terminal.resize((50, 20))?;
    // The new size may take a moment to arrive; the shell asks until it has.
    terminal.keys(b"until stty size | grep -q '20 50'; do sleep 0.05; done; echo size-$((6 * 7))\n")?;
    terminal.screen.wait_for("size-42")?;
    terminal.keys(b"exit 9\n")?;
    assert_eq!(terminal.finish()?, 9);
    Ok(())
}

pub(crate) fn ctrl_c_goes_to_the_program_inside(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let words = ["run", "--rm", "-it", "--name", "interrupted", &busybox, "sh"];
    let mut terminal = service.sampan(words).on_terminal(SIZE)?;
    terminal.screen.wait_for("# ")?;
    terminal.keys(b"sleep 1000\n")?;
    until("the program runs", || Ok(service.sampan(["exec", "interrupted", "pidof", "sleep"]).finish()?.code == 0))?;
    terminal.keys(&[3])?;
    terminal.screen.wait_until("a prompt after ^C", |shown| {
        String::from_utf8_lossy(shown).split_once("^C").is_some_and(|(_, after)| after.contains("# "))
    })?;
    terminal.keys(b"echo code-$?\n")?;
    terminal.screen.wait_for("code-130")?;
    terminal.keys(b"exit\n")?;
    terminal.finish().map(drop)
}

pub(crate) fn the_detach_keys_leave_it_running(service: &Service) -> Result<()> {
    let busybox = service.busybox()?;
    let mut terminal = service.sampan(["run", "-it", "--name", "left", &busybox, "sh"]).on_terminal(SIZE)?;
    terminal.screen.wait_for("# ")?;
    terminal.keys(b"remembered=yes-$((20 + 1)); echo set-$((2 + 3))\n")?;
    terminal.screen.wait_for("set-5")?;
    terminal.keys(&[16, 17])?;
    assert_eq!(terminal.finish()?, 0);
    service.wait_for_phase("left", "Running")?;
    let mut terminal = service.sampan(["attach", "left"]).on_terminal(SIZE)?;
    // A fresh line may come before the terminal is attached; the answer is what counts.
    terminal.keys(b"\n")?;
    terminal.screen.wait_for("# ")?;
    terminal.keys(b"echo $remembered\n")?;
    terminal.screen.wait_for("yes-21")?;
    terminal.keys(b"exit 4\n")?;
    assert_eq!(terminal.finish()?, 4);
    service.remove(["left"])
}

pub(crate) fn exec_gives_a_terminal_too(service: &Service) -> Result<()> {
    service.background("shelled", "sleep 1000")?;
    let mut terminal = service.sampan(["exec", "-it", "shelled", "sh"]).on_terminal(SIZE)?;
    terminal.screen.wait_for("# ")?;
    terminal.keys(b"stty size; echo $TERM\n")?;
    terminal.screen.wait_for("31 93")?;
    terminal.screen.wait_for("xterm")?;
    terminal.resize((120, 40))?;
    terminal.keys(b"until stty size | grep -q '40 120'; do sleep 0.05; done; exit 6\n")?;
    assert_eq!(terminal.finish()?, 6);
    // Without a terminal on this side, -it is refused rather than half given.
    service.sampan(["exec", "-it", "shelled", "sh"]).finish()?.fails_with(125, &["terminal"])?;
    service.remove(["shelled"])
}
