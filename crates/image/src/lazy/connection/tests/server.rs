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

const ROOT: &str = "SAMPAN_TEST_LAZY_ROOT";
const BYTES: &str = "SAMPAN_TEST_LAZY_BYTES";
const NUMBER: u64 = 11;
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
        let (parent, theirs) = socket::pair().expect("a pair");
        kept.hand_down(parent.as_fd()).expect("hand down");
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "--nocapture", "lazy::connection::tests::server::serves_until_it_is_killed"]);
        command.env(ROOT, root).env(BYTES, bytes.to_string());
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
    let keeper = DescriptorKeeper::open(socket).expect("a keeper");
    let files = LazyFiles::open(&keeper, Path::new(&root), 3).expect("open");
    let pattern = Pattern::new(NUMBER, bytes.parse().expect("a number"), DELAY);
    let _device = stage::attach(&files, &pattern);
    say("serving");
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
