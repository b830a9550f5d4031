//! A server in a process of its own, which can be killed: this test program again, with one test that is no test.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sampan_sys::keeper::{DescriptorKeeper, KeptDescriptors};
use sampan_sys::{loop_device, socket};

use super::super::{LazyFiles, prefix};
use super::stage::{self, Pattern};
use crate::lazy::device::switch_devices;

const ROOT: &str = "SAMPAN_TEST_LAZY_ROOT";
const BYTES: &str = "SAMPAN_TEST_LAZY_BYTES";
const NUMBER: u64 = 11;
/// Set for a server that answers nothing, and moves its device to this file when it is asked for something.
const STUCK: &str = "SAMPAN_TEST_LAZY_STUCK";
/// How long a span takes to come, and how long to wait for what was asked again.
const DELAY: Duration = Duration::from_millis(5);
const AGAIN_MAX: Duration = Duration::from_millis(500);

pub(super) struct Server {
    child: Child,
    parent: OwnedFd,
    said: BufReader<std::process::ChildStdout>,
}

impl Server {
    /// Starts one and waits until it serves.
    pub(super) fn start(kept: &KeptDescriptors, root: &Path, bytes: u64) -> Self {
        Self::start_with(kept, root, bytes, None)
    }

    /// Starts one that answers nothing, and that moves the device to `local` when it is asked for something.
    pub(super) fn start_stuck(kept: &KeptDescriptors, root: &Path, bytes: u64, local: &Path) -> Self {
        Self::start_with(kept, root, bytes, Some(local))
    }

    fn start_with(kept: &KeptDescriptors, root: &Path, bytes: u64, stuck: Option<&Path>) -> Self {
        let (parent, theirs) = socket::pair().expect("a pair");
        kept.hand_down(parent.as_fd()).expect("hand down");
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "--nocapture", "lazy::connection::tests::server::serves_until_it_is_killed"]);
        command.env(ROOT, root).env(BYTES, bytes.to_string());
        command.envs(stuck.map(|local| (STUCK, local)));
        command.stdin(Stdio::from(theirs)).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start a server");
        let said = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut server = Self { child, parent, said };
        assert!(server.hear("serving"));
        server
    }

    /// Whether it was asked for what the one before it had left unanswered.
    pub(super) fn was_asked_again(&mut self) -> bool {
        self.hear("asked again")
    }

    /// Waits until it is about to move its device.
    pub(super) fn wait_until_stuck(&mut self) {
        assert!(self.hear("switching"));
        let switching = || {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("tasks");
            let stats =
                tasks.flatten().map(|task| std::fs::read_to_string(task.path().join("stat")).unwrap_or_default());
            stats.into_iter().any(|stat| stat.contains("(apart) D"))
        };
        stage::until(switching);
    }

    /// Kills it without waiting for its end, but until its sockets are closed.
    pub(super) fn kill_stuck(&mut self, kept: &mut KeptDescriptors) {
        self.child.kill().expect("kill");
        let kept = std::cell::RefCell::new(kept);
        stage::until(|| !kept.borrow_mut().drain(self.parent.as_fd()).expect("drain"));
        assert!(self.child.try_wait().expect("look").is_none(), "nothing holds it");
    }

    pub(super) fn wait_until_gone(mut self) {
        self.child.wait().expect("wait");
    }

    /// The device that it reads through.
    pub(super) fn device(&self, root: &Path) -> PathBuf {
        let name = format!("/{}{NUMBER:016x}", prefix(root).expect("a prefix"));
        let found = loop_device::find(|backing| backing.to_str() == Some(&name)).expect("look");
        found.first().expect("a device").path().to_owned()
    }

    pub(super) fn kill(&mut self, kept: &mut KeptDescriptors) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
        assert!(!kept.drain(self.parent.as_fd()).expect("drain"), "it is dead");
    }

    /// Whether it says `wanted` rather than `not WANTED`, among what the test harness says.
    fn hear(&mut self, wanted: &str) -> bool {
        let mut line = String::new();
        while self.said.read_line(&mut line).expect("read") > 0 {
            if line.trim_end().ends_with(wanted) {
                return !line.contains("not ");
            }
            line.clear();
        }
        panic!("the server ended before it said: {wanted}");
    }
}

/// Does nothing unless [`Server::start`] has started it.
#[test]
fn serves_until_it_is_killed() {
    let (Some(root), Ok(bytes)) = (std::env::var_os(ROOT), std::env::var(BYTES)) else { return };
    let socket = std::io::stdin().as_fd().try_clone_to_owned().expect("standard input");
    let nothing = std::fs::File::open("/dev/null").expect("open");
    sampan_sys::process::become_standard_stream(nothing.as_fd(), 0).expect("standard input");
    let keeper = DescriptorKeeper::open(socket).expect("a keeper");
    let files = LazyFiles::open(&keeper, Path::new(&root), 3).expect("open");
    let stuck = std::env::var_os(STUCK);
    let delay = if stuck.is_some() { Duration::MAX } else { DELAY };
    let pattern = Pattern::new(NUMBER, bytes.parse().expect("a number"), delay);
    let _device = stage::attach(&files, &pattern);
    say("serving");
    if let Some(local) = stuck {
        pattern.wait_until_asked();
        say("switching");
        let local = std::fs::File::open(local).expect("open");
        switch_devices(&files, NUMBER, &local).expect("switch");
    }
    let begin = Instant::now();
    while files.is_inherited() && files.resent() == 0 && begin.elapsed() < AGAIN_MAX {
        std::thread::sleep(Duration::from_millis(1));
    }
    say(if files.resent() > 0 { "asked again" } else { "not asked again" });
    loop {
        std::thread::park();
    }
}

fn say(words: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{words}").and_then(|()| out.flush()).expect("say");
}
